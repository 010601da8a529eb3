"""What every part of a trial's story stands on: base, data, tokenizer, device, cache. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.base.errors import UserError
from harness.base.world import World
from harness.config import identity
from harness.config.theirs import is_own
from harness.evaluators.base import EvalContext, Merging
from harness.models import prefixes
from harness.models.adapters import Adapter
from harness.models.loading import load_pretrained
from harness.models.making import loaded_as_said
from harness.models.precision import Place, place_on
from harness.store.cache import Cache, Entry
from harness.store.journal import Journal
from harness.tasks.base import TaskData
from harness.tasks.conversation import Style
from harness.tasks.ids import Found
from harness.telemetry.clock import PhaseClock
from harness.trial.assemble import Setup
from harness.trial.data import style_for, usable
from harness.trial.job import Job
from harness.trial.of_the_base import OfTheBase
from harness.trial.ranks import CacheOfRanks

SAMPLED_PROMPTS = 32
"""Held-out prompts whose completions a real model samples where nothing scores them: a minute each on two cores."""


@dataclass(frozen=True)
class Ground:
    """What every part of the story stands on."""

    setup: Setup
    data: TaskData
    tokenizer: Any
    style: Style
    source: Path | None
    base_key: str
    cache: Cache
    folder: Path
    place: Place
    resume: bool
    snapshot: bool = False
    stop_losing: bool = False
    world: World = World()
    wish: Path | None = None
    found: Found = field(default_factory=Found)
    curated: TaskData | None = None
    """The rows without what the base's margins rule out; None where nothing asks for them."""
    progress: Callable[[str, int, int], None] | None = None
    journal: Journal | None = None
    told: set[str] = field(default_factory=set)
    """Keys of stages that the journal knows already."""

    def rows(self, rows: Any) -> list[dict[str, Any]]:
        """Rows in the form the model wants."""
        return self.style.rows(rows)

    def bare_rows(self, rows: Any) -> list[dict[str, Any]]:
        """The same without what stands before the policy's prompts."""
        return self.style.bare.rows(rows)

    @property
    def learned(self) -> TaskData:
        """The rows that training learns from; those that are held out are the same as in ``data``."""
        return self.curated or self.data

    @property
    def chat(self) -> bool:
        """Whether rows are rendered with a chat template."""
        return self.style.chat

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the policy's stored weights."""
        return self.place.dtype

    @property
    def precision(self) -> str:
        """Of the computation."""
        return self.place.precision

    @property
    def base_as_read(self) -> dict[str, Any]:
        """Identity of the base's weights, and of how a forward pass of them is rounded beside dtype and precision."""
        attention, shared = self.setup.model.attention, self.setup.train.share_prefix is not False
        return {"weights": self.base_key, "attention": attention, "shared beginnings": shared}

    def load_base(self) -> Any:
        """The base that is judged: as a user would deploy it, stored and computing as the policy does, or in 4 bits."""
        if self.baseline_quantization is not None:
            return self.load_policy_base()
        return self._loaded(dtype=self.dtype)

    def _loaded(self, **options: Any) -> Any:
        model, source = self.setup.model, self.source
        found = model.load(source, device=self.device, **options)
        if is_own(model):
            loaded_as_said(found, model.configuration(source))
        return self.sharing(found)

    def sharing(self, model: Any, *, trained: bool = False) -> Any:
        """A model that was loaded just now, in eval mode: it reads shared beginnings once where the others do.

        Numbers that are compared are then rounded alike, wherever the weights come from. A ``trained`` one is refused
        no more, since what it cost is spent: where its weights let both ways differ, that is noted.
        """
        asked, longest = self.setup.train.share_prefix, max(self.setup.train.max_length, self.setup.eval.max_length)
        asked = "auto" if trained and asked is True else asked
        found = prefixes.ready(model, asked, longest=longest, device=self.device, precision=self.precision)
        if trained and found is not None and found.why and self.journal is not None:
            self.journal.write("note", message=f"the trained policy reads rows apart: {found.why}")
        return model.eval()

    @property
    def baseline_quantization(self) -> Any | None:
        """Of the base that is judged; None where it is the deployed one."""
        quantized = self.setup.eval.baseline == "quantized"
        return self.setup.adapter.quantization(self.place.unpacked) if quantized else None

    def load_policy_base(self) -> Any:
        """The base that training starts from, 4-bit where the adapter asks for it."""
        return self.load_for(self.setup.adapter)

    def load_for(self, adapter: Adapter) -> Any:
        """The base as ``adapter`` wants it to train it."""
        quantization = adapter.quantization(self.place.unpacked)
        if quantization is not None and self.setup.parallel.sharded:
            quantization.bnb_4bit_quant_storage = self.place.unpacked  # whole numbers would stay in one piece
        dtype = self.place.stored_for(adapter.trains_base)
        return self._loaded(dtype=dtype, quantization=quantization)

    def reward_folders(self, journal: Journal) -> dict[str, Path]:
        """The models that the trial's reward needs, from the cache or built now: key of the recipe -> folder."""
        from harness.stages.classifying import StageGround
        from harness.stages.process_model import process_model
        from harness.stages.reward_model import reward_model

        folders: dict[str, Path] = {}
        for spec in self.setup.reward.stages() if self.setup.reward is not None else ():
            ground = StageGround(
                load=lambda spec=spec: self.load_for(spec.adapter),
                base_key=self.base_as_read,
                data=self.learned,
                tokenizer=self.tokenizer,
                rows=self.bare_rows,
                device=self.device,
                precision=self.precision,
                dtype=str(self.place.stored_for(spec.adapter.trains_base)),
                frozen=self.place.frozen,
                chat=self.chat,
                progress=lambda step, total, spec=spec: journal.write(
                    "progress", what=spec.stage.replace("_", " "), step=step, total=total
                ),
            )
            build: Any = {"process_model": process_model, "reward_model": reward_model}[spec.stage]
            entry = build(spec, ground, self.cache)
            note_stage(journal, spec.stage, entry, self.cache.note(entry))
            folders[spec.key] = entry.path
        return folders

    def references(self, clock: PhaseClock, journal: Journal) -> Any:
        """Reference log-probabilities of training rows, from the cache or computed now, in a phase of their own."""
        from harness.stages.reference import STAGE, References

        def note(entry: Entry, scored: int) -> None:
            note_stage(journal, STAGE, entry, self.cache.note(entry))
            journal.write("metrics", values={"budget/reference_rows": scored})

        quantization = self.setup.adapter.quantization(self.place.unpacked)
        base = {
            "base": self.base_as_read,
            "quantization": None if quantization is None else quantization.to_dict(),
            "dtype": str(self.dtype),
            "precision": self.precision,
            "device": self.device,
        }
        return References(self.cache, base, note, partial(clock.phase, "reference"), self.progress)

    def eval_context(self, model: Any, reference: Any | None) -> EvalContext:
        """What evaluators see of ``model``, which was trained where there is a ``reference``."""
        setup = self.setup
        trained = reference is not None and setup.algo.trains
        return context_of(
            setup,
            model,
            self.tokenizer,
            self.data,
            self.rows,
            self.place,
            beta=setup.algo.beta,
            reference=reference,
            max_leaked=setup.eval.max_leaked,
            bare=self.bare_rows,
            chat=self.chat and setup.model.chat_template == "auto",
            sampled_prompts=None if setup.model.embedded else SAMPLED_PROMPTS,
            progress=self.progress,
            cache=self.cache.root,
            before_training=self.before_training(model) if trained else None,
            merging=self.merging() if trained and setup.adapter.peft_config() is not None else None,
        )

    def base_context(self, base: Any, *, deployed: bool = False) -> EvalContext:
        """What evaluators see of a model before training; what is computed of it is kept for every other trial.

        Args:
            base: that training starts from, or with ``deployed`` that is judged (``load_base``).
            deployed: which of them it is.
        """
        context = self.eval_context(base, None)
        context.memo.kept = self.of_the_base(deployed=deployed)
        return context

    def of_the_base(self, *, deployed: bool = False) -> OfTheBase:
        """What other trials and this one know of a model before training (``base_context``)."""
        adapter, place = self.setup.adapter, self.place
        if deployed and self.baseline_quantization is None:
            dtype, quantization = self.dtype, None
        else:
            dtype, quantization = place.stored_for(adapter.trains_base), adapter.quantization(place.unpacked)
        bits = None if quantization is None else quantization.to_dict()
        return OfTheBase(self, str(dtype), bits, within=deployed)

    def merging(self) -> Merging:
        """The base that the trained adapter can be merged into, and the way back to the bits that it came from."""
        setup, place = self.setup, self.place
        quantization = setup.adapter.quantization(place.unpacked)

        def base() -> Any:
            return self.sharing(setup.model.load(self.source, dtype=place.unpacked, device=self.device), trained=True)

        def reload(folder: Path) -> Any:
            dtype, attention = place.frozen, setup.model.attention
            whole = load_pretrained(
                str(folder), dtype=dtype, device=self.device, quantization=quantization, attention=attention
            )
            return self.sharing(whole, trained=True)

        adapter = setup.adapter
        return Merging(base, None if quantization is None else reload, adapter.cannot_merge, adapter.bits)

    def before_training(self, model: Any) -> Callable[[], AbstractContextManager[EvalContext]]:
        """The way back from the trained ``model``: its adapter off, or the base's own weights, loaded for the while."""

        @contextmanager
        def turn() -> Iterator[EvalContext]:
            adapter = self.setup.adapter.peft_config() is not None
            with model.disable_adapter() if adapter else nullcontext():
                yield self.base_context(model if adapter else self.load_policy_base())

        return turn


def context_of(
    setup: Setup, model: Any, tokenizer: Any, data: TaskData, rows: Any, place: Place, **more: Any
) -> EvalContext:
    """What evaluators see of ``model`` under the trial's settings; ``more`` are other fields of the context."""
    settings = setup.eval
    return EvalContext(
        model=model,
        tokenizer=tokenizer,
        task=setup.task,
        data=data,
        rows=rows,
        split=settings.split,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        max_completion_length=settings.max_completion_length,
        seed=settings.seed,
        device=place.device,
        precision=place.precision,
        frozen=place.frozen,
        **more,
    )


def prepare_ground(setup: Setup, data: TaskData, job: Job, journal: Journal) -> Ground:
    """Device, precision, tokenizer and the base's folder (built by the SFT stage on first use)."""
    place = placement(setup, job.device)
    stored = str(place.dtype).removeprefix("torch.")
    journal.write("device", device=place.device, precision=place.precision, dtype=stored, **device_record(place.device))
    cache = CacheOfRanks(Path(job.cache_dir), job.world)
    progress = progress_into(journal)
    prepared = setup.model.prepare(cache, setup.task, threads=torch.get_num_threads(), progress=progress)
    if prepared.entry is not None and prepared.stage is not None:
        note_stage(journal, prepared.stage, prepared.entry, cache.note(prepared.entry) or None)
    source, base_key = prepared.path, prepared.weights or setup.model.recipe_digest(setup.task)
    tokenizer = setup.model.tokenizer(source)
    style = choose_style(setup, data, tokenizer, journal)
    data, found = usable(setup, data, tokenizer, style, cache, source)
    for note in (*data.notes, *found.notes):
        journal.write("note", message=note)
    if data.curation:
        journal.write("metrics", values={f"data/{name}": float(rows) for name, rows in data.curation.items()})
    return Ground(
        setup=setup,
        data=data,
        tokenizer=tokenizer,
        style=style,
        source=source,
        base_key=base_key,
        cache=cache,
        folder=Path(job.folder),
        place=place,
        resume=job.resume_checkpoint,
        snapshot=job.snapshot,
        stop_losing=job.stop_losing,
        world=job.world,
        wish=job.wish,
        found=found,
        progress=progress,
        journal=journal,
    )


def progress_into(journal: Journal) -> Callable[[str, int, int], None]:
    """Writes progress to the journal, at most twice a second, and the end of each thing."""
    last = 0.0

    def told(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= 0.5:
            last = now
            journal.write("progress", what=what, step=done, total=total)

    return told


def placement(setup: Setup, wanted: str) -> Place:
    """Where the trial computes, and in which numbers."""
    device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device", key="runner.device", value="cuda", fix="runner.device=cpu")
    return place_on(
        setup.model,
        setup.adapter,
        setup.train,
        device,
        trains=setup.algo.trains,
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(),
    )


def device_record(device: str) -> dict[str, Any]:
    """Name and identity of the device, so that the sampler can find it."""
    if device == "cpu":
        return {"name": identity.processor(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"name": properties.name, "uuid": str(getattr(properties, "uuid", "")) or None}


def choose_style(setup: Setup, data: TaskData, tokenizer: Any, journal: Journal) -> Style:
    """How rows are rendered; a stand-in for a missing template is noted."""
    had = bool(tokenizer.chat_template)
    style = style_for(setup, data, tokenizer)
    if style.chat and not had:
        journal.write("note", message="the tokenizer has no chat template; rows are rendered as 'role: content' lines")
    return style


def note_stage(
    journal: Journal, stage: str, entry: Entry, metrics: Mapping[str, Any] | None = None, *, within: bool = False
) -> None:
    """Journal that a stage was found or built, ``within`` another one whose seconds hold its own."""
    journal.write(
        "stage",
        stage=stage,
        key=entry.path.name,
        hit=entry.hit,
        why=entry.why,
        seconds=entry.seconds,
        **({} if metrics is None else {"metrics": {k: float(v) for k, v in metrics.items()}}),
        **({"within": True} if within else {}),
    )
    if "damaged" in entry.why:
        journal.write("note", message=f"cache, {stage}: {entry.why}")
