"""The stage that makes the embedded base model: supervised fine-tuning of a fresh small Llama."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.store.cache import Cache, Entry
from harness.tasks.base import Task

if TYPE_CHECKING:
    from harness.models.tiny import Tiny


def embedded_base(
    model: Tiny, task: Task, cache: Cache, *, threads: int, progress: Callable[[int, int], object]
) -> Entry:
    """The folder of the trained base, from the cache or built now.

    Args:
        model: shape and recipe.
        task: gives the rows (``base_rows``).
        cache: where the result is kept.
        threads: part of the inputs, since weights differ in bits between thread counts.
        progress: called with step and total while building.
    """
    inputs = {
        "recipe": model.recipe_digest(task),
        "model": dict(model.stage),
        "task": task.base_recipe(),
        "threads": threads,
        "machine": _machine(),
    }
    from harness.config.identity import digest

    return cache.fetch("sft", digest(inputs), lambda folder: build(model, task, folder, progress), inputs=inputs)


def build(model: Tiny, task: Task, folder: Path, progress: Callable[[int, int], object]) -> Mapping[str, Any]:
    """Train the base into ``folder``; returns its last loss, and how many steps and rows it took."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from harness.models import prefixes

    tokenizer = model.tokenizer(None)
    rows = task.base_rows(model.steps * model.batch_size)
    # One token per character: encoding the parts apart, in one batch, gives what encoding the whole would.
    prompts = tokenizer([r["prompt"] for r in rows])["input_ids"]
    completions = [ids + [tokenizer.eos_token_id] for ids in tokenizer([r["completion"] for r in rows])["input_ids"]]
    ids = [(p + c)[: model.context] for p, c in zip(prompts, completions, strict=True)]
    # Only the answer is learned from, of rows that reach it.
    labels = [[-100] * min(len(p), len(row)) + row[len(p) :] for p, row in zip(prompts, ids, strict=True)]
    kept = [k for k, row in enumerate(ids) if len(row) > len(prompts[k])]
    dataset = Dataset.from_dict({"input_ids": [ids[k] for k in kept], "labels": [labels[k] for k in kept]})

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)

    fresh = model.fresh()
    prefixes.share(fresh, True)  # rows are short and their lengths differ: half of a padded batch is padding
    with tempfile.TemporaryDirectory() as scratch:
        trainer: Any = SFTTrainer(
            model=fresh,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=model.steps,
                per_device_train_batch_size=model.batch_size,
                learning_rate=model.learning_rate,
                warmup_steps=model.warmup_ratio,
                lr_scheduler_type="linear",
                weight_decay=0.01,
                adam_beta2=0.95,
                dataset_kwargs={"skip_prepare_dataset": True},  # row by row it takes seconds
                train_sampling_strategy="sequential",  # the rows are a curriculum
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,  # one recipe, one place: the same base on machines with and without a GPU
                seed=model.seed,
                logging_steps=max(1, model.steps // 20),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                optim="adamw_torch_fused",
                dataloader_pin_memory=False,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Progress()],
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {"train/loss": losses[-1], "steps": model.steps, "rows": len(rows)}


def _machine() -> str:
    """What changes a floating-point sum besides the code: the processor's vector instructions."""
    import torch

    return torch.backends.cpu.get_cpu_capability()
