"""What the stages that train a classification model on the base share: their inputs, the loop, and what is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.config import closure, identity
from harness.models import prefixes
from harness.models.classifier import head_name, load_head, save_head
from harness.models.precision import STOCHASTIC, optimizer_arguments, without_autocast
from harness.rewards.learned import Recipe
from harness.tasks.base import TaskData

BINS = 10


@dataclass(frozen=True)
class StageGround:
    """What a stage is built from.

    Attributes:
        load: the base, 4-bit where the adapter asks for it.
        base_key: identity of the base's weights, and of how they are read.
        rows: gives rows in the form the model wants.
        precision: ``fp32`` or ``bf16``.
        dtype: of the weights that ``load`` gives.
        frozen: torch's, in which the trained weights are kept and score.
        progress: called with step and total while building.
    """

    load: Callable[[], Any]
    base_key: Mapping[str, Any]
    data: TaskData
    tokenizer: Any
    rows: Callable[[Any], list[dict[str, Any]]]
    device: str
    precision: str
    dtype: str
    frozen: Any
    chat: bool
    progress: Callable[[int, int], object]


def inputs_of(spec: Recipe, ground: StageGround, **data: str) -> dict[str, Any]:
    """Everything that can change what a stage yields; ``data`` are digests of the rows that it learns from."""
    return {
        "recipe": spec.key,
        "spec": asdict(spec),
        "base": ground.base_key,
        **data,
        "code": closure.code_digest(code_of(spec)),
        "versions": identity.library_versions(),
        "device": ground.device,
        "precision": ground.precision,
        "dtype": ground.dtype,
        "frozen": str(ground.frozen),
        "chat": ground.chat,
        "threads": torch.get_num_threads(),
    }


def code_of(spec: Recipe) -> dict[str, Path]:
    """The code that can change a model: its stage's module, how the base is loaded, and its adapter."""
    return closure.closure([f"harness.stages.{spec.stage}", "harness.models", *identity.modules_of([spec.adapter])])


def arguments(spec: Recipe, ground: StageGround) -> dict[str, Any]:
    """Arguments of transformers' own, and TRL's, for one pass through the recipe."""
    in_bf16 = spec.adapter.peft_config() is None and ground.dtype == "torch.bfloat16"
    return dict(
        max_steps=spec.steps,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        warmup_steps=0.1 if spec.steps > 1 else 0,  # the share is rounded up: the only step would be idle
        lr_scheduler_type="linear",
        bf16=ground.precision == "bf16",
        use_cpu=ground.device == "cpu",
        gradient_checkpointing=False,
        seed=spec.seed,
        logging_steps=max(1, spec.steps // 20),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **optimizer_arguments(STOCHASTIC if in_bf16 else "adamw_torch_fused"),
        dataloader_pin_memory=False,
    )


def adapter_config(spec: Recipe, shell: Any, task_type: str) -> Any:
    """The adapter's configuration for a classification model whose head is trained too; None without an adapter."""
    config: Any = spec.adapter.peft_config()
    if config is not None:
        config.task_type, config.modules_to_save = task_type, [head_name(shell)]
    return config


def fitted(
    spec: Recipe, ground: StageGround, folder: Path, shell: Any, pad: int, made: Callable[[str, list[Any]], Any]
) -> tuple[Any, float]:
    """Train, and keep in ``folder`` what was trained.

    Args:
        spec: the recipe.
        ground: what it is built from.
        folder: takes weights, head and tokenizer.
        shell: the classification model.
        pad: id of the token that fills rows.
        made: the trainer, of a folder for what it leaves behind, and callbacks.

    Returns:
        the model as it scores, and its last loss.
    """
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ground.progress(state.global_step, state.max_steps)

    whole = spec.adapter.peft_config() is None
    with tempfile.TemporaryDirectory() as scratch:
        trainer = made(scratch, [Progress()])
        shell.config.get_text_config().pad_token_id = pad  # a sequence's score is read at the last other token
        for parameter in trainer.model.parameters():
            if parameter.requires_grad and not whole:
                parameter.data = parameter.data.float()
        with prefixes.together(shell):
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trained = without_autocast(trainer.accelerator.unwrap_model(trainer.model)).eval()
        if whole:  # what is kept is what scores, here and in every trial
            save_head(trained, folder)
            getattr(trained.to(ground.frozen), head_name(trained)).float()
            load_head(trained, folder)
        trained.save_pretrained(folder)
        ground.tokenizer.save_pretrained(folder)
    return trained, losses[-1]
