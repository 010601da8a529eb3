"""Sampling in chunks: a prompt is read once for all of its samples, and a row that has ended leaves the batch.

What ``generate`` does for a rollout, without what a rollout does not need. A sample's draws are its own
(``models.draws``), so that neither the chunk nor who has left changes it. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.models.roomy_cache import with_room

Draw = Callable[[Tensor, Tensor, int], Tensor]
"""Logits (rows, vocabulary), which rows of all they are of, and the token's number -> the tokens (rows)."""
LEAVE = 8
"""One row in so many must have ended before the cache is copied without those that have."""


def plainly_prepared(model: Any) -> bool:
    """Whether ``generate`` prepares each token of this architecture as it does for most.

    Phi-3 reads everything anew where a text outgrows the first of its two kinds of positions: what is in its cache by
    then has the other kind.
    """
    from transformers import GenerationMixin

    usual: Any = GenerationMixin
    return getattr(type(model), "prepare_inputs_for_generation", None) is usual.prepare_inputs_for_generation


@torch.no_grad()
def sampled(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    draw: Draw,
    *,
    tokens: int,
    ends: Sequence[int],
    pad: int,
    chunk: int,
    at_least: int = 0,
) -> Tensor:
    """Completions of prompts.

    Args:
        model: a causal language model; a batch is a plain one to it (``prefixes``).
        ids: of prompts (B, P), padded on the left.
        mask: 1 for tokens, 0 for padding.
        draw: chooses a token for each row.
        tokens: of a completion at most.
        ends: tokens that end one.
        pad: after the end.
        chunk: rows at once.
        at_least: tokens before the first that may end one.

    Returns:
        Tokens (B, T), T the longest.
    """
    rows = torch.arange(ids.shape[0], device=ids.device)
    found = torch.full((ids.shape[0], tokens), pad, dtype=ids.dtype, device=ids.device)
    longest = 0
    for part in rows.split(max(1, chunk)):
        longest = max(longest, _chunk(model, ids, mask, part, draw, found, ends, at_least))
    return found[:, :longest]


def _chunk(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    rows: Tensor,
    draw: Draw,
    found: Tensor,
    ends: Sequence[int],
    at_least: int,
) -> int:
    """Fill ``found`` for these rows; returns the tokens of the longest completion."""
    from transformers import DynamicCache

    ids, mask = ids[rows], mask[rows]
    start = int(mask.any(dim=0).nonzero()[0])  # what is padding in all of them
    ids, mask = ids[:, start:], mask[:, start:]
    alike: dict[tuple[int, ...], int] = {}
    which = [alike.setdefault((*row, *marks), len(alike)) for row, marks in zip(
        (ids * mask).tolist(), mask.tolist(), strict=True
    )]  # fmt: skip
    firsts = torch.tensor([which.index(k) for k in range(len(alike))], device=ids.device)
    cache = DynamicCache(config=model.config)
    positions = (mask[firsts].cumsum(1) - 1).clamp(min=0)
    logits = _next(model, ids[firsts], mask[firsts], positions, cache)
    if len(alike) < len(which):
        chosen = torch.tensor(which, device=ids.device)
        cache.batch_select_indices(chosen)
        logits = logits[chosen]
    with_room(cache, found.shape[1] - 1)
    stops, place = torch.tensor(list(ends), dtype=ids.dtype, device=ids.device), mask.sum(1)
    open_ = torch.ones(len(rows), dtype=torch.bool, device=ids.device)
    for number in range(found.shape[1]):
        if number < at_least and len(stops):
            logits = logits.index_fill(1, stops, -torch.inf)
        token = draw(logits, rows, number)
        found[rows[open_], number] = token[open_]
        open_ = open_ & ~torch.isin(token, stops)
        if number + 1 == found.shape[1] or not bool(open_.any()):
            return number + 1
        if int((~open_).sum()) * LEAVE >= len(rows):
            kept = open_.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, token, mask, place, open_ = rows[kept], token[kept], mask[kept], place[kept], open_[kept]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = _next(model, token[:, None].to(ids.dtype), mask, place[:, None], cache)
        place = place + 1
    return found.shape[1]


def _next(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    return out.logits[:, -1]
