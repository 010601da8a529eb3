"""What code does, as figures: how an evaluator behaves on a small fixture, and whether two of these are the same. Pure.

Digests of code change with every refactoring. Two trials whose evaluators differ in code are comparable where both
versions gave the same figures on the same fixture (``behaviour`` makes them, in a trial's process).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from harness.base.records import Event
from harness.config.identity import digest

TOLERANCE = 1e-3
"""Of a figure, relative to its size or to 1: thread counts and processors move one by some 1e-6, the toy's training
by 1e-5; a change of a formula moves some figure by far more."""
DIGITS = 6
MOST_NAMED = 4
MOST_CHARACTERS = 7000
"""Of a fingerprint as text: MLflow cuts tags at 8,000."""
JUDGING, BASE = "evaluator.", "base"
"""Names of fingerprints: ``evaluator.true_reward`` and ``evaluator.task`` (its rules of scoring), and ``base``."""
ANEW = "; a baseline of before there were any is written anew: gate --update"
COLUMN = "fingerprint."
"""Of a table of trials, before the name: the fingerprint as JSON."""


@dataclass(frozen=True)
class Fingerprint:
    """What a piece of code gave for its fixture.

    Attributes:
        settings: what it was asked, by part (configuration, content, versions, rows), each as a digest.
        figures: name -> number, rounded to six digits.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    settings: dict[str, str]
    figures: dict[str, float]

    @property
    def digest(self) -> str:
        """Of settings and figures, rounded once more: equal ones behave alike, others may (``differences``)."""
        return digest([self.settings, {name: float(f"{value:.3g}") for name, value in self.figures.items()}])


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Finite figures, to six digits; of very many the last ones are one, their mean weighted by their order."""
    kept, rest, room = {}, [], MOST_CHARACTERS
    for name, value in sorted(figures.items()):
        room -= len(name) + 20
        if math.isfinite(value) and room > 0:
            kept[name] = _to_digits(value)
        elif math.isfinite(value):
            rest.append(value)
    return kept | ({f"{len(rest)} more, together": _to_digits(by_order(rest))} if rest else {})


def by_order(values: Sequence[float]) -> float:
    """A mean in which later values weigh more, so that two that change places show."""
    weights = range(1, len(values) + 1)
    return math.fsum(w * float(v) for w, v in zip(weights, values, strict=True)) / sum(weights)


def _to_digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def told(events: Iterable[Event]) -> dict[str, Fingerprint]:
    """Fingerprints that a worker journalled; of a name told twice the latest."""
    found = [e.data for e in events if e.kind == "fingerprint"]
    return {str(d["name"]): Fingerprint(dict(d["settings"]), dict(d["figures"])) for d in found}


def as_text(fingerprint: Fingerprint) -> str:
    """As a table of trials and MLflow's tags hold it."""
    return json.dumps(asdict(fingerprint), sort_keys=True)


def from_text(text: str) -> Fingerprint:
    """The reverse."""
    return Fingerprint(**json.loads(text))


def of_row(row: Mapping[Any, Any]) -> dict[str, Fingerprint]:
    """Those of a row of a table of trials."""
    texts = {str(name): value for name, value in row.items() if str(name).startswith(COLUMN)}
    return {n.removeprefix(COLUMN): from_text(text) for n, text in texts.items() if isinstance(text, str)}


@dataclass(frozen=True)
class Compared:
    """Whether two pieces of code behave alike.

    Attributes:
        alike: they do, as far as the fixture shows.
        why: what agrees, or what differs.
    """

    alike: bool
    why: str


def compare(before: Mapping[str, Fingerprint], after: Mapping[str, Fingerprint], kind: str) -> Compared:
    """Hold the fingerprints of one kind (``JUDGING`` or ``BASE``) of two sides against each other."""
    one, two = ({n: f for n, f in side.items() if n.startswith(kind)} for side in (before, after))
    if not one or not two:
        side = "the baseline" if two else "the candidate" if one else "either side"
        more = ANEW if two else ""
        return Compared(False, f"there is no fingerprint of {side}, so whether both behave alike is not known{more}")
    if only := sorted(set(one) ^ set(two)):
        return Compared(False, f"on one side alone: {', '.join(n.removeprefix(kind) for n in only)}")
    settings = [f"{n.removeprefix(JUDGING)} ({', '.join(p)})" for n in one if (p := _asked_otherwise(one[n], two[n]))]
    if settings:
        return Compared(False, f"asked something else: {', '.join(settings)}")
    moved = [f"{n.removeprefix(JUDGING)}: {line}" for n in one for line in differences(one[n], two[n])]
    if moved:
        more = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
        return Compared(False, f"figures moved on the fixture: {'; '.join(moved[:MOST_NAMED])}{more}")
    return Compared(
        True, f"the same behaviour: all {sum(len(f.figures) for f in one.values())} figures of the fixture agree"
    )


def differences(before: Fingerprint, after: Fingerprint) -> Sequence[str]:
    """Figures that moved, or that one side lacks, each with both values."""
    lines = []
    for name in sorted({*before.figures, *after.figures}):
        a, b = before.figures.get(name), after.figures.get(name)
        if a is None or b is None or abs(a - b) > TOLERANCE * max(1.0, abs(a), abs(b)):
            lines.append(f"{name} {_shown(a)} → {_shown(b)}")
    return lines


def _asked_otherwise(before: Fingerprint, after: Fingerprint) -> list[str]:
    names = sorted({*before.settings, *after.settings})
    return [name for name in names if before.settings.get(name) != after.settings.get(name)]


def _shown(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4g}"
