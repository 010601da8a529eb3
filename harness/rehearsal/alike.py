"""Which rows begin alike, and how much of them is scored, in a world where tensors have no data. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from harness.base.replacing import replaced
from harness.models.prefixes import Prefixes
from harness.rehearsal.rows import KINDS, scored
from harness.trial.assemble import Setup


class Foreseen:
    """What a batch of a shape would hold.

    Of an offline algorithm the batch as it was before its tensors lost their data, unless rows were made as long as
    they may be: then nothing is known of their prompts, and each is taken to be read by itself. Of an online one,
    groups of completions of full length.

    Args:
        setup: the trial.
        fill: whether rows are as long as they may be.
    """

    def __init__(self, setup: Setup, *, fill: bool):
        """Nothing is known yet."""
        self._filled, fill = fill, fill or setup.algo.packs
        self._scored: dict[tuple[int, ...], int] = {}
        self._online = setup.algo.family == "online"
        self._group = getattr(setup.algo, "num_generations", 1)
        self._completion, self._fill = setup.train.max_completion_length, fill
        self._known: dict[tuple[int, ...], list[np.ndarray]] = {}

    def remember(self, batch: Any) -> None:
        """Of a real batch, the rows of token ids and the number of scored tokens, by their shapes."""
        if self._filled or self._online or not isinstance(batch, Mapping):
            return
        for kind in KINDS:
            if (found := scored(batch, kind)) is not None:
                shape = tuple(found.shape)
                self._scored[shape] = max(self._scored.get(shape, 0), int(found.sum()))  # any micro-batch may have it
            if self._fill:
                continue
            ids, mask = batch.get(f"{kind}input_ids"), batch.get(f"{kind}attention_mask")
            if isinstance(ids, Tensor) and isinstance(mask, Tensor):
                pairs = zip(ids.numpy(), mask.bool().numpy(), strict=True)
                self._known[tuple(ids.shape)] = [row[kept] for row, kept in pairs]

    def scored(self, shape: tuple[int, ...]) -> int | None:
        """How many positions a mask of this shape lets through to the output head; None where that is not known."""
        if not self._online:
            return self._scored.get(shape)
        return shape[0] * min(shape[1], self._completion) if len(shape) == 2 else None

    def __call__(self, shape: tuple[int, ...]) -> list[np.ndarray] | None:
        """The rows of a batch of this shape; None where they are not known."""
        prompt = shape[1] - self._completion
        if not self._online or prompt < 1:
            return self._known.get(shape)
        return [
            np.concatenate([np.full(prompt, i // self._group), np.full(self._completion, shape[0] + i)])
            for i in range(shape[0])
        ]


@contextmanager
def known(rows: Sequence[Sequence[int]], *, fill: bool) -> Iterator[None]:
    """Within it a batch without data of as many rows holds these token ids; nothing is known of filled ones."""
    taken = [np.asarray(row) for row in rows]

    def foreseen(shape: tuple[int, ...]) -> list[np.ndarray] | None:
        return None if fill or shape != (len(taken), max(map(len, taken))) else taken

    with replaced(Prefixes, "foreseen", staticmethod(foreseen)):
        yield


@contextmanager
def alike_by(foreseen: Foreseen) -> Iterator[None]:
    """Within it every body that shares beginnings asks ``foreseen`` where tensors have no data."""
    with replaced(Prefixes, "foreseen", staticmethod(foreseen)):
        yield
