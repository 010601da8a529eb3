"""The longest rows of a trial's data, and batches made as long as a limit allows. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.rehearsal.judging import Rows
from harness.tasks.base import TaskData, text_of
from harness.tasks.conversation import encode
from harness.trial.assemble import Setup
from harness.trial.data import load_replay

LOOKED_AT = 300
"""Rows, longest by characters, among which the longest by tokens are looked for."""
TEXTS = ("prompt", "chosen", "rejected", "completion")


def longest(setup: Setup, data: TaskData, tokenizer: Any, prepared: Rows) -> TaskData:
    """The rows that make the longest micro-batch, twice over, so that a shuffle cannot part them."""
    count = setup.train.micro_batch_size or 1

    def tokens(row: Mapping[str, Any]) -> int:
        row = prepared([row])[0]
        sides = [row[side] for side in ("chosen", "rejected", "completion") if side in row]
        return max(sum(map(len, encode(tokenizer, row["prompt"], side))) for side in sides or [None])

    def top(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        by_characters = sorted(rows, key=lambda r: -sum(len(text_of(r[k])) for k in TEXTS if k in r))[:LOOKED_AT]
        return sorted(by_characters, key=tokens, reverse=True)[:count] * 2

    unpaired: list[Mapping[str, Any]] = []
    for label in (True, False):
        unpaired += top([row for row in data.train_unpaired if row["label"] is label])
    prompts, rollout = top(data.train_prompts), setup.algo.rollout(setup.train)
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


def as_packed(batch: Any) -> Any:
    """A batch in the form of one whose sequences hold two rows each: positions in place of the mask."""
    width = batch["input_ids"].shape[1]
    positions = torch.arange(width) % max(1, -(-width // 2))
    rest = {k: v for k, v in batch.items() if k != "attention_mask"}
    return {**rest, "position_ids": positions.expand(batch["input_ids"].shape).contiguous()}
