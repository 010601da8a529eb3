"""What a tracker recorded, and the same for a model with more layers. Pure; imports no torch.

The layers of a transformer repeat: what is alive after a given operation of a given layer is linear in the number of
layers before it and after it. So two rehearsals with few layers give, operation by operation, the figures of a
model with any number, and its peak is the largest of them. In between two layers the figures run straight from one
to the other, so the first and last of the inner layers stand for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

OWNERS = (
    "weights", "reference", "reward", "critic",
    "gradients", "optimizer", "activations", "logits", "kv_cache", "engine", "workspaces",
)  # fmt: skip
"""Whose a storage is: of the first four, their weights alone; the last are a GPU's and come to no tensor."""


@dataclass(frozen=True)
class Mark:
    """Beginning of a stretch.

    Attributes:
        phase: of the trial.
        kind: what begins (``in``, ``out``, ``back``: a layer's forward pass, its end, its backward pass).
        layer: which layer; None outside of layers.
        at: index of its first record.
    """

    phase: str
    kind: str
    layer: int | None
    at: int


@dataclass(frozen=True)
class Level:
    """A peak: bytes by owner, and where it was.

    Attributes:
        owners: owner -> bytes; they sum up to the peak.
    """

    phase: str
    kind: str
    owners: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.owners.values())


Stretch = tuple[Mark, np.ndarray]
"""A mark, and the records until the next: (operations, owners)."""


@dataclass(frozen=True)
class Timeline:
    """Bytes by owner after every operation.

    Attributes:
        marks: stretches, in order.
        records: (operations, owners).
    """

    marks: tuple[Mark, ...]
    records: np.ndarray

    def stretches(self) -> list[Stretch]:
        """Each mark with its records."""
        ends = [*(m.at for m in self.marks[1:]), len(self.records)]
        return [(mark, self.records[mark.at : end]) for mark, end in zip(self.marks, ends, strict=True)]

    def peaks(self) -> dict[str, Level]:
        """The highest level of each phase."""
        return _highest(self.stretches())


class Uneven(Exception):
    """The layers do not repeat, so nothing can be said of a model with more of them."""


def extended(few: Timeline, more: Timeline, few_layers: int, layers: int) -> dict[str, Level]:
    """Peaks by phase of a model with ``layers`` layers.

    Args:
        few: recorded with ``few_layers`` (3 or more) layers.
        more: recorded with one layer more.
        few_layers: of ``few``.
        layers: of the model.

    Raises:
        Uneven: the two do not follow the same course.
    """
    short, long = _doubled(few.stretches(), few_layers // 2), more.stretches()
    if [(m.phase, m.kind) for m, _ in short] != [(m.phase, m.kind) for m, _ in long]:
        raise Uneven("the stretches of two models with unlike numbers of layers differ by more than layers")
    factor = layers - few_layers - 1
    found = []
    for (_, before), (mark, after) in zip(short, long, strict=True):
        if len(before) != len(after):  # a loop over parameters: its highest record stands for it
            before, after = _top(before), _top(after)
        found.append((mark, after + factor * (after - before)))
    return _highest(found)


def _doubled(stretches: Sequence[Stretch], middle: int) -> list[Stretch]:
    """The same with each run of the middle layer twice, as a model with one layer more has it.

    Of the two one stands for the layer as counted from the first, the other as counted from the last.
    """
    found: list[Stretch] = []
    run: list[Stretch] = []
    for mark, rows in stretches:
        if run and (mark.layer != middle or mark.kind == run[0][0].kind):
            found += [*run, *run]
            run = []
        (run if mark.layer == middle else found).append((mark, rows))
    return [*found, *run, *run]


def _top(rows: np.ndarray) -> np.ndarray:
    return rows[rows.sum(axis=1).argmax()][None]


def _highest(stretches: Iterable[Stretch]) -> dict[str, Level]:
    best: dict[str, tuple[float, Mark, np.ndarray]] = {}
    for mark, rows in stretches:
        row = _top(rows)[0]
        total = row.sum()
        if mark.phase not in best or total > best[mark.phase][0]:
            best[mark.phase] = (total, mark, row)
    return {
        phase: Level(phase, mark.kind, {o: float(v) for o, v in zip(OWNERS, row, strict=True)})
        for phase, (_, mark, row) in best.items()
    }
