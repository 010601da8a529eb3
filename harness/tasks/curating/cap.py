"""At most so many rows: of all, or of each source, subset or prompt."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from harness.tasks.base import Row, digest_of, prompt_key
from harness.tasks.curating.base import RowRule, Sifted, beside, split_by, texts_of

OWN = ("prompt",)
"""Columns of ours that may part the rows."""


@dataclass(frozen=True)
class Cap(RowRule):
    """Keeps at most ``rows`` rows, or a ``share`` of all rows, of each stratum.

    Which ones stay follows from the seed and from what they say, not from their order in the file, and those of a
    smaller cap are among those of a larger one: a sweep over ``rows`` adds rows and exchanges none.

    Attributes:
        rows: of a stratum at most.
        share: of a stratum at most, of the rows that come to this rule; at least one stays.
        by: column whose values are the strata (``source``), or ``prompt``; null: all rows are one.
        seed: governs the choice.
    """

    place: ClassVar[int] = 90  # after the rules that find fault with rows: the cap is of good ones

    rows: Annotated[int, Gt(0)] | None = None
    share: Annotated[float, Gt(0), Le(1)] | None = None
    by: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    least: Annotated[int, Ge(1)] = field(default=1, kw_only=True)  # few rows are what was asked for

    def __post_init__(self) -> None:
        """One of the two; ``ValueError`` is what ``build()`` collects."""
        if (self.rows is None) == (self.share is None):
            raise ValueError("give rows or share, and not both, such as task.curate.cap.rows=1000")

    def columns(self, found: Sequence[str]) -> Sequence[str]:
        """That of the strata."""
        return () if self.by is None or self.by in OWN else (self.by,)

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """The first of each stratum by their hashes."""
        most = self.rows if self.rows is not None else max(1, int(len(rows) * (self.share or 0.0) + 1e-9))
        strata: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for place, row in enumerate(rows):
            rank = hashlib.sha256(f"{self.seed}\n{digest_of(texts_of(row))}".encode()).hexdigest()
            strata[self._stratum(row)].append((rank, place))
        over = {place for ranked in strata.values() for _, place in sorted(ranked)[most:]}
        of = "" if self.by is None else f" of a {self.by}"
        reason = f"beyond {most:,} rows{of}"
        blind = 0 if self.by is None or self.by in OWN else sum(beside(row, self.by) is None for row in rows)
        if blind:  # rows of no stratum are one of their own, and capped as it is
            reason += f", those without one ({blind:,}) taken together"
        return split_by(rows, [reason if place in over else None for place in range(len(rows))])

    def _stratum(self, row: Row) -> str:
        if self.by is None:
            return ""
        return prompt_key(row[self.by]) if self.by in OWN else str(beside(row, self.by))
