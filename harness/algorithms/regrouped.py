"""Micro-batches of a rollout, put together anew so that a prompt is read once for more of its rows. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def groups_together(step: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The micro-batches of one optimizer step, whose gradient is one sum, with rows of one prompt beside each other.

    TRL shuffles them apart, and a prompt is read once only for rows of one micro-batch.
    """
    rows = step[0]["prompt_ids"].shape[0]

    def whole(name: str) -> Any:
        parts = [batch[name] for batch in step]
        if isinstance(parts[0], Tensor) and parts[0].ndim and parts[0].shape[0] == rows:
            return torch.cat(parts)
        return [item for part in parts for item in part] if isinstance(parts[0], list) else parts[0]

    together = {name: whole(name) for name in step[0]}
    first: dict[tuple[int, ...], int] = {}
    marked = (together["prompt_ids"] * together["prompt_mask"]).tolist()
    order = sorted(range(len(marked)), key=lambda i: first.setdefault(tuple(marked[i]), len(first)))
    chosen = torch.tensor(order, device=together["prompt_ids"].device)

    def ordered(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == len(order):
            return value[chosen]
        return [value[i] for i in order] if isinstance(value, list) else value

    found = {name: ordered(value) for name, value in together.items()}
    return [{name: part(value, i * rows, rows, len(order)) for name, value in found.items()} for i in range(len(step))]


def part(value: Any, start: int, size: int, rows: int) -> Any:
    """``size`` rows of what has so many ``rows``; anything else as it is."""
    of_rows = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim and value.shape[0] == rows)
    return value[start : start + size] if of_rows else value
