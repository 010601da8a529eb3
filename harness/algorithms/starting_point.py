"""Whether an adapter is where it says before the first step: at the base, and the base when off. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.algorithms.base import TrainJob
from harness.base.errors import UserError
from harness.models.precision import computing
from harness.tasks.conversation import prompt_ids

ROWS, TOKENS = 2, 64
NEAR = 0.02
"""Nats per token: bf16 rounds two passes of one model less than a tenth of it apart; PiSSA's rest is nats away."""


@dataclass(frozen=True)
class Start:
    """How far two models are from the base before the first step: KL of the base to them, nats per token.

    Attributes:
        off: with the adapter switched off.
        on: with it.
    """

    off: float
    on: float


class Probe:
    """The base's distribution after each token of a few prompts, kept for comparison.

    Args:
        job: its base is not wrapped yet.
    """

    def __init__(self, job: TrainJob):
        """One forward pass."""
        data = job.data
        rows = (data.train_prompts or data.train_pairs or data.train_unpaired)[:ROWS]
        prompts = [{"prompt": row["prompt"]} for row in job.rows(rows)]
        self._ids = [ids[:TOKENS] for ids in prompt_ids(job.tokenizer, [p["prompt"] for p in prompts]) if ids]
        self._job = job
        self._base = self._log_probs(job.model)

    def start(self, policy: Any) -> Start:
        """Of a peft model on the base."""
        with policy.disable_adapter():
            off = self._from_base(self._log_probs(policy))
        return Start(off, self._from_base(self._log_probs(policy)))

    def _from_base(self, other: Sequence[Tensor]) -> float:
        kl = [(b.exp() * (b - o)).sum(-1).mean() for b, o in zip(self._base, other, strict=True)]
        return float(torch.stack(kl).mean()) if kl else 0.0

    @torch.no_grad()
    def _log_probs(self, model: Any) -> list[Tensor]:
        was = model.training
        model.eval()
        try:
            with computing(self._job.device, self._job.precision):
                found = [model(input_ids=torch.tensor([ids], device=self._job.device)).logits for ids in self._ids]
        finally:
            model.train(was)
        # Virtual tokens come before the real ones.
        real = zip(found, self._ids, strict=True)
        return [logits[0, -len(ids) :].float().log_softmax(-1) for logits, ids in real]


def checked(found: Start, job: TrainJob) -> None:
    """Raise where the adapter is not what it says.

    Raises:
        UserError: the reference, or the start, would be another model than the base, unsaid.
    """
    adapter = job.adapter
    if adapter.off_is_base and not found.off < NEAR:
        raise UserError(
            f"with the adapter off the model is {found.off:.3g} nats a token from the base, so it is no reference",
            key="adapter",
            value=adapter.name,
            fix="say so (off_is_base = False), or take another start of the adapter",
        )
    if adapter.starts_at_base and not found.on < NEAR:
        raise UserError(
            f"before the first step the adapter is {found.on:.3g} nats a token from the base",
            key="adapter",
            value=adapter.name,
            fix="say so (starts_at_base = False; adapter.base_at_start=false of adapter=peft), or start it at zero",
        )


__all__ = ["NEAR", "Probe", "Start", "checked"]
