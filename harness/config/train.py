"""Training knobs that every algorithm shares. The preset that the model chooses fills what is null."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from harness.base.errors import Mismatch, UserError
from harness.base.records import unless_default
from harness.config.rollout import VLLM

UNKNOWN_STEPS = 10**9
"""Stands for the number of steps where only a budget ends training."""


@dataclass(frozen=True)
class Budget:
    """Where training ends, in one unit, so that unlike algorithms can be compared at equal cost.

    Attributes:
        steps: optimizer steps.
        prompts: rows (a pair is one); for online algorithms, prompts that completions were sampled for. Whole
            steps, and for PPO and GRPO whole rollouts, within it.
        tokens: tokens of the policy's forward passes with a gradient, padding left out; ends with the step that
            reaches it.
        seconds: of training, rollouts included; ends with the step that reaches it, and so is not repeatable to
            the bit.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    steps: Annotated[int, Gt(0)] | None = None
    prompts: Annotated[int, Gt(0)] | None = None
    tokens: Annotated[int, Gt(0)] | None = None
    seconds: Annotated[float, Gt(0)] | None = None

    @property
    def all_named(self) -> dict[str, float]:
        """Units that are set."""
        return {unit: amount for unit, amount in asdict(self).items() if amount is not None}

    @property
    def named(self) -> tuple[str, float] | None:
        """The unit and its amount; None where steps or epochs end training."""
        return next(iter(self.all_named.items()), None)


@dataclass(frozen=True)
class Replay:
    """Rows of what the model could do before, trained on beside the rest so that it is not forgotten.

    Attributes:
        share: of the loss, 0 to below 1: (1 - share) * loss + share * (minus log-likelihood of replayed completions,
            per token). As many rows of a micro-batch, at least one, come on top. SFT mixes the rows instead.
        path: file of ``prompt`` and ``completion``, or any form that ``task=preferences`` reads, whose chosen or
            desirable completions are taken; null: rows like those that the embedded base learned from.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    share: Annotated[float, Ge(0), Lt(1)] = 0.0
    path: str | None = None

    def problems(self, *, algo: str, family: str) -> list[UserError]:
        """What contradicts itself, or the algorithm's kind."""
        if self.path is not None and not self.share:
            words = "names rows of which none is replayed"
            return [UserError(words, key="train.replay.path", value=self.path, fix="train.replay.share=0.1")]
        if self.share and family == "online":
            words = f"{algo} learns from what it samples, and has no place for given completions"
            fix = "train.replay.share=0, or an offline algorithm; a KL penalty (beta) holds an online one"
            return [UserError(words, key="train.replay.share", value=self.share, fix=fix)]
        return []


USUAL_LENGTH, USUAL_COMPLETION = 1024, 256


@dataclass(frozen=True)
class Train:
    """Knobs of one training run; null means "as the preset of algorithm and adapter says".

    Attributes:
        preset: which of the algorithm's presets fills what is null: ``tiny`` for the embedded model, ``standard``
            for any other.
        learning_rate: peak learning rate.
        steps: optimizer steps; null with ``epochs`` set trains whole epochs instead.
        epochs: passes over the training rows, where ``steps`` is null.
        budget: ends training in a unit of your choice, in place of ``steps`` and ``epochs``.
        batch_size: rows (pairs, examples or completions) per optimizer step.
        micro_batch_size: rows per forward pass; ``batch_size`` must be a multiple. For KTO it changes the
            algorithm, since the KL term is estimated inside it.
        max_length: tokens of prompt and completion together, where rows are truncated; null is 1,024, or the
            model's context where that is shorter.
        max_completion_length: tokens sampled per completion (online algorithms and sampling evaluators); null is 256,
            or half of ``max_length`` where that is shorter.
        warmup_ratio: share of the steps with a rising learning rate.
        scheduler: learning-rate schedule after the warm-up.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradient clipping.
        optimizer: ``auto`` is fused AdamW; paged 8-bit AdamW for QLoRA on CUDA. ``adamw_8bit_stochastic`` trains
            weights that are stored in bf16 (``model.dtype=bfloat16``) by stochastic rounding; it needs torchao.
        precision: ``auto`` computes in bf16 on CUDA that has it, in fp32 elsewhere.
        gradient_checkpointing: recompute activations in the backward pass.
        logging_steps: steps between two points of the series.
        checkpoint_steps: steps between two checkpoints from which a killed trial continues; null for none.
        save: what is kept of the trained policy, as safetensors.
        replay: rows that keep what the model could do before.
        share_prefix: read a prompt once for all of its completions; ``auto`` does where it gives the same numbers.
        rollout_batch: completions that an online algorithm samples at once; null: as many as 2 GiB of keys and values
            hold. It changes no sample.
        rollout: what samples them: transformers' ``hf``, or ``vllm`` in the trial's process, on its GPU.
        vllm: what that may take.
        keep: which policy that is: the ``last``, or the one at the ``best`` point of the curve (``eval.at``), by the
            validation split.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    preset: str = "standard"
    learning_rate: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None
    epochs: Annotated[float, Gt(0)] | None = None
    budget: Budget = field(default_factory=Budget)
    batch_size: Annotated[int, Gt(0)] | None = None
    micro_batch_size: Annotated[int, Gt(0)] | None = None
    max_length: Annotated[int, Gt(1)] = USUAL_LENGTH
    max_completion_length: Annotated[int, Gt(0)] = USUAL_COMPLETION
    warmup_ratio: Annotated[float, Ge(0), Le(1)] = 0.1
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: Annotated[float, Ge(0)] = 0.0
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    optimizer: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = True
    logging_steps: Annotated[int, Gt(0)] = 10
    checkpoint_steps: Annotated[int, Gt(0)] | None = None
    save: Literal["adapter", "full", "none"] = "adapter"
    replay: Replay = unless_default(Replay())
    keep: Literal["last", "best"] = unless_default("last")
    share_prefix: Literal["auto"] | bool = unless_default("auto")
    rollout_batch: Annotated[int, Gt(0)] | None = unless_default(None)
    rollout: Literal["hf", "vllm"] = unless_default("hf")
    vllm: VLLM = unless_default(VLLM())


def with_lengths(train: Mapping[str, Any], context: int | None) -> dict[str, Any]:
    """The knobs with lengths: 1,024 tokens or the model's ``context``, and of these 256 or a half for a completion."""
    filled = dict(train)
    if filled.get("max_length") is None:
        filled["max_length"] = min(USUAL_LENGTH, context or USUAL_LENGTH)
    if filled.get("max_completion_length") is None and isinstance(filled["max_length"], int):
        filled["max_completion_length"] = max(1, min(USUAL_COMPLETION, filled["max_length"] // 2))
    return filled


def sees_half(train: Train, rows: int) -> bool:
    """Whether training takes at least half of ``rows`` rows; where tokens or seconds end it, it is taken to."""
    assert train.batch_size
    steps = train.steps or train.budget.steps
    if steps is not None:
        return 2 * steps * train.batch_size >= rows
    if train.budget.prompts is not None:
        return 2 * train.budget.prompts >= rows
    return train.epochs is None or 2 * train.epochs >= 1


def fill_from_preset(
    train: Mapping[str, Any],
    table: Mapping[str, Mapping[str, Mapping[str, Any]]],
    adapter: str,
    processes: int = 1,
) -> dict[str, Any]:
    """The training knobs with nulls filled from ``table[train.preset][adapter]``.

    A ``steps`` set by the user silences the preset's ``epochs`` and the other way round, a ``budget`` both; a
    micro-batch that neither names is all that one of ``processes`` takes of a batch.
    """
    filled = dict(train)
    column = table.get(train["preset"], {}).get(adapter, {})
    budget = filled.get("budget") or {}
    asked_for_length = any(v is not None for v in (filled.get("steps"), filled.get("epochs"), *budget.values()))
    for key, value in column.items():
        if key in ("steps", "epochs") and asked_for_length:
            continue
        if filled.get(key) is None:
            filled[key] = value
    batch, micro = filled.get("batch_size"), filled.get("micro_batch_size")
    share = batch // processes if isinstance(batch, int) and batch % processes == 0 else batch
    if micro is None:
        filled["micro_batch_size"] = share
    elif train.get("micro_batch_size") is None and isinstance(share, int) and share > 0 and isinstance(micro, int):
        # the preset's, which suits its own batch: the largest that divides the user's
        filled["micro_batch_size"] = next(size for size in range(min(micro, share), 0, -1) if share % size == 0)
    return filled


def train_problems(train: Train, algo: str, presets: Collection[str] = (), kind: str = "lora") -> list[UserError]:
    """What is missing or contradicts itself in the knobs.

    Args:
        train: as filled.
        algo: the algorithm's name.
        presets: those that it has.
        kind: of adapters (``Adapter.preset``), by which a preset has its values.
    """
    errors: list[UserError] = []
    if presets and train.preset not in presets and None in (train.learning_rate, train.batch_size):
        rule = (
            f"algo={algo} has no preset of this name ({', '.join(sorted(presets))}), and leaves training's values to it"
        )
        fix = f"train.preset={min(presets)}, or write algo.presets.{train.preset}"
        return [Mismatch(rule, key="train.preset", value=train.preset, fix=fix)]
    for key, example in (("learning_rate", "1e-6"), ("batch_size", "16")):
        if getattr(train, key) is None:
            errors.append(
                UserError(
                    f"the preset {train.preset!r} of algo={algo} gives no value for adapters of the kind {kind!r}",
                    key=f"train.{key}",
                    value=None,
                    fix=f"train.{key}={example}, or add it to algo.presets.{train.preset}.{kind}",
                )
            )
    named = train.budget.all_named
    if len(named) > 1:
        errors.append(
            UserError(
                "training can end in one unit only",
                key="train.budget",
                value=", ".join(named),
                fix=f"train.budget.{min(named)}=null",
            )
        )
    if named and (train.steps or train.epochs):
        other = "steps" if train.steps else "epochs"
        errors.append(
            UserError(
                f"a budget ends training, and so does train.{other}={getattr(train, other):g}",
                key=f"train.budget.{min(named)}",
                value=named[min(named)],
                fix=f"leave one of them out (train.{other}=null)",
            )
        )
    if train.steps and train.epochs:
        errors.append(
            UserError(
                f"training ends after train.steps={train.steps}, so epochs say nothing",
                key="train.epochs",
                value=train.epochs,
                fix="leave one of them out (train.epochs=null or train.steps=null)",
            )
        )
    if train.steps is None and train.epochs is None and not named:
        errors.append(
            UserError(
                "the length of training is not set",
                key="train.steps",
                fix="train.steps=100, train.epochs=1 or train.budget.tokens=1000000",
            )
        )
    if train.batch_size and train.micro_batch_size and train.batch_size % train.micro_batch_size:
        errors.append(
            UserError(
                f"must divide train.batch_size ({train.batch_size})",
                key="train.micro_batch_size",
                value=train.micro_batch_size,
                fix=f"train.micro_batch_size={train.batch_size}",
            )
        )
    return errors
