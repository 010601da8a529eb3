"""Pairs whose sides say the same, or nearly: there is no preference to learn from them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Annotated, ClassVar

from annotated_types import Gt, Le

from harness.tasks.base import Row, text_of
from harness.tasks.curating.base import RowRule, Sifted, split_by

EQUAL = "the sides are equal but for white space, Unicode form"


@dataclass(frozen=True)
class Identical(RowRule):
    """Leaves out pairs whose sides are equal once white space and Unicode form are ignored, or too similar.

    Attributes:
        ignore_case: whether ``Yes`` and ``yes`` are equal.
        similarity: share of words in common, in their order (2 × matches ÷ words of both, as ``difflib`` has it), from
            which a pair is left out; null: equal sides alone. Solutions that differ in their last number alone are
            0.98 alike and as different as can be: look at what goes.
    """

    place: ClassVar[int] = 20
    pairs_only: ClassVar[bool] = True

    ignore_case: bool = True
    similarity: Annotated[float, Gt(0), Le(1)] | None = None

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """By the words of each side."""
        return split_by(rows, [self._reason(self._words(row["chosen"]), self._words(row["rejected"])) for row in rows])

    def _words(self, side: object) -> list[str]:
        words = unicodedata.normalize("NFKC", text_of(side))  # type: ignore[arg-type]
        return (words.casefold() if self.ignore_case else words).split()

    def _reason(self, chosen: list[str], rejected: list[str]) -> str | None:
        if chosen == rejected or "".join(chosen) == "".join(rejected):
            return EQUAL + (" and case" if self.ignore_case else "")
        if self.similarity is None:
            return None
        matcher = SequenceMatcher(None, chosen, rejected, autojunk=False)
        # The first two are upper bounds of the third, which takes a thousand times as long.
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(bound() >= self.similarity for bound in bounds):
            return f"the sides are at least {self.similarity:g} alike"
        return None
