"""What a trial leaves on disk of its policy, and how it comes back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.store.cache import MARK
from harness.store.journal import Journal
from harness.tasks.audit import card
from harness.trial.data import audited

if TYPE_CHECKING:
    from harness.tasks.base import TaskData
    from harness.trial.context import Ground

DATA_CARD = "data_card.md"
MODEL, MERGED = Path("artifacts") / "model", Path("artifacts") / "merged"
BASES = "bases"
"""Below a sweep's folder: bases that the cache made, for the adapters on them."""
UNJUDGED = Path("unjudged")
"""Below a trial's folder: what was trained, its merged copy, and what is only there until it is judged."""


def kept_policy(folder: Path) -> Path | None:
    """Where a trial's folder holds a trained policy, whole; None where it holds none."""
    return next((p for p in (folder / UNJUDGED, folder / MODEL) if p.is_dir()), None)


def keep(ground: Ground, model: Any, journal: Journal) -> None:
    """Save what was trained, whole or not at all, and journal ``trained``: from there on no attempt trains again.

    With ``train.save=none`` it lies beside the artifacts until it is judged. Where there is no room, judging goes
    on with the policy in memory, and ``settle`` tries again.
    """
    none = ground.setup.train.save == "none"
    for stale in (UNJUDGED, MODEL, MERGED):  # of another training
        shutil.rmtree(ground.folder / stale, ignore_errors=True)
    try:
        save_whole(model, ground.tokenizer, ground.folder / (UNJUDGED if none else MODEL), own_base(ground))
    except cannot_write() as error:
        journal.write("note", message=f"the trained policy cannot be saved yet ({error}); it is judged from memory")
        return
    journal.write("trained")
    if not none:
        journal.write("artifact", path="model")


def settle(ground: Ground, model: Any, journal: Journal) -> None:
    """After judging: what is to be kept is in place, what is not is gone; ``train.save=full`` adds a merged copy.

    The adapter is merged into the model itself, layer by layer, which needs no second copy; nothing is computed with
    ``model`` afterwards.

    Raises:
        RuntimeError: it cannot be saved; its figures are in the journal by now.
    """
    setup, folder = ground.setup, ground.folder
    if setup.train.save == "none":
        shutil.rmtree(folder / UNJUDGED, ignore_errors=True)
        return
    try:
        if (folder / UNJUDGED).is_dir():  # an earlier attempt was to keep nothing
            shutil.rmtree(folder / MODEL, ignore_errors=True)
            os.replace(folder / UNJUDGED, folder / MODEL)
            journal.write("artifact", path="model")
        elif not (folder / MODEL).is_dir():
            save_whole(model, ground.tokenizer, folder / MODEL, own_base(ground))
            journal.write("trained")
            journal.write("artifact", path="model")
        if setup.train.save == "full" and setup.adapter.peft_config() is not None:
            _keep_merged(ground, model, journal)
    except cannot_write() as error:
        kept = kept_policy(folder) is not None
        then = "its policy is kept, and named again it is judged" if kept else "its policy is lost, and named again it"
        raise RuntimeError(
            f"what was trained cannot be saved in {folder} ({error}); make room there. The trial was judged, {then}"
            f"{'' if kept else ' trains from its last checkpoint, or anew where there is none'}"
        ) from error


def _keep_merged(ground: Ground, model: Any, journal: Journal) -> None:
    if ground.setup.adapter.quantized:
        message = "train.save=full: quantized weights are not merged (it would cost precision); the adapter is kept"
        journal.write("note", message=message)
    elif (reason := ground.setup.adapter.cannot_merge) is not None:
        journal.write("note", message=f"train.save=full: {reason}; the adapter is kept")
    elif not (ground.folder / MERGED).is_dir():
        save_whole(model.merge_and_unload(), ground.tokenizer, ground.folder / MERGED)
        journal.write("artifact", path="merged")


def own_base(ground: Ground) -> Path | None:
    """Where the sweep keeps the base of its adapters that the cache made; None where the base is not the cache's.

    The cache may be pruned, and then an adapter on one of its bases could not be loaded. The files are links where the
    disk allows it, and take no room.
    """
    if ground.source is None or ground.setup.adapter.peft_config() is None:
        return None
    target = ground.folder.parent / BASES / ground.source.name
    if not target.is_dir():
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            shutil.copytree(ground.source, draft, copy_function=_linked, ignore=shutil.ignore_patterns(MARK))
            os.replace(draft, target)
        except OSError:
            if not target.is_dir():  # else another trial was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def save_whole(model: Any, tokenizer: Any, target: Path, base: Path | None = None) -> None:
    """Save model and tokenizer as the folder ``target``, which is there with all its files or not at all.

    ``base`` is what an adapter is to be loaded on, in place of where its base was loaded from.
    """
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        config = draft / "adapter_config.json"
        if config.is_file():
            named = json.loads(config.read_text(encoding="utf-8"))
            place = base or Path(named.get("base_model_name_or_path") or "").expanduser()
            if base is not None or (place.parts and place.is_dir()):  # the adapter is loaded from any folder
                named["base_model_name_or_path"] = str(place.resolve())
            config.write_text(json.dumps(named, indent=2), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def cannot_write() -> tuple[type[Exception], ...]:
    """What is raised where a disk is full or gone."""
    from safetensors import SafetensorError

    return OSError, SafetensorError


def keep_examples(ground: Ground, name: str, columns: Mapping[str, Sequence[Any]], journal: Journal) -> None:
    """One evaluator's results per example, as Parquet: trials are compared example by example."""
    import pyarrow
    from pyarrow import parquet

    path = Path("examples") / f"{name}.parquet"
    target = ground.folder / "artifacts" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(dict(columns)), target)
    journal.write("artifact", path=str(path))


def keep_data_card(ground: Ground, data: TaskData, journal: Journal) -> None:
    """One page about ``data``, which the trial was given, and about what it sees of it."""
    setup = ground.setup
    target = ground.folder / "artifacts" / DATA_CARD
    target.parent.mkdir(parents=True, exist_ok=True)
    found = ground.found
    page = card(
        audited(data), title=type(setup.task).__name__.lower(), digest=data.digest, more=found.facts,
        notes=[*data.notes, *found.notes], examples=found.examples,
    )  # fmt: skip
    target.write_text(page, encoding="utf-8")
    journal.write("artifact", path=DATA_CARD)


def load_trained(ground: Ground, base: Any) -> Any:
    """The policy that an earlier attempt saved."""
    folder = kept_policy(ground.folder)
    if ground.setup.adapter.peft_config() is None:
        from harness.models.loading import load_pretrained

        whole = load_pretrained(
            str(folder),
            dtype=ground.dtype,
            device=ground.device,
            quantization=None,
            attention=ground.setup.model.attention,
        )
        return ground.sharing(whole, trained=True)
    from peft import PeftModel

    # Adapters are trained in 32 bits, and come back in 32 bits: without peft's cast they would take the base's bf16.
    return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=True).eval()
