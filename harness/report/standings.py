"""What a report knows: trials in order, their recipes, how these compare, and which nothing beats. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from harness.base import formatting
from harness.base.errors import UserError
from harness.base.stats import Comparison
from harness.report import choice, recipes, yardsticks
from harness.report.leaderboard import quality_name, rankable, ranked
from harness.report.recipes import Recipe
from harness.report.yardsticks import Load, Yardstick


@dataclass(frozen=True)
class Standings:
    """What the trials of a report say.

    Attributes:
        frame: trials as ``results`` gives them, in the leaderboard's order, with their labels.
        metric: that ranks; None where nothing finished.
        recipes: of the finished trials, the best first.
        verdicts: of every two recipes that were compared, by their labels.
        front: labels of recipes that no other beats on quality, memory and time together.
        ranked_by: whether the metric was chosen, and is not the usual one.
        base: the base before training, by the metric that ranks, under the best prompt where trials have several; None
            where it has no such figure.
        length: length alone, by preference accuracy.
    """

    frame: pd.DataFrame
    metric: str | None
    recipes: Sequence[Recipe] = ()
    verdicts: Mapping[tuple[str, str], Comparison] = field(default_factory=dict)
    front: frozenset[str] = frozenset()
    ranked_by: bool = False
    base: Yardstick | None = None
    length: Yardstick | None = None


def find(frame: pd.DataFrame, load: Load | None = None, rank_by: str | None = None) -> Standings:
    """Rank trials, gather recipes, compare the best of them with one another, the base, and length alone.

    Args:
        frame: as ``results.from_mlflow`` or ``from_folder`` gives it.
        load: gives results per example; without it recipes are compared by the means of their seeds.
        rank_by: a metric, with or without ``eval/``; None is true reward, else preference accuracy.

    Raises:
        UserError: no finished trial has the metric, or more of it is not better.
    """
    metric = quality_name(frame) if rank_by is None else _known(frame, rank_by)
    ordered = ranked(frame, None if rank_by is None else metric)
    found = recipes.recipes(ordered, metric)
    if metric is None or not found:
        return Standings(ordered, metric, found)
    best = found[: recipes.MOST_COMPARED]
    rows, table = pd.concat([r.frame for r in best]), recipes.table_of(metric)
    examples = load(rows, table) if load else {}
    verdicts = recipes.compared(found, metric, examples)
    base = yardsticks.prompt_of(ordered, best, metric, examples, load)
    if base is None:
        own = None if table is None else table.replace("eval_", "baseline_", 1)
        before = next(iter(load(best[0].frame.head(1), own).values()), None) if load and own else None
        base = yardsticks.base_of(ordered, best, metric, examples, before)
    pairs = examples
    if metric != yardsticks.PREFERENCE:
        best = best[:1]
        pairs = load(best[0].frame, recipes.table_of(yardsticks.PREFERENCE)) if load else {}
    length = yardsticks.length_of(ordered, best, pairs)
    front = frozenset(choice.front(found, metric, verdicts))
    return Standings(ordered, metric, found, verdicts, front, rank_by is not None, base, length)


def _known(frame: pd.DataFrame, name: str) -> str:
    known = rankable(frame)
    metric = name if name.startswith("eval/") else f"eval/{name}"
    if metric not in known:
        meant = formatting.did_you_mean(metric, known).replace("eval/", "", 1)
        fix = f"{meant} known: {', '.join(known) or 'none'}".lstrip()
        rule = "is no metric that can rank: one that finished trials have, and of which more is better"
        raise UserError(rule, key="--rank-by", value=name, fix=fix)
    return metric
