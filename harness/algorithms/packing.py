"""Packing: the rows of an optimizer step in as few sequences as hold them. Imports torch.

A step takes the rows that it would take anyway, and its loss is their mean over tokens: packing saves padding and
changes no gradient. (Where a batch counts packed sequences instead, as in other trainers, a step takes as many rows as
happen to fit, and a learning rate means something else on short rows than on long ones.) Rows stay whole, and none sees
another: positions start anew with each, from which transformers makes the mask.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from harness.algorithms.sft import IGNORED
from harness.base.errors import UserError

APART = 1e-2
"""Of the spread of a row's logits, what they may change by where another row changes; masked attention gives 0."""


class Packed(Dataset):
    """Micro-batches in place of rows, for a trainer that takes one of them at a time, in their order.

    Each pass takes the same steps in an order of its own; a step that is short of rows comes last.

    Attributes:
        rows: in all micro-batches together.
        accumulation: micro-batches of a step; the last one may have fewer.
    """

    def __init__(self, rows: Any, *, batch_size: int, micro_batch_size: int, limit: int, seed: int):
        """Deal out ``rows`` (``input_ids`` and ``labels``, each at most ``limit`` tokens) by ``seed``.

        Args:
            rows: a ``datasets.Dataset``.
            batch_size: rows of a step.
            micro_batch_size: sequences of a micro-batch, at most.
            limit: tokens of a sequence, at most.
            seed: of the order.
        """
        self.rows, self._seed = len(rows), seed
        self._ids, self._labels = rows["input_ids"], rows["labels"]
        lengths = [len(ids) for ids in self._ids]
        order = list(range(len(lengths)))
        random.Random(f"packing-{seed}").shuffle(order)
        steps = [best_fit(order[i : i + batch_size], lengths, limit) for i in range(0, len(order), batch_size)]
        self.accumulation = max(math.ceil(len(sequences) / micro_batch_size) for sequences in steps)
        steps = [dealt(sequences, lengths, self.accumulation) for sequences in steps]
        whole = len(order) // batch_size
        self._whole, self._short = steps[:whole], steps[whole:]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Put the steps into the order of a pass."""
        whole = list(self._whole)
        random.Random(f"packing-{self._seed}-{epoch}").shuffle(whole)
        self._items = [micro for step in (*whole, *self._short) for micro in step]

    def __len__(self) -> int:
        """Micro-batches of a pass."""
        return len(self._items)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """A micro-batch: for each sequence its tokens, their labels, and the lengths of the rows in it."""
        found: dict[str, Any] = {"input_ids": [], "labels": [], "seq_lengths": []}
        for sequence in self._items[place]:
            found["input_ids"].append([token for row in sequence for token in self._ids[row]])
            # what comes first in a row is not to be told from the row before it
            found["labels"].append([label for row in sequence for label in (IGNORED, *self._labels[row][1:])])
            found["seq_lengths"].append([len(self._ids[row]) for row in sequence])
        return found


def best_fit(rows: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Sequences of rows: each row, the longest first, goes where it leaves least room (best-fit decreasing)."""
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        fitting = [i for i, left in enumerate(room) if left >= lengths[row]]
        if fitting:
            place = min(fitting, key=lambda i: room[i])
            sequences[place].append(row)
            room[place] -= lengths[row]
        else:
            sequences.append([row])
            room.append(limit - lengths[row])
    return sequences


def dealt(sequences: Sequence[Sequence[int]], lengths: Sequence[int], count: int) -> list[list[list[int]]]:
    """Sequences in ``count`` micro-batches of like size, or in as many as there are rows where those are fewer."""
    parts = [list(sequence) for sequence in sequences]
    while len(parts) < count and (longest := max(parts, key=len)) and len(longest) > 1:
        parts.append([longest.pop()])
    count = min(count, len(parts))
    micro: list[list[list[int]]] = [[] for _ in range(count)]
    for place, part in enumerate(sorted(parts, key=lambda part: -sum(lengths[row] for row in part))):
        turn, at = divmod(place, count)
        micro[at if turn % 2 == 0 else count - 1 - at].append(part)  # there and back, so that none gets all the longest
    return micro


class Collator:
    """A micro-batch as tensors, each (sequences, longest); no mask, since positions say where a row begins.

    Args:
        pad: token that fills a sequence; each is a row of its own.
        flat: one sequence without padding, (1, tokens): flash attention reads the rows' bounds from no other.
    """

    def __init__(self, pad: int, *, flat: bool):
        """Nothing yet."""
        self.pad, self.flat = pad, flat

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Of one item."""
        (item,) = items
        positions = [[i for length in row for i in range(length)] for row in item["seq_lengths"]]
        columns = {"input_ids": (item["input_ids"], self.pad), "labels": (item["labels"], IGNORED)}
        columns["position_ids"] = (positions, 0)
        if self.flat:
            return {name: torch.tensor([[v for row in rows for v in row]]) for name, (rows, _) in columns.items()}
        width = max(map(len, positions))
        return {
            name: torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
            for name, (rows, fill) in columns.items()
        }


def tokens_of(position_ids: Tensor) -> Tensor:
    """Tokens of rows in packed sequences, padding left out: it has position 0 alone, and a row has one 0 and one 1."""
    return (position_ids > 0).sum() + (position_ids == 1).sum()


def check_apart(model: Any, data: Packed, collator: Collator) -> None:
    """Whether a row's logits stay as they are where the row before it in its sequence is another one.

    Raises:
        UserError: they do not: a model that takes no positions, or that carries a state along.
    """
    ids = [item["input_ids"] for item in (data[0], data[len(data) - 1])]
    first, second = (sequences[0][:32] for sequences in ids)
    if len(first) < 2 or len(second) < 2:
        return
    vocabulary = model.config.get_text_config().vocab_size
    other = [(token + 1) % vocabulary for token in first]
    lengths, was_training = [len(first), len(second)], model.training
    found = []
    model.eval()
    with torch.no_grad():
        for before in (first, other):
            tokens = [*before, *second]
            batch = collator([{"input_ids": [tokens], "labels": [tokens], "seq_lengths": [lengths]}])
            batch = {name: column.to(model.device) for name, column in batch.items() if name != "labels"}
            found.append(model(**batch, use_cache=False).logits[0, -len(second) :].float())
    model.train(was_training)
    if float((found[0] - found[1]).abs().max()) > APART * float(found[0].std()):
        raise UserError(
            "rows that share a sequence are to stay apart, and this model mixes them (it takes no positions, or "
            "carries a state from row to row)",
            key="algo.packing",
            value=True,
            fix="algo.packing=false",
        )
