"""Pairs of two bad completions: what is chosen there is only less bad."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.base.errors import UserError
from harness.tasks.base import Row
from harness.tasks.curating.base import RowRule, Sifted, beside, columns_beside, split_by
from harness.tasks.reading.formats import RATINGS, SCORES, SIDES, marks_of


@dataclass(frozen=True)
class BothBad(RowRule):
    """Leaves out pairs of which both sides are scored below a bar.

    Attributes:
        bar: in the scores' own unit, higher being better; a side with this score is good enough. It must be given.
        scores: columns that hold the two scores, or one column of lists; empty takes those of known names
            (``score_chosen`` and ``score_rejected``, ``response_a_score`` and ``response_b_score``, ``ratings``, ...).
    """

    place: ClassVar[int] = 30
    pairs_only: ClassVar[bool] = True

    bar: float | None = None
    scores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """There is no bar for all data; ``ValueError`` is what ``build()`` collects."""
        if self.bar is None:
            raise ValueError("needs a bar in the unit of the scores, such as task.curate.both_bad.bar=3")

    def columns(self, found: Sequence[str]) -> Sequence[str]:
        """Those of the scores."""
        if self.scores:
            return self.scores
        names = set(found)
        known = [*SCORES, *(marks for sides in SIDES for marks in marks_of(sides)), *((name,) for name in RATINGS)]
        columns = next((columns for columns in known if names >= set(columns)), None)
        if columns is None:
            raise UserError(
                f"needs scores, and no column has a known name for them; found: {', '.join(found) or 'none'}",
                key="scores",
                value=[],
                fix="name them: task.curate.both_bad.scores=[score_chosen,score_rejected]",
            )
        return columns

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """The best score of a row decides; a row without any stays."""
        columns = self.columns(columns_beside(rows))
        best = [max(_numbers([beside(row, column) for column in columns], columns), default=None) for row in rows]
        bar = self.bar or 0.0
        reason = f"both sides are scored below {bar:g}"
        blind = sum(score is None for score in best)
        return split_by(rows, [reason if s is not None and s < bar else None for s in best], blind)


def _listed(value: Any) -> list[Any] | None:
    """The list that a cell is, or holds as JSON; None where it is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    return list(value) if isinstance(value, list | tuple) else None


def _numbers(values: Sequence[Any], columns: Sequence[str]) -> list[float]:
    """Finite numbers in cells and in lists of them; nothing where one of the cells is empty."""
    found: list[float] = []
    for value, column in zip(values, columns, strict=True):
        listed = _listed(value)
        for one in [value] if listed is None else listed:
            try:
                number = math.nan if one is None or one == "" else float(one)
            except (TypeError, ValueError):
                kind = "a record" if isinstance(one, Mapping) else "no number"
                fix = "name columns of numbers"
                raise UserError(f"the column {column} holds {kind}", key="scores", value=one, fix=fix) from None
            if math.isnan(number):
                return []
            found.append(number)
        if listed is None and len(columns) == 1:
            fix = "two columns, or one of lists: task.curate.both_bad.scores=[score_chosen,score_rejected]"
            rule = f"the column {column} holds one score, and a pair has two"
            raise UserError(rule, key="scores", value=value, fix=fix)
    return found
