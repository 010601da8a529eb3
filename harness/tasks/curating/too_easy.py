"""Pairs that the base tells apart already, by its own margin: they teach it little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.tasks.base import Row
from harness.tasks.curating.base import MarginRule, Sifted, split_by


@dataclass(frozen=True)
class TooEasy(MarginRule):
    """Leaves out pairs whose margin under the base is beyond a bar.

    A margin is log p(chosen) per token less log p(rejected) per token, in nats. The base is the model that training
    starts from, and it scores the training pairs once for all trials that ask for the same.

    Attributes:
        above: a pair with a larger margin is too easy; null: none is.
        below: a pair with a smaller margin is left out too: too hard, or its label is wrong; null: none is.
    """

    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        """There is a bar, and something between two; ``ValueError`` is what ``build()`` collects."""
        if self.above is None and self.below is None:
            raise ValueError("needs a bar in nats per token, such as task.curate.too_easy.above=0.5")
        if self.above is not None and self.below is not None and self.below >= self.above:
            raise ValueError("below must be less than above: pairs between the two stay")

    def sift_by(self, rows: Sequence[Row], margins: Sequence[float]) -> Sifted:
        """By the margins alone."""
        return split_by(rows, [self._reason(margin) for margin in margins])

    def _reason(self, margin: float) -> str | None:
        if self.above is not None and margin > self.above:
            return f"the base's margin is above {self.above:g} nats a token"
        if self.below is not None and margin < self.below:
            return f"the base's margin is below {self.below:g} nats a token"
        return None
