"""Whether a trial has lost already: its point of the curve against the best that finished trials of the sweep had.

A share of the budget is the same cost for every algorithm. What decides are validation rows (``curve_split``), which
judge nothing at the end. Light: it reads journals and no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from harness.base.stats import SAME
from harness.store import journal
from harness.store.past import description, result_of, trial_folders
from harness.store.result import since_attempt

FALSE = 0.001
"""Chance at a point that a trial which ties with its only rival is stopped; of more rivals together, no more."""


@dataclass(frozen=True)
class Point:
    """What a trial had at a share of its budget.

    Attributes:
        name: the trial's.
        mean: of the metric that ranks.
        stderr: of the rows that it was measured on.
        rivals: trials of which it is the best; the best of many is a lucky one.
    """

    name: str
    mean: float
    stderr: float
    rivals: int = 1

    def __str__(self) -> str:
        """With its standard error."""
        return f"{self.mean:.3f} (standard error {self.stderr:.3f})"


def has_lost(own: Point, best: Point) -> bool:
    """Whether ``own`` lies below ``best`` by more than a tie and the luck of the rows: the difference, not each alone.

    Neither error is taken for smaller than the other: rows that all score alike, such as zeros, have no spread and are
    not certain for that. The difference must be larger the more rivals there were (Bonferroni), since the best of many
    is a lucky one. At four points fewer than one of 100 trials that tie with the best are stopped, whatever their
    number; fewer still in fact, since all points are of the same rows, which makes trials fall and rise together.

    Without the tie, a seed that learns late ends its recipe: on the 99 recorded trials of ``algo_matrix`` the best
    recipe of the whole grid survived in 59 % of the orders alone, and with it in 99.5 % (``bench/stop_losing.py``).
    """
    error = math.sqrt(2) * max(own.stderr, best.stderr)
    return best.mean - own.mean - SAME > NormalDist().inv_cdf(1 - FALSE / best.rivals) * error


def best_rival(folder: Path, share: float, metric: str) -> Point | None:
    """The best point at ``share`` of the finished trials of a sweep that looked at the same rows; None without one.

    Args:
        folder: of the trial that asks, among those of its sweep.
        share: of the budget.
        metric: name of the figure, such as ``curve/true_reward``.
    """
    wanted = _looked_at(description(folder))
    found = []
    for other in trial_folders(folder.parent):
        if other.name == folder.name or (result := result_of(other)) is None or not result.outcome.succeeded:
            continue
        if _looked_at(description(other)) == wanted and (point := _point(other, share, metric)) is not None:
            found.append(point)
    return best_among(found)


def best_among(points: Sequence[Point]) -> Point | None:
    """The highest of rivals, which knows how many they are; None without any."""
    best = max(points, key=lambda point: point.mean, default=None)
    return None if best is None else replace(best, rivals=len(points))


def point_of(name: str, values: Mapping[str, Any], metric: str) -> Point | None:
    """The figure of a point with its error; None where it has none."""
    mean, stderr = (journal.number(values.get(key)) for key in (metric, f"{metric}_stderr"))
    if mean is None or not math.isfinite(mean):
        return None
    return Point(name, mean, stderr if stderr is not None and math.isfinite(stderr) else 0.0)


def points_on_record(folder: Path, worker: str = "worker.jsonl") -> list[Mapping[str, Any]]:
    """The points of a trial, of the attempts that its latest one goes on from: the events' fields, in order."""
    chain = journal.latest_attempt(journal.read(folder / "runner.jsonl"))
    return [e.data for e in since_attempt(journal.read(folder / worker), chain) if e.kind == "point"]


def _point(folder: Path, share: float, metric: str) -> Point | None:
    points = [point for point in points_on_record(folder) if point["share"] == share]
    return point_of(folder.name, points[-1]["values"], metric) if points else None


def _looked_at(about: Mapping[str, Any]) -> dict[str, Any]:
    """What of a trial's keys says which rows its points are of, how they were taken, and by which rule they judge."""
    why, digests = about.get("why") or {}, about.get("digests") or {}
    rows = digests.get("held_out") or why.get("data")
    return {"rows": rows, **{k: v for k, v in why.items() if k.startswith(("curve.", "evaluation: rule."))}}
