"""The contract of a curation rule: it is given training rows, and tells which stay and why the others go. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from harness.tasks.base import Row, Text, prompt_key

BESIDE = "beside"
"""Key of a row under which the columns stand that rules read: column -> value. Curation takes it off again."""
COMPLETIONS = ("chosen", "rejected", "completion")


@dataclass(frozen=True)
class Sifted:
    """What a rule leaves.

    Attributes:
        rows: that stay, in their order.
        removed: reason -> rows that go for it, each counted once.
        changed: what was changed -> rows that stay with the change; a row may count several times.
        changed_rows: rows that stay and were changed, each counted once.
        kept_blind: rows that the rule could not judge (a value is missing), and that therefore stay.
    """

    rows: Sequence[Row]
    removed: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    changed_rows: int = 0
    kept_blind: int = 0


@dataclass(frozen=True)
class Rule(ABC):
    """A rule of ``task.curate``; derive from ``RowRule`` or ``MarginRule``.

    Attributes:
        least: rows that must be left; fewer is an error that tells the counts.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    place: ClassVar[int] = 70
    """Rules are applied in the order of their places, and those of one place by name."""
    pairs_only: ClassVar[bool] = False
    """Whether it compares the two sides of a pair."""

    least: Annotated[int, Ge(1)] = field(default=10, kw_only=True)

    @property
    @abstractmethod
    def in_trial(self) -> bool:
        """Whether it is applied within the trial, where there is a model."""

    def columns(self, found: Sequence[str]) -> Sequence[str]:
        """Columns of the table that it reads beside our own, as ``row["beside"][column]``.

        Args:
            found: the table's columns.

        Raises:
            UserError: what it needs is not there; its ``key`` is a field of the rule.
        """
        return ()

    @property
    def everywhere(self) -> bool:
        """Whether held-out rows are sifted too."""
        return False


@dataclass(frozen=True)
class RowRule(Rule):
    """A rule that looks at rows alone; it is applied when rows are read."""

    @property
    def in_trial(self) -> bool:
        """No."""
        return False

    @abstractmethod
    def sift(self, rows: Sequence[Row]) -> Sifted:
        """The rows that stay. Rows are ``prompt, chosen, rejected``, or ``prompt, completion, label``, or ``prompt``.

        Raises:
            UserError: the rows cannot be judged; its ``key`` is a field of the rule.
        """


@dataclass(frozen=True)
class MarginRule(Rule):
    """A rule that needs the base's own margins; it is applied in the trial, after all others."""

    place: ClassVar[int] = 100
    pairs_only: ClassVar[bool] = True

    @property
    def in_trial(self) -> bool:
        """Yes."""
        return True

    @abstractmethod
    def sift_by(self, rows: Sequence[Row], margins: Sequence[float]) -> Sifted:
        """The rows that stay.

        Args:
            rows: pairs.
            margins: for each, log p(chosen) per token less log p(rejected) per token, in nats, under the base.
        """


def split_by(rows: Sequence[Row], reasons: Sequence[str | None], kept_blind: int = 0) -> Sifted:
    """The rows without a reason to go."""
    removed: dict[str, int] = {}
    for reason in reasons:
        if reason is not None:
            removed[reason] = removed.get(reason, 0) + 1
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    return Sifted(kept, removed, kept_blind=kept_blind)


def beside(row: Row, column: str) -> Any:
    """The value of a column that a rule asked for; None where the row has none."""
    return (row.get(BESIDE) or {}).get(column)


def columns_beside(rows: Sequence[Row]) -> list[str]:
    """The columns that stand beside rows."""
    return list((rows[0].get(BESIDE) or {}) if rows else ())


def row_key(row: Row) -> tuple[str, ...]:
    """A hashable identity of what a row says, without its label's direction."""
    sides = sorted(prompt_key(row[name]) for name in COMPLETIONS if name in row)
    return (prompt_key(row["prompt"]), *sides)


def texts_of(row: Row) -> dict[str, Text]:
    """The texts of a row, by field."""
    return {name: row[name] for name in ("prompt", *COMPLETIONS) if name in row}
