"""Training knobs that every algorithm shares. The recipe that the model chooses fills what is null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True)
class Train:
    """Knobs of one training run; null means "as the recipe of algorithm and adapter says".

    Attributes:
        recipe: column set of the algorithm's recipe table: ``tiny`` for the embedded model, ``standard`` else.
        learning_rate: peak learning rate.
        steps: optimizer steps; null with ``epochs`` set trains whole epochs instead.
        epochs: passes over the training rows, where ``steps`` is null.
        batch_size: rows (pairs, examples or completions) per optimizer step.
        micro_batch_size: rows per forward pass; ``batch_size`` must be a multiple. For KTO it changes the
            algorithm, since the KL term is estimated inside it.
        max_length: tokens of prompt and completion together, where rows are truncated.
        max_completion_length: tokens sampled per completion (online algorithms and sampling evaluators).
        warmup_ratio: share of the steps with a rising learning rate.
        scheduler: learning-rate schedule after the warm-up.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradient clipping.
        optimizer: ``auto`` is fused AdamW; paged 8-bit AdamW for QLoRA on CUDA.
        precision: ``auto`` computes in bf16 on CUDA that has it, in fp32 elsewhere.
        gradient_checkpointing: recompute activations in the backward pass.
        logging_steps: steps between two points of the series.
        checkpoint_steps: steps between two checkpoints from which a killed trial continues; null for none.
        save: what is kept of the trained policy, as safetensors.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    recipe: str = "standard"
    learning_rate: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None
    epochs: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Gt(0)] | None = None
    micro_batch_size: Annotated[int, Gt(0)] | None = None
    max_length: Annotated[int, Gt(1)] = 1024
    max_completion_length: Annotated[int, Gt(0)] = 256
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


RECIPE_KEYS = ("learning_rate", "steps", "epochs", "batch_size", "micro_batch_size")


def fill_from_recipe(
    train: Mapping[str, Any], table: Mapping[str, Mapping[str, Mapping[str, Any]]], adapter: str
) -> dict[str, Any]:
    """The training knobs with nulls filled from ``table[train.recipe][adapter]``.

    A ``steps`` set by the user silences the recipe's ``epochs`` and the other way round; a micro-batch that
    neither names is the whole batch.
    """
    filled = dict(train)
    column = table.get(train["recipe"], {}).get(adapter, {})
    asked_for_length = filled.get("steps") is not None or filled.get("epochs") is not None
    for key, value in column.items():
        if key in ("steps", "epochs") and asked_for_length:
            continue
        if filled.get(key) is None:
            filled[key] = value
    if filled.get("micro_batch_size") is None:
        filled["micro_batch_size"] = filled.get("batch_size")
    return filled
