"""What a report knows: trials in order, their recipes, how these compare, and which nothing beats. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from harness.report import choice, recipes
from harness.report.leaderboard import quality_name, ranked
from harness.report.recipes import Recipe
from harness.stats import Comparison

Load = Callable[[pd.DataFrame, str | None], recipes.Examples]
"""Results per example of some trials: (their rows, name of the table) -> trial id -> table."""


@dataclass(frozen=True)
class Findings:
    """What the trials of a report say.

    Attributes:
        frame: trials as ``results`` gives them, in the leaderboard's order, with their labels.
        metric: that ranks; None where nothing finished.
        recipes: of the finished trials, the best first.
        verdicts: of every two recipes that were compared, by their labels.
        front: labels of recipes that no other beats on quality, memory and time together.
    """

    frame: pd.DataFrame
    metric: str | None
    recipes: Sequence[Recipe] = ()
    verdicts: Mapping[tuple[str, str], Comparison] = field(default_factory=dict)
    front: frozenset[str] = frozenset()


def find(frame: pd.DataFrame, load: Load | None = None) -> Findings:
    """Rank trials, gather recipes, compare the best of them.

    Args:
        frame: as ``results.from_mlflow`` or ``from_folder`` gives it.
        load: gives results per example; without it recipes are compared by the means of their seeds.
    """
    ordered = ranked(frame)
    metric = quality_name(ordered)
    found = recipes.recipes(ordered, metric)
    rows = [r.frame for r in found[: recipes.MOST_COMPARED]]
    examples = load(pd.concat(rows), recipes.UNITS.get(metric or "")) if load and rows and metric else {}
    verdicts = recipes.compared(found, metric, examples)
    front = choice.front(found, metric, verdicts) if metric else frozenset[str]()
    return Findings(ordered, metric, found, verdicts, frozenset(front))
