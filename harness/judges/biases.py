"""What a judge's verdicts depend on beside the replies: their order, their length, chance. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.calibration import cohens_kappa
from harness.judges.asking import Verdict
from harness.judges.base import Pair


@dataclass(frozen=True)
class Biases:
    """Values by pair, of which means and intervals are made; a pair that says nothing of one is left out of it.

    Attributes:
        first: of the answers about a pair that name a winner, the share that names the reply shown first. As each reply
            is shown first once, a judge without a preference for a place has one half.
        consistent: whether both orders name the same.
        longer: of pairs whose orders agree on a winner, whether it is the longer one.
        unreadable: of both answers about a pair, the share that cannot be read.
    """

    first: list[float]
    consistent: list[float]
    longer: list[float]
    unreadable: list[float]


def biases(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> Biases:
    """Of all verdicts; which reply is better does not matter."""
    found = Biases([], [], [], [])
    for pair, verdict in zip(pairs, verdicts, strict=True):
        answers = (verdict.straight, verdict.turned)
        found.unreadable.append(sum(a is None for a in answers) / 2)
        shown_first = [(a == "first") == (place == 0) for place, a in enumerate(answers) if a in ("first", "second")]
        if shown_first:
            found.first.append(sum(shown_first) / len(shown_first))
        if verdict.readable:
            found.consistent.append(float(verdict.consistent))
        if verdict.consistent and verdict.straight != "tie" and len(pair.first) != len(pair.second):
            found.longer.append(float((verdict.straight == "first") == (len(pair.first) > len(pair.second))))
    return found


def agreement(verdicts: Sequence[Verdict], turned: Sequence[bool]) -> tuple[list[float], float | None]:
    """How far a judge agrees with labels.

    Args:
        verdicts: on pairs whose first reply is the one that people chose.
        turned: for each pair whether it counts the other way round, so that "first" is no constant label.

    Returns:
        For each readable pair 1, ½ or 0; Cohen's kappa over the pairs whose orders agree on a winner, None where
        there are none or chance would agree always.
    """
    points = [v.won for v in verdicts if v.won is not None]
    decided = [(v, t) for v, t in zip(verdicts, turned, strict=True) if v.consistent and v.straight != "tie"]
    if not decided:
        return points, None
    theirs = ["second" if t else "first" for _, t in decided]
    ours = ["first" if (v.straight == "first") != t else "second" for v, t in decided]
    return points, cohens_kappa(theirs, ours)


def turned_by_lot(pair: Pair) -> bool:
    """Whether a pair whose first reply is the chosen one counts the other way round, by its own words."""
    return bool(zlib.crc32(f"{pair.prompt}\0{pair.first}".encode()) & 1)


def first_longer(pairs: Sequence[Pair]) -> list[float]:
    """Of pairs of unlike length, whether the first reply is the longer one."""
    return [float(len(pair.first) > len(pair.second)) for pair in pairs if len(pair.first) != len(pair.second)]
