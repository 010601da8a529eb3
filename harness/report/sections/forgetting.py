"""What alignment did to the skills that lm-eval tests: each recipe's change from the base, with its interval. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pandas as pd

from harness.base import formatting
from harness.base.stats import Interval
from harness.report.intervals import interval
from harness.report.leaderboard import BASE_LABEL, shared_value
from harness.report.recipes import Recipe

SCORES = ("acc_norm", "acc", "exact_match")
"""Of a task, the first of these that it has."""


def section(frame: pd.DataFrame, found: Sequence[Recipe], most: int) -> list[str]:
    """The report's section; nothing where no task was scored before and after training."""
    tasks = scored(frame)
    shown = found[:most]
    cells = {r.label: [change(r, name) for name in tasks.values()] for r in shown}
    if not any(c for row in cells.values() for c in row):
        return []
    body = [[formatting.escape(label), *map(_cell, row)] for label, row in cells.items()]
    base = [formatting.number(shared_value(frame, f"baseline/{name}")) for name in tasks.values()]
    if any(b != formatting.MISSING for b in base):
        body.insert(0, [BASE_LABEL, *base])
    words = (
        "Change of each score from the base, with its 95 % interval: over seeds and over the task's documents. "
        "**Bold**: a loss beyond noise."
    )
    heads = [f"Δ {formatting.escape(name)}" for name in tasks.values()]
    return ["## Forgetting", formatting.table(["recipe", *heads], body), words]


def scored(frame: pd.DataFrame) -> dict[str, str]:
    """Tasks with a score before and after training -> the score's name, ``task/acc``."""
    tasks: dict[str, str] = {}
    for column in map(str, frame.columns):
        if column.startswith("delta/") and column.count("/") > 1:
            task, _, score = column.removeprefix("delta/").rpartition("/")
            if score in SCORES and (
                task not in tasks or SCORES.index(score) < SCORES.index(tasks[task].split("/")[-1])
            ):
                tasks[task] = f"{task}/{score}"
    return dict(sorted(tasks.items()))


def change(recipe: Recipe, name: str) -> Interval | None:
    """Of one score, from the base: the noise of the seeds and that of the task's documents, which all seeds share."""
    found = recipe.estimate(f"delta/{name}")
    if found is None:
        return None
    errors = [statistics.fmean(e) for side in ("eval", "baseline") if (e := recipe.values(f"{side}/{name}_stderr"))]
    several = len(recipe.values(f"delta/{name}")) > 1
    if not errors and not several:
        return Interval(found.mean, None, None, 1, "one seed")
    over_seeds = found.high - found.mean if several and found.high is not None else 0.0
    reach = math.hypot(over_seeds, 1.96 * math.hypot(*errors))  # as if base and trained were scored apart: too wide
    return Interval(found.mean, found.mean - reach, found.mean + reach, 1, "seeds and documents")


def _cell(found: Interval | None) -> str:
    shown = interval(found, signed=True)
    return f"**{shown}**" if found is not None and found.high is not None and found.high < 0 else shown
