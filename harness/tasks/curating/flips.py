"""Pairs that were labelled both ways: whoever saw them again said the other thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.tasks.base import Row, prompt_key
from harness.tasks.curating.base import RowRule, Sifted, beside, row_key, split_by

UNDECIDED, MINORITY = "labelled both ways", "against the majority of its labels"


@dataclass(frozen=True)
class Flips(RowRule):
    """Of rows that are alike but for the label, those that it flips on.

    Attributes:
        action: ``drop`` leaves out all of them; ``majority`` keeps the label that more of them have, and none of a tie.
        annotator: column that says who labelled the row; then flips of one person count, and two who disagree do not.
            A row that does not say so stays.
    """

    place: ClassVar[int] = 50

    action: Literal["drop", "majority"] = "drop"
    annotator: str | None = None

    def columns(self, found: Sequence[str]) -> Sequence[str]:
        """The annotator's."""
        return () if self.annotator is None else (self.annotator,)

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """A pair's label is which side is chosen; a completion's is its own. Prompts have none, and all stay."""
        who = ["" if self.annotator is None else beside(row, self.annotator) for row in rows]
        people = [number if name is None else str(name) for number, name in enumerate(who)]
        of = list(zip(map(row_key, rows), people, strict=True))
        said = [_label(row) for row in rows]
        votes: dict[object, Counter[object]] = {}
        for key, label in zip(of, said, strict=True):
            votes.setdefault(key, Counter())[label] += 1
        reasons = [self._reason(votes[key], label) for key, label in zip(of, said, strict=True)]
        return split_by(rows, reasons, sum(name is None for name in who))

    def _reason(self, votes: Counter[object], label: object) -> str | None:
        if len(votes) < 2:
            return None
        (_, most), (_, next_most), *_ = votes.most_common()
        if self.action == "drop" or most == next_most:
            return UNDECIDED
        return None if votes[label] == most else MINORITY


def _label(row: Row) -> object:
    if "chosen" in row:
        return prompt_key(row["chosen"]) < prompt_key(row["rejected"])
    return bool(row["label"]) if "label" in row else None
