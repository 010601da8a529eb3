"""How rows that begin alike are laid out so that they are read once, and who sees whom in them. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORTH = 0.95
"""Of the cost of the batch as it comes, what the shared one may cost at most: laying out takes time too."""
MOST = 64
"""Rows of a group at most: the mask of a group grows with the square of its tokens."""
MOST_TOKENS = 32_768
"""Of a laid-out row: its mask has as many numbers as the square of them."""
LENGTHS = [i / 16 for i in range(17)]
"""What laid-out rows are tried to be longer than the largest group of a batch, as shares of it: twice as long at most,
since the mask of all of them grows with their length."""
PROMPT, NOBODY = -1, -1


@dataclass(frozen=True)
class Layout:
    """Rows of a batch, laid out anew; all of shape (rows, tokens) but the last.

    Attributes:
        ids: tokens; 0 where there is none.
        positions: of each token in its own sequence.
        group: of rows that begin alike; ``NOBODY`` where there is no token.
        branch: which of the group's rows a token belongs to; ``PROMPT`` for what they share.
        source: for the tokens of each original row, one after the other, their places in the flattened ``ids``.
    """

    ids: np.ndarray
    positions: np.ndarray
    group: np.ndarray
    branch: np.ndarray
    source: list[np.ndarray]


def laid_out(
    rows: Sequence[np.ndarray], *, square: float, width: int | None = None, room: int = MOST_TOKENS
) -> Layout | None:
    """The cheapest way to read rows of token ids, or None where as they come is about as good.

    Args:
        rows: token ids without padding.
        square: what attention between two tokens costs, in units of what else a token costs.
        width: tokens of a row as it comes, padding included; None for those of the longest.
        room: tokens of a laid-out row at most, but for a row that is longer by itself: some architectures keep masks of
            the length of their context.
    """
    width = max(map(len, rows), default=0) if width is None else width
    order = sorted(range(len(rows)), key=lambda i: rows[i].tolist())
    groups = _groups([rows[i] for i in order], square, room)
    sizes = [prefix + sum(len(rows[i]) - prefix for i in order[first:end]) for first, end, prefix in groups]
    bins = _packed(sizes, square, room)
    tokens = max((sum(sizes[k] for k in members) for members in bins), default=0)
    if not rows or _cost(len(bins), tokens, square) > WORTH * _cost(len(rows), width, square):
        return None
    shape = (len(bins), tokens)
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    group, branch = np.full(shape, NOBODY, dtype=np.int64), np.full(shape, PROMPT, dtype=np.int64)
    source: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(rows)
    for place, members in enumerate(bins):
        at = 0
        for k in members:
            first, end, prefix = groups[k]
            head = np.arange(at, at + prefix)
            ids[place, head], positions[place, head] = rows[order[first]][:prefix], np.arange(prefix)
            group[place, at : at + sizes[k]] = k
            at += prefix
            for number, i in enumerate(order[first:end]):
                own = np.arange(at, at + len(rows[i]) - prefix)
                ids[place, own], branch[place, own] = rows[i][prefix:], number
                positions[place, own] = np.arange(prefix, len(rows[i]))
                source[i] = place * tokens + np.concatenate([head, own])
                at += len(own)
    return Layout(ids, positions, group, branch, source)


def _groups(rows: Sequence[np.ndarray], square: float, room: int) -> list[tuple[int, int, int]]:
    """Of sorted rows, (first, end, tokens that they share) of each group, at the lowest cost of all groupings."""
    alike = [0, *(_common(a, b) for a, b in zip(rows, rows[1:], strict=False))]
    best, cut = [0.0], [0]
    for end in range(1, len(rows) + 1):
        prefix, total, found = len(rows[end - 1]), 0, (float("inf"), 0)
        for first in range(end - 1, max(-1, end - 1 - MOST), -1):
            total += len(rows[first])
            prefix = min(prefix, alike[first + 1]) if first < end - 1 else prefix
            tokens = total - (end - first - 1) * prefix
            if tokens > room and first < end - 1:
                break
            found = min(found, (best[first] + tokens + square * tokens * tokens, first))
            if not alike[first]:
                break
        best.append(found[0])
        cut.append(found[1])
    groups, end = [], len(rows)
    while end:
        first = cut[end]
        prefix = min(alike[first + 1 : end], default=len(rows[first]))
        groups.append((first, end, int(prefix)))
        end = first
    return groups[::-1]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _packed(sizes: Sequence[int], square: float, room: int) -> list[list[int]]:
    """Groups of these sizes in rows of one length, at the lowest cost: fewer and longer rows pad less and attend more.

    Each group goes into the first row with room for it, larger ones first, for each of ``LENGTHS`` lengths.
    """
    largest = max(sizes, default=0)
    order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
    best, least = [[k] for k in order], _cost(len(sizes), largest, square)
    for most in (largest + round(largest * share) for share in LENGTHS):
        if most > max(room, largest):
            break
        bins: list[list[int]] = []
        left: list[int] = []
        for k in order:
            place = next((i for i, free in enumerate(left) if free >= sizes[k]), None)
            if place is None:
                bins.append([])
                left.append(most)
                place = len(bins) - 1
            bins[place].append(k)
            left[place] -= sizes[k]
        cost = _cost(len(bins), most - min(left, default=0), square)
        if cost < least:
            best, least = bins, cost
    return best


def _cost(rows: int, tokens: int, square: float) -> float:
    """Of reading so many rows of so many tokens, in units of what a token costs but for attention."""
    return rows * (tokens + square * tokens * tokens)


def masks(layout: Layout, made: Callable[[np.ndarray], Tensor], *, dtype: Any, window: int | None) -> Tensor:
    """What is added to attention's scores, (rows, 1, tokens, tokens): 0 where a token sees another, else very little.

    Numbers and not booleans: eager attention would add a boolean mask as 0 and 1.
    """
    group, branch, positions = (made(part) for part in (layout.group, layout.branch, layout.positions))
    device = group.device
    same = group[:, :, None] == group[:, None, :]
    seen = (branch[:, None, :] == PROMPT) | (branch[:, :, None] == branch[:, None, :])
    sees = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool, device=device).tril() & same & seen
    if window is not None:
        sees &= positions[:, :, None] - positions[:, None, :] < window
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(~sees, torch.finfo(dtype).min)
    return mask[:, None]


def blocks(layout: Layout, made: Callable[[np.ndarray], Tensor], *, window: int | None) -> Any:
    """The same as ``masks`` for FlexAttention: which blocks of tokens are read, and a rule within them."""
    from torch.nn.attention.flex_attention import create_block_mask

    group, branch, positions = (made(part) for part in (layout.group, layout.branch, layout.positions))

    def sees(row: Tensor, _: Tensor, one: Tensor, other: Tensor) -> Tensor:
        alike = group[row, one] == group[row, other]
        own = (branch[row, other] == PROMPT) | (branch[row, one] == branch[row, other])
        seen = (other <= one) & alike & own
        return seen if window is None else seen & (positions[row, one] - positions[row, other] < window)

    rows, tokens = layout.ids.shape
    return create_block_mask(sees, rows, None, tokens, tokens, device=group.device)
