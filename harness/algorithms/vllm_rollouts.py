"""Rollouts that vLLM samples in the trial's own process, through TRL. Imports torch and trl, and vLLM where it samples.

TRL wakes the engine, gives it the policy's weights, samples, and lets it sleep, so that the update has the memory. Of
TRL's own way one thing is changed: an adapter is added to a layer's weights and the weights are then put back from a
copy, since adding and subtracting in 16 bits leaves a base that is another one after some hundred rollouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from harness.algorithms.base import TrainJob
from harness.base.errors import UserError
from harness.base.replacing import replaced
from harness.config.rollout import GB, rollout_problems_here
from harness.models.plain_lora import NAME as POLICY
from harness.tasks.conversation import prompt_ids

KEPT = f"modules_to_save.{POLICY}."
WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer|\.token_adapter|" + re.escape(KEPT))
"""What peft puts into the names of a base's weights."""


class Engine(VLLMGeneration):
    """TRL's, with another way to the weights of a policy that is an adapter on a base."""

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        yield from (weights(self.model) if hasattr(self.model, "peft_config") else super()._iter_named_params())


def weights(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """A policy's weights with its adapter in them, by the base's own names; one layer at a time is not as it was.

    Whoever iterates takes each tensor before the next. Afterwards every weight of the base has the bits it had.
    """
    layers = {name: m for name, m in policy.named_modules() if isinstance(m, BaseTunerLayer)}
    for path, layer in layers.items():
        base: Any = layer.get_base_layer()
        before = {name: p.detach().clone() for name, p in base.named_parameters()}
        layer.merge(adapter_names=[POLICY])
        try:
            yield from ((_plain(f"{path}.{name}"), p.detach()) for name, p in base.named_parameters())
        finally:
            layer.unmerge()
            for name, parameter in base.named_parameters():
                parameter.data.copy_(before[name])
    inside = tuple(f"{path}." for path in layers)
    others = [f".{name}." for name in policy.peft_config]
    for name, parameter in policy.named_parameters():
        if name.startswith(inside) or "original_module" in name:
            continue
        if any(other in f".{name}." for other in others) and KEPT not in name:
            continue  # of another role
        yield _plain(name), parameter.detach()


def _plain(name: str) -> str:
    return WRAPPERS.sub("", name)


def options(job: TrainJob, stops: Sequence[int]) -> dict[str, Any]:
    """TRL's arguments; none where transformers samples, or nobody does.

    Args:
        job: the policy, not yet wrapped by an adapter, and the knobs.
        stops: tokens that end a completion.

    Raises:
        UserError: vLLM is not there, or the GPU has less memory than it is to take.
    """
    train = job.train
    if train.rollout == "hf":
        return {}
    for problem in rollout_problems_here(train, cpu=job.device == "cpu"):
        raise problem
    wanted, room = train.vllm.bytes_for(job.model.num_parameters()), _gpu_bytes()
    if wanted >= room:
        words = f"vLLM would take {wanted / GB:.1f} GB of a GPU of {room / GB:.1f} GB, which the trainer needs too"
        fix = "train.vllm.memory_gb=…, or train.rollout=hf"
        raise UserError(words, key="train.vllm.memory_gb", value=train.vllm.memory_gb, fix=fix)
    rows = job.rows(job.data.train_prompts)
    longest = max(map(len, prompt_ids(job.tokenizer, [row["prompt"] for row in rows])), default=0)
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": True,
        "vllm_gpu_memory_utilization": wanted / room,
        "vllm_max_model_length": longest + train.max_completion_length,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": train.vllm.most_weight or 1.0,
        "generation_kwargs": {"stop_token_ids": list(stops)},
    }


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def made_here() -> AbstractContextManager[Any]:
    """Within it trainers that are made sample by ``Engine``."""
    return replaced(grpo_trainer, "VLLMGeneration", Engine)


class Apart:
    """How far what samples is from what is trained, and the weights that make up for it.

    Args:
        most: the largest weight; 0: every weight is 1.
        note: takes the points of series.
    """

    def __init__(self, most: float, note: Callable[..., None]):
        """Nothing was sampled yet."""
        self.most, self._note = most, note

    def weigh(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A rollout with the weight of each token, (B, T), and of each completion, (B,), for losses of whole ones."""
        if (sampled := batch.get("sampling_per_token_logps")) is None:
            return batch
        gap = log_ratios(batch["old_per_token_logps"], sampled, batch["completion_mask"])
        mask = batch["completion_mask"].bool()
        found = gap[mask].abs()
        whole = gap.sum(1)
        self._note(
            sampler_gap=found.mean() if found.numel() else 0.0,
            sampler_gap_max=found.max() if found.numel() else 0.0,
            sampler_ess=effective_share(whole),
        )
        return {**batch, "importance_sampling_ratio": self._weight(gap), "sampler_weights": self._weight(whole)}

    def _weight(self, logs: Tensor) -> Tensor:
        return logs.exp().clamp(max=self.most) if self.most else torch.ones_like(logs)


def log_ratios(trained: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    """Of each token log π_trainer − log π_sampler, (B, T); 0 outside ``mask``, and where the sampler told nothing."""
    return torch.nan_to_num((trained - sampled).masked_fill(mask == 0, 0.0), nan=0.0)


def effective_share(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size of weights exp(w), (B,), as a share of their number: (Σ eʷ)² / (B Σ e²ʷ)."""
    wide = log_weights.double()
    return torch.exp(2 * wide.logsumexp(0) - (2 * wide).logsumexp(0)) / len(wide)
