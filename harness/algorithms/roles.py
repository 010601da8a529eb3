"""Which weights are resident for which role, and what they weigh. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.algorithms.sharding import local

ORDER = ("policy", "reference", "reward", "critic")
"""A storage that several roles share is booked on the first of them."""


def tensors_of(model: Any) -> list[Tensor]:
    """Every tensor that a model holds: parameters, buffers, and the constants of 4-bit weights.

    Adapters other than the policy's (``default``) are other roles' and left out.
    """
    others = [f".{name}." for name in getattr(model, "peft_config", {}) if name != "default"]
    found: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not any(other in f".{name}." for other in others):
            found.append(parameter)
            found += _quantization_constants(parameter)
    return [*found, *model.buffers()]


def role_bytes(roles: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """Bytes of the storages that each role adds to those before it in ``ORDER``; 0 for one that shares all."""
    seen: set[tuple[str, int]] = set()
    added: dict[str, int] = {}
    for role in sorted(roles, key=ORDER.index):
        added[role] = 0
        for tensor in roles[role]:
            storage = local(tensor).untyped_storage()
            identity = (str(tensor.device), storage.data_ptr())
            if identity not in seen:
                seen.add(identity)
                added[role] += storage.nbytes()
    return added


def _quantization_constants(parameter: Any) -> Iterator[Tensor]:
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield from (t for t in (state.absmax, state.code, state.offset) if isinstance(t, torch.Tensor))
        state = getattr(state, "state2", None)
