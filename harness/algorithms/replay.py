"""Replayed rows as a term of an offline algorithm's loss. Imports torch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from harness.algorithms.base import TrainJob
from harness.algorithms.sft import IGNORED, labelled
from harness.base.errors import UserError


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
        self._rows = [dict(row) for row in tokenized_completions(job, list(job.replay), bare=True)]
        if not self._rows:
            rule = f"the prompts of all its rows fill train.max_length ({self._limit} tokens)"
            fix = "a larger train.max_length, or shorter rows"
            raise UserError(rule, key="train.replay.path", value=job.train.replay.path, fix=fix)
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, number: int) -> dict[str, Tensor]:
        """The micro-batch of this number: ``input_ids``, ``attention_mask`` and ``labels``, each (rows, longest)."""
        rows = [labelled(self._row(number * self._size + i), self._limit) for i in range(self._size)]
        width = max(len(row["input_ids"]) for row in rows)

        def padded(lists: Iterable[list[int]], fill: Any) -> Tensor:
            return torch.tensor([ids + [fill] * (width - len(ids)) for ids in lists])

        return {
            "input_ids": padded((row["input_ids"] for row in rows), self._pad),
            "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
            "labels": padded((row["labels"] for row in rows), IGNORED),
        }

    def _row(self, place: int) -> dict[str, Any]:
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


def with_replayed(job: TrainJob, rows: Any) -> Any:
    """SFT's encoded rows with so many replayed ones that these are ``train.replay.share`` of all.

    Some come again where they are few.
    """
    if not job.replay:
        return rows
    from datasets import concatenate_datasets

    from harness.algorithms.arguments import tokenized_completions

    replayed, share = tokenized_completions(job, list(job.replay), bare=True), job.train.replay.share
    order = list(range(len(replayed)))
    random.Random(f"replay-{job.seed}").shuffle(order)
    wanted = round(len(rows) * share / (1 - share)) if order else 0
    return concatenate_datasets([rows, replayed.select([order[i % len(order)] for i in range(wanted)])])
