"""Replayed rows as a term of an offline algorithm's loss. Imports torch."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.algorithms.base import TrainJob


class Replayed:
    """Micro-batches of replayed rows, in an order drawn from the seed, by the number of the micro-batch.

    A trial that continues from a checkpoint takes the rows that it would have taken.

    Attributes:
        share: of the loss that is theirs.
    """

    def __init__(self, job: TrainJob):
        """Encode the rows; those whose prompt alone fills the length limit are left out."""
        from harness.algorithms.arguments import tokenized_completions

        assert job.train.micro_batch_size
        self.share = job.train.replay.share
        self._size = max(1, math.ceil(job.train.micro_batch_size * self.share))
        self._limit, self._pad, self._seed = job.train.max_length, job.tokenizer.pad_token_id, job.seed
        self._rows = [dict(row) for row in tokenized_completions(job, list(job.replay))]
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, number: int) -> dict[str, Tensor]:
        """The micro-batch of this number: ``input_ids``, ``attention_mask`` and ``labels``, each (rows, longest)."""
        rows = [self._row(number * self._size + i) for i in range(self._size)]
        whole = [(r["prompt_ids"] + r["completion_ids"])[: self._limit] for r in rows]
        width = max(map(len, whole))
        before = [min(len(r["prompt_ids"]), len(ids)) for r, ids in zip(rows, whole, strict=True)]
        labels = [[-100] * n + ids[n:] for n, ids in zip(before, whole, strict=True)]
        return {
            "input_ids": torch.tensor([ids + [self._pad] * (width - len(ids)) for ids in whole]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in whole]),
            "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
        }

    def _row(self, place: int) -> Mapping[str, Any]:
        """Passes over the rows follow one another, each in an order of its own."""
        turn, at = divmod(place, len(self._rows))
        if self._order[0] != turn:
            order = list(range(len(self._rows)))
            random.Random(f"replay-{self._seed}-{turn}").shuffle(order)
            self._order = turn, order
        return self._rows[self._order[1][at]]


def of(job: TrainJob) -> Replayed | None:
    """What the job replays."""
    return Replayed(job) if job.replay else None


Rows = Sequence[Mapping[str, Any]]


def mixed(rows: Rows, replayed: Rows, share: float, seed: int) -> list[Any]:
    """SFT's rows with so many replayed ones that these are ``share`` of all; some come again where they are few."""
    wanted = round(len(rows) * share / (1 - share)) if replayed else 0
    order = list(replayed)
    random.Random(f"replay-{seed}").shuffle(order)
    return [*rows, *(order[i % len(order)] for i in range(wanted))]
