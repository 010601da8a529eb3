"""The whole story of one trial, top to bottom: prepare, baseline, reference, train, evaluate.

Runs in a process of its own and knows nothing of MLflow: it appends events to its journal.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness import identity
from harness.algorithms.base import TrainJob
from harness.allocator import give_back
from harness.cache import Cache
from harness.conversation import is_conversational, prepare_rows
from harness.errors import UserError
from harness.evaluators.base import EvalContext, Evaluation
from harness.job import Job
from harness.journal import Journal
from harness.models import PLAIN_TEMPLATE, Tiny
from harness.saved import keep, last_checkpoint, load_trained
from harness.tasks.base import TaskData
from harness.telemetry.clock import PhaseClock
from harness.trial import Setup, assemble, check_data


def run(job: Job, journal: Journal) -> None:
    """Prepare, judge the base, train, judge what came of it."""
    clock = PhaseClock(lambda kind, data: journal.write(kind, **data))
    with clock.phase("prepare"):
        setup = assemble(job.plain)
        data = check_data(setup)
        ground = prepare_ground(setup, data, job, journal)
    with clock.phase("baseline"):
        seed_everything(setup.eval.seed)
        judge_base(ground, journal)
    with clock.phase("prepare"):
        model = ground.load_policy_base()
        expected = setup.adapter.expected_trainable(model) if setup.algo.trains else 0
    with clock.phase("reference"):
        reference = reference_scores(ground, model, journal)
    if setup.algo.trains and job.mode == "train":
        model = train(ground, model, expected, clock, journal)
        with clock.phase("evaluate"):
            keep(ground, model, journal)
    elif setup.algo.trains:
        with clock.phase("prepare"):
            if setup.adapter.peft_config() is None:
                model = None  # all weights come from disk
            model = load_trained(ground, model)
    with clock.phase("evaluate"):
        seed_everything(setup.eval.seed)
        judge_trained(ground, model, reference, journal)
    report_clock(clock, journal)


@dataclass(frozen=True)
class Ground:
    """What every part of the story stands on."""

    setup: Setup
    data: TaskData
    tokenizer: Any
    chat: bool
    source: Path | None
    base_key: str
    cache: Cache
    folder: Path
    device: str
    dtype: torch.dtype
    precision: str
    resume: bool

    def rows(self, rows: Any) -> list[dict[str, Any]]:
        """Rows in the form the model wants."""
        return prepare_rows(rows, chat=self.chat)

    def load_base(self) -> Any:
        """The base in the compute precision, as a user would deploy it."""
        return self.setup.model.load(self.source, dtype=self.dtype, device=self.device).eval()

    def load_policy_base(self) -> Any:
        """The base that training starts from, 4-bit where the adapter asks for it."""
        quantization = self.setup.adapter.quantization(self.dtype)
        if quantization is None:
            return self.load_base()
        return self.setup.model.load(
            self.source, dtype=self.dtype, device=self.device, quantization=quantization
        ).eval()

    def eval_context(self, model: Any, reference: Any | None) -> EvalContext:
        """What evaluators see."""
        setup = self.setup
        return EvalContext(
            model=model,
            tokenizer=self.tokenizer,
            task=setup.task,
            data=self.data,
            rows=self.rows,
            split=setup.eval.split,
            batch_size=setup.eval.batch_size,
            max_length=setup.eval.max_length,
            max_completion_length=setup.eval.max_completion_length,
            seed=setup.eval.seed,
            device=self.device,
            beta=setup.algo.beta,
            reference=reference,
        )


def prepare_ground(setup: Setup, data: TaskData, job: Job, journal: Journal) -> Ground:
    """Device, precision, tokenizer and the base's folder (built by the SFT stage on first use)."""
    device, dtype, precision = placement(setup, job.device)
    journal.write("device", device=device, precision=precision, **device_record(device))
    cache = Cache(Path(job.cache_dir))
    source, base_key = None, setup.model.recipe_digest(setup.task)
    if isinstance(setup.model, Tiny):
        from harness.stages.sft import embedded_base

        entry = embedded_base(
            setup.model,
            setup.task,
            cache,
            threads=torch.get_num_threads(),
            progress=lambda step, total: journal.write("progress", what="base SFT", step=step, total=total),
        )
        note = cache.note(entry)
        journal.write(
            "stage",
            stage="sft",
            key=entry.path.name,
            hit=entry.hit,
            why=entry.why,
            seconds=entry.seconds,
            metrics={k: float(v) for k, v in note.items()},
        )
        source, base_key = entry.path, entry.path.name
    tokenizer = setup.model.tokenizer(source)
    chat = choose_chat(setup, data, tokenizer, journal)
    for note in data.notes:
        journal.write("note", message=note)
    return Ground(
        setup=setup,
        data=data,
        tokenizer=tokenizer,
        chat=chat,
        source=source,
        base_key=base_key,
        cache=cache,
        folder=Path(job.folder),
        device=device,
        dtype=dtype,
        precision=precision,
        resume=job.resume_checkpoint,
    )


def placement(setup: Setup, wanted: str) -> tuple[str, torch.dtype, str]:
    """Device, dtype of the stored weights, and precision of the computation."""
    device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device", key="runner.device", value="cuda", fix="runner.device=cpu")
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported() and not isinstance(setup.model, Tiny)
    precision = {"auto": "bf16" if bf16 else "fp32"}.get(setup.train.precision, setup.train.precision)
    dtype = {"auto": torch.bfloat16 if bf16 else torch.float32}.get(
        setup.model.dtype, getattr(torch, setup.model.dtype, torch.float32)
    )
    return device, dtype, precision


def device_record(device: str) -> dict[str, Any]:
    """Name and identity of the device, so that the sampler can find it."""
    if device == "cpu":
        return {"name": identity.processor(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "uuid": str(getattr(properties, "uuid", "")) or None}


def choose_chat(setup: Setup, data: TaskData, tokenizer: Any, journal: Journal) -> bool:
    """Whether rows are rendered with a chat template; conversational rows always need one."""
    some = data.train_pairs or data.train_unpaired or data.train_prompts or data.retention
    if is_conversational(some):
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
            journal.write(
                "note",
                message="the tokenizer has no chat template; rows are rendered as 'role: content' lines",
            )
        return True
    return bool(tokenizer.chat_template) and setup.model.chat_template == "auto"


def judge_base(ground: Ground, journal: Journal) -> None:
    """Run every evaluator on the base, or take its figures from the cache."""
    setup, model = ground.setup, None
    for name, evaluator in setup.eval.active.items():
        reason = evaluator.not_applicable(setup.task, ground.data)
        if reason is not None:
            journal.write("note", message=f"{name}: {reason}", absent=f"baseline/{name}")
            continue
        inputs = {
            "base": ground.base_key,
            "data": ground.data.digest,
            "evaluator": {"name": name, "class": type(evaluator).__qualname__, **asdict(evaluator)},
            "settings": {k: v for k, v in asdict(replace(setup.eval, evaluators={})).items() if k != "evaluators"},
            "code": identity.code_digest(identity.EVALUATION_CODE, identity.modules_of([evaluator])),
            "dtype": str(ground.dtype),
            "device": ground.device,
            "chat": ground.chat,
            "versions": identity.library_versions(),
        }

        def build(folder: Path, evaluator: Any = evaluator) -> Mapping[str, Any]:
            nonlocal model
            model = model if model is not None else ground.load_base()
            found = evaluator.evaluate(ground.eval_context(model, None))
            (folder / "evaluation.json").write_text(json.dumps(asdict(found)))
            return {}

        entry = ground.cache.fetch(f"baseline-{name}", identity.digest(inputs), build, inputs=inputs)
        journal.write(
            "stage",
            stage=f"baseline-{name}",
            key=entry.path.name,
            hit=entry.hit,
            why=entry.why,
            seconds=entry.seconds,
        )
        record(journal, "baseline", Evaluation(**json.loads((entry.path / "evaluation.json").read_text())))
    del model
    free_memory(ground.device)


def reference_scores(ground: Ground, model: Any, journal: Journal) -> Any:
    """Log-probabilities of the held-out pairs under the model that training starts from."""
    from harness.evaluators.scoring import PairLogProbs, pair_log_probs

    if ground.data.eval_pairs.get(ground.setup.eval.split) and "preference" in ground.setup.eval.active:
        return pair_log_probs(ground.eval_context(model, None))
    empty = torch.zeros(0)
    return PairLogProbs(empty, empty, empty, empty, 0)


def train(ground: Ground, model: Any, expected: int, clock: PhaseClock, journal: Journal) -> Any:
    """Train by TRL; returns the trained policy, unwrapped and in eval mode."""
    from harness.callback import JournalCallback

    setup = ground.setup
    with clock.phase("prepare"):
        seed_everything(setup.seed)
        copies = setup.algo.uses_reference and setup.adapter.peft_config() is None
        reference = copy.deepcopy(model).requires_grad_(False).eval() if copies else None
        callback = JournalCallback(journal)
        trainer = setup.algo.trainer(
            TrainJob(
                model=model.train(),
                reference=reference,
                tokenizer=ground.tokenizer,
                adapter=setup.adapter,
                task=setup.task,
                data=ground.data,
                rows=ground.rows,
                reward=setup.reward,
                train=setup.train,
                seed=setup.seed,
                output_dir=ground.folder / "checkpoints",
                device=ground.device,
                precision=ground.precision,
                clock=clock,
                callbacks=[callback],
            )
        )
        policy: Any = trainer.model
        for parameter in policy.parameters():
            # TRL holds a QLoRA adapter in bf16, which rounds small updates away and is not what loading gives back.
            if parameter.requires_grad and setup.adapter.peft_config() is not None:
                parameter.data = parameter.data.float()
        count_parameters(policy, expected, journal)
        check_one_base(trainer, policy, setup)
    checkpoint = last_checkpoint(ground.folder / "checkpoints") if ground.resume else None
    if checkpoint:
        journal.write("note", message=f"continues from {checkpoint.name}")
    with clock.phase("train"):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if ground.device == "cuda":
            torch.cuda.synchronize()
    seconds = clock.seconds()
    throughput = {}
    if callback.tokens:
        throughput["throughput/train_tokens_per_s"] = callback.tokens / (seconds["train"] + seconds.get("rollout", 0.0))
    if rollout_tokens := getattr(trainer, "rollout_tokens", 0):
        throughput["throughput/rollout_tokens_per_s"] = rollout_tokens / seconds["rollout"]
    journal.write("metrics", values=throughput)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trainer.optimizer = trainer.lr_scheduler = None
    del trainer, reference
    free_memory(ground.device)
    if setup.train.gradient_checkpointing:
        trained.gradient_checkpointing_disable()
    trained.config.use_cache = True
    return trained.eval()


def count_parameters(policy: Any, expected: int, journal: Journal) -> None:
    """Log the counts; the trainable one must be what the adapter's formula says."""
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(_elements(p) for p in policy.parameters())
    journal.write("metrics", values={"params/trainable": trainable, "params/total": total})
    if trainable != expected:
        raise RuntimeError(f"{trainable:,} parameters are trainable, the adapter's formula says {expected:,}")


def check_one_base(trainer: Any, policy: Any, setup: Setup) -> None:
    """With an adapter the reference is the base with the adapter off: no second model may be in memory."""
    if setup.adapter.peft_config() is None:
        return
    if getattr(trainer, "ref_model", None) is not None or list(policy.peft_config) != ["default"]:
        raise RuntimeError("an adapter trial holds a second model or adapter as its reference")


def judge_trained(ground: Ground, model: Any, reference: Any, journal: Journal) -> None:
    """Run every evaluator on the trained model."""
    for evaluator in ground.setup.eval.active.values():
        if evaluator.not_applicable(ground.setup.task, ground.data) is not None:
            continue
        record(journal, "eval", evaluator.evaluate(ground.eval_context(model, reference)))


def record(journal: Journal, prefix: str, found: Evaluation) -> None:
    """Metrics, tables and reasons of an evaluation, under ``baseline/`` or ``eval/``."""
    journal.write("metrics", values={f"{prefix}/{k}": v for k, v in found.metrics.items()})
    for name, rows in found.tables.items():
        journal.write("table", name=f"{prefix}_{name}", rows=list(rows))
    for name, reason in found.absent.items():
        journal.write("note", message=f"{prefix}/{name}: {reason}", absent=f"{prefix}/{name}")


def report_clock(clock: PhaseClock, journal: Journal) -> None:
    """Seconds and torch's own peaks per phase."""
    seconds = clock.seconds()
    values: dict[str, float] = {f"time/{phase}_s": s for phase, s in seconds.items()}
    values["time/total_s"] = sum(seconds.values())
    peaks = clock.peaks().values()
    for lens in ("allocated", "reserved"):
        found = [mb for p in peaks if (mb := getattr(p, f"{lens}_peak_mb")) is not None]
        if found:
            values[f"memory/{lens}_peak_mb"] = max(found)
    journal.write("metrics", values=values)
    journal.write("done")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: each phase starts anew, so that a cached phase changes no later one."""
    from transformers import set_seed

    set_seed(seed)


def free_memory(device: str) -> None:
    """Give freed memory back before the next phase is measured."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    give_back()


def _elements(parameter: Any) -> int:
    """Logical number of values: a 4-bit parameter packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
