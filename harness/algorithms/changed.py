"""Whether training changed any weight at all. Imports torch.

It does not where every learning rate was 0, where no gradient arrived, and where a 16-bit weight is so much larger than
its update that the sum rounds to what it was (7 bits of mantissa in bf16: an update below 1/256 of the weight).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.algorithms.sharding import whole

LOOKED_AT = 256
"""Numbers of each trained tensor, spread over it."""
UNCHANGED = (
    "training changed no weight: what is judged and kept is the model that it started from (a larger "
    "train.learning_rate or more steps; train.precision=fp32 where updates are lost to rounding)"
)


class Before:
    """Some numbers of every trained tensor of a model."""

    def __init__(self, model: Any):
        """Copy them."""
        self._kept = {name: _some(p) for name, p in model.named_parameters() if p.requires_grad}

    def changed(self, model: Any) -> float:
        """Share of them, 0 to 1, that are no longer what they were."""
        now = dict(model.named_parameters())
        pairs = [(kept, _some(now[name])) for name, kept in self._kept.items()]
        looked_at = sum(kept.numel() for kept, _ in pairs)
        return sum(int((kept != found).sum()) for kept, found in pairs) / max(1, looked_at)


def _some(parameter: Tensor) -> Tensor:
    flat = whole(parameter.detach()).reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, min(LOOKED_AT, flat.numel()), device=flat.device).long()
    return flat[places].clone()
