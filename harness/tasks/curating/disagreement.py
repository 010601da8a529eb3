"""Rows on whose label their annotators do not agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Le

from harness.base.errors import UserError
from harness.tasks.base import Row
from harness.tasks.curating.base import RowRule, Sifted, beside, columns_beside, split_by
from harness.tasks.reading.annotators import vote_of

NAMED = re.compile(
    r"(?:annotator|rater|labeler|labeller|judge)[_-]?(?:\d+|[a-e])(?:_label|_preference)?", re.IGNORECASE
)
"""Columns that are taken for annotators' where none are named."""
ROUNDED = 0.005
"""Two of three are 0.67: a share is what its two decimals say."""


@dataclass(frozen=True)
class Disagreement(RowRule):
    """Keeps rows with whose label at least a share of their annotators agree.

    Attributes:
        share: of the annotators who gave a label; of three, 0.67 asks for two, and 1 for all.
        annotators: columns that hold each one's label; empty takes columns such as ``annotator1`` and ``annotator_2``.
        label: column of the row's label in the annotators' words; null: what most of them said.
        fewest: annotators who must have given a label; rows with fewer are left out.
    """

    place: ClassVar[int] = 40

    share: Annotated[float, Gt(0), Le(1)] = 1.0
    annotators: tuple[str, ...] = ()
    label: str | None = None
    fewest: Annotated[int, Gt(0)] = 2

    def columns(self, found: Sequence[str]) -> Sequence[str]:
        """The annotators', and that of the label."""
        names = self.annotators or tuple(name for name in found if NAMED.fullmatch(name))
        if len(set(names)) < 2:
            raise UserError(
                f"needs the labels of two annotators or more; found the columns {', '.join(found) or 'none'}",
                key="annotators",
                value=list(names),
                fix="name them: task.curate.disagreement.annotators=[annotator1,annotator2]",
            )
        return (*names, *(() if self.label is None else (self.label,)))

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """By the labels beside each row."""
        names = self.columns(columns_beside(rows))[: None if self.label is None else -1]
        return split_by(rows, [self._reason(row, names) for row in rows])

    def _reason(self, row: Row, names: Sequence[str]) -> str | None:
        votes = [said for name in names if (said := vote_of(beside(row, name))) is not None]
        if len(votes) < self.fewest:
            return f"fewer than {self.fewest} annotators gave a label"
        if self.label is not None:
            agreeing = votes.count(vote_of(beside(row, self.label)) or "")
        else:
            agreeing = Counter(votes).most_common(1)[0][1]
        if agreeing / len(votes) >= self.share - ROUNDED:
            return None
        return f"less than {self.share:g} of the annotators agree"
