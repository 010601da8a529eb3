"""Rows with personal data: left out, or with a mask in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.tasks.base import Row
from harness.tasks.curating import personal
from harness.tasks.curating.base import RowRule, Sifted, texts_of

ALIKE = "the sides are equal once masked"


@dataclass(frozen=True)
class PersonalData(RowRule):
    """Looks for personal data in prompts and completions (``personal`` says how, and what is not taken for it).

    Attributes:
        patterns: what to look for: card, iban, ssn (of the US), ip, email, phone.
        action: ``mask`` writes ``[EMAIL]`` in the place of an address; ``drop`` leaves the row out.
        held_out: whether held-out rows are treated too, so that nothing personal is scored, sampled from or shown.
    """

    place: ClassVar[int] = 10  # first: what other rules compare is what is trained on

    patterns: tuple[personal.Pattern, ...] = personal.PATTERNS
    action: Literal["mask", "drop"] = "mask"
    held_out: bool = False

    def __post_init__(self) -> None:
        """There is something to look for."""
        if not self.patterns:
            raise ValueError("patterns names nothing to look for")

    @property
    def everywhere(self) -> bool:
        """As ``held_out`` says."""
        return self.held_out

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """Each row once, whatever it holds; a masked pair whose sides are then equal is left out."""
        kept: list[Row] = []
        removed: Counter[str] = Counter()
        changed: Counter[str] = Counter()
        count = 0
        for row in rows:
            found: set[str] = set()

            def mask(text: str, found: set[str] = found) -> str:
                made, names = personal.masked(text, self.patterns)
                found |= names
                return made

            made = {**row, **{name: personal.over_text(text, mask) for name, text in texts_of(row).items()}}
            if not found:
                kept.append(row)
            elif self.action == "drop":
                removed[" and ".join(sorted(found))] += 1
            elif "chosen" in made and made["chosen"] == made["rejected"]:
                removed[ALIKE] += 1
            else:
                kept.append(made)
                changed.update(found)
                count += 1
        return Sifted(kept, removed, changed, count)
