"""The trainer arguments that all algorithms share, from the harness's knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.algorithms.base import TrainJob
from harness.config.train import UNKNOWN_STEPS, Train
from harness.models.adapters import Adapter
from harness.models.precision import optimizer_arguments


def common_arguments(job: TrainJob, *, joint: bool = False) -> dict[str, Any]:
    """Keyword arguments for any TRL config; with ``joint`` several processes split each micro-batch among them.

    The trainer reports to nobody and draws no progress bar: a callback journals what it logs.
    """
    train = job.train
    assert train.batch_size and train.micro_batch_size and train.learning_rate
    micro = train.micro_batch_size // job.world.size if joint else train.micro_batch_size
    arguments: dict[str, Any] = {
        "output_dir": str(job.output_dir),
        "seed": job.seed,
        "data_seed": job.seed,
        "learning_rate": train.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job.world.accumulation(train.batch_size, micro),
        "warmup_steps": train.warmup_ratio if train.warmup_ratio < 1 else 0.99,
        "lr_scheduler_type": train.scheduler,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        **optimizer_arguments(optimizer_name(train, job.adapter, job.device, sharded=job.sharded)),
        "bf16": job.precision == "bf16",
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": train.gradient_checkpointing,
        "logging_steps": train.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is no number is to be seen, not left out of the mean
        "save_strategy": "steps" if train.checkpoint_steps else "no",
        "save_total_limit": None,  # the one before is deleted once this one is complete (``store.checkpoints``)
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device == "cuda",
        "dataloader_num_workers": 0,
    }
    if job.world.size > 1:
        arguments |= {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}
    if train.checkpoint_steps:
        arguments["save_steps"] = train.checkpoint_steps
    steps = train.steps or train.budget.steps
    if steps is not None:
        arguments["max_steps"] = steps
    elif train.budget.named:
        arguments["max_steps"] = UNKNOWN_STEPS  # the meter knows better
    else:
        arguments["num_train_epochs"] = train.epochs
    return arguments


def optimizer_name(train: Train, adapter: Adapter, device: str, *, sharded: bool = False) -> str:
    """``auto`` is fused AdamW, or paged 8-bit AdamW for QLoRA where CUDA exists and the policy is in one piece."""
    if train.optimizer != "auto":
        return train.optimizer
    if device == "cuda" and adapter.paged_optimizer and not sharded:
        return "paged_adamw_8bit"
    return "adamw_torch_fused"


def to_dataset(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """Rows as an in-memory ``datasets.Dataset`` with the named columns, in order."""
    from datasets import Dataset

    return Dataset.from_list([{c: row[c] for c in columns} for row in rows])


def tokenized_pairs(job: TrainJob) -> Any:
    """The training pairs as token ids; those whose prompt alone fills the length limit are left out, as TRL does."""
    from harness.tasks.conversation import encode_pairs

    return _whole(job, encode_pairs(job.tokenizer, job.rows(job.data.train_pairs)))


def tokenized_completions(job: TrainJob, rows: Sequence[Mapping[str, Any]], *, bare: bool = False) -> Any:
    """The same of ``prompt, completion`` rows; their other fields stay.

    Args:
        job: whose tokenizer and limits.
        rows: to encode.
        bare: without what stands before the policy's prompts.
    """
    from harness.tasks.conversation import encode_completions

    others = {k: [row[k] for row in rows] for k in rows[0] if k not in ("prompt", "completion")}
    render = (job.bare or job.rows) if bare else job.rows
    return _whole(job, {**encode_completions(job.tokenizer, render(rows)), **others})


def _whole(job: TrainJob, columns: Mapping[str, Sequence[Any]]) -> Any:
    from datasets import Dataset

    kept = [i for i, ids in enumerate(columns["prompt_ids"]) if len(ids) < job.train.max_length]
    return Dataset.from_dict({name: [column[i] for i in kept] for name, column in columns.items()})
