"""The longest rows of a trial's data, and batches made as heavy as any of it. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.algorithms.sft import IGNORED
from harness.stages.reference import longest_first
from harness.tasks.base import TaskData, text_of
from harness.tasks.conversation import encode
from harness.trial.assemble import Setup
from harness.trial.data import load_replay

if TYPE_CHECKING:
    from harness.rehearsal.judging import Rows

KINDS = ("", "KL_")
"""Prefixes of the rows in a batch: KTO has mismatched ones too."""
LOOKED_AT = 300
"""Rows, longest by characters, among which the longest by tokens are looked for."""
SIDES = ("chosen", "rejected", "completion")
TEXTS = ("prompt", *SIDES)


def longest(setup: Setup, data: TaskData, tokenizer: Any, prepared: Rows) -> TaskData:
    """The rows that make the longest micro-batch, twice over, so that a shuffle cannot part them.

    Of an offline algorithm also those of which most is scored, which may be others.
    """
    count = setup.train.micro_batch_size or 1

    def tokens(row: Mapping[str, Any]) -> tuple[int, int]:
        row = prepared([row])[0]
        sides = [encode(tokenizer, row["prompt"], row[side]) for side in SIDES if side in row]
        whole = [sum(map(len, side)) for side in sides or [encode(tokenizer, row["prompt"], None)]]
        return max(whole), sum(len(completion) for _, completion in sides)

    def first(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], by: int) -> list[Mapping[str, Any]]:
        by_characters = sorted(rows, key=lambda r: -sum(len(text_of(r[k])) for k in texts if k in r))[:LOOKED_AT]
        return sorted(by_characters, key=lambda row: tokens(row)[by], reverse=True)[:count] * 2

    def top(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return first(rows, TEXTS, 0) + (first(rows, SIDES, 1) if setup.algo.family == "offline" else [])

    unpaired: list[Mapping[str, Any]] = []
    for label in (True, False):
        unpaired += top([row for row in data.train_unpaired if row["label"] is label])
    prompts, rollout = first(data.train_prompts, TEXTS, 0), setup.algo.rollout(setup.train)
    if rollout is not None:
        prompts *= math.ceil(rollout.prompts / len(prompts))
    return TaskData(train_pairs=top(data.train_pairs), train_unpaired=unpaired, train_prompts=prompts)


def longest_replayed(setup: Setup) -> list[Mapping[str, Any]]:
    """The longest rows that training replays, by characters."""
    rows = sorted(load_replay(setup), key=lambda r: -len(text_of(r["prompt"])) - len(text_of(r["completion"])))
    return rows[: setup.train.micro_batch_size or 1]


def lengthened(batch: Any, length: int | None) -> Any:
    """A batch whose (rows, tokens) tensors have ``length`` tokens, the last one repeated; rows keep unlike paddings."""
    if length is None or not isinstance(batch, Mapping):
        return batch
    wide = max((v.shape[1] for v in batch.values() if isinstance(v, Tensor) and v.ndim == 2), default=0)
    return {
        k: torch.cat([v, v[:, -1:].expand(-1, length - wide)], dim=1)
        if isinstance(v, Tensor) and v.ndim == 2 and v.shape[1] == wide
        else v
        for k, v in batch.items()
    }


def heaviest_batch(
    dataset: Any, collate: Callable[[list[Any]], dict[str, Any]], count: int, fill: int | None
) -> dict[str, Any]:
    """The longest rows of a trainer's data, with as many scored tokens as the rows have of which most is scored.

    What a body takes follows from how long rows are, and what an output head takes from how much of them is scored.

    Args:
        dataset: tokens of rows, in columns that end with ``_ids``.
        collate: rows -> a batch.
        count: rows of a micro-batch.
        fill: tokens of every row; None leaves them as they are.
    """
    batch = lengthened(collate([dataset[i] for i in longest_first(dataset)[:count]]), fill)
    single = [collate([dataset[i]]) for i in range(len(dataset))]
    for kind in KINDS:
        each = [int(found.sum()) for one in single if (found := scored(one, kind)) is not None]
        if each:
            _score(batch, kind, sum(sorted(each, reverse=True)[:count]))
    return batch


def scored(batch: Mapping[str, Any], kind: str = "") -> Tensor | None:
    """Of each token but the first whether a loss reads its probability, (rows, tokens - 1); None: no such tokens."""
    if isinstance(mask := batch.get(f"{kind}completion_mask"), Tensor):
        return mask[:, 1:] != 0
    labels = batch.get(f"{kind}labels")
    return labels[:, 1:] != IGNORED if isinstance(labels, Tensor) and labels.ndim == 2 else None


def _score(batch: dict[str, Any], kind: str, wanted: int) -> None:
    """Let ``wanted`` tokens of a batch be scored, or all there are."""
    found, ids = scored(batch, kind), batch[f"{kind}input_ids"]
    if found is None:
        return
    there = batch[f"{kind}attention_mask"][:, 1:].bool() if f"{kind}attention_mask" in batch else torch.ones_like(found)
    rows, columns = torch.nonzero(there & ~found, as_tuple=True)
    more = max(0, wanted - int(found.sum()))
    rows, columns = rows[:more], columns[:more] + 1
    if (name := f"{kind}completion_mask") in batch:
        batch[name] = batch[name].index_put((rows, columns), torch.ones((), dtype=batch[name].dtype))
    else:
        name = f"{kind}labels"
        batch[name] = batch[name].index_put((rows, columns), ids[rows, columns])


def as_packed(batch: Any) -> Any:
    """A batch in the form of one whose sequences hold two rows each, all scored: positions in place of the mask."""
    width = batch["input_ids"].shape[1]
    positions = torch.arange(width) % max(1, -(-width // 2))
    rest = {k: v for k, v in batch.items() if k != "attention_mask"} | {"labels": batch["input_ids"].clone()}
    return {**rest, "position_ids": positions.expand(batch["input_ids"].shape).contiguous()}
