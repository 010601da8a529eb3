"""What a recipe must beat before it is recommended: the base, under the best prompt of several, and length. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.base import formatting, stats
from harness.base.stats import Comparison, Verdict
from harness.report.intervals import LENGTH, gap_of, interval, length_rule, shared_value
from harness.report.leaderboard import finished, known
from harness.report.recipes import UNTRAINED, Examples, Recipe, aligned, clusters_of, column_of, table_of

PREFERENCE = "eval/preference_accuracy"
WIN_RATE = "eval/win_rate"
LEVEL = 0.5
"""Of wins over the base: as good as it."""
THE_BASE, BEST_PROMPT = "the base", "the best prompt"
PROMPT = "params.prompt."
Load = Callable[[pd.DataFrame, str | None], Examples]
"""Results per example of some trials: (their rows, name of the table) -> trial id -> table."""
Mark = Callable[[str], str]
"""How a recipe's name is written: in markdown, or plainly."""


@dataclass(frozen=True)
class Yardstick:
    """Something without seeds, and how recipes compare with it.

    Attributes:
        words: what it is called.
        metric: that is compared.
        value: its figure.
        verdicts: label -> recipe less yardstick, corrected for their number.
        note: on the figure, in words.
    """

    words: str
    metric: str
    value: float
    verdicts: Mapping[str, Comparison]
    note: str = ""

    def beaten_by(self, label: str) -> bool:
        """Whether a recipe is shown to be better."""
        found = self.verdicts.get(label)
        return found is not None and found.verdict is Verdict.BETTER

    def caveat(self, label: str) -> str:
        """What keeps a recipe from being shown to be better, in a few words; empty where it is."""
        found = self.verdicts.get(label)
        if found is None:
            return f"not compared with {self.words}"
        if found.verdict is Verdict.ONE_SEED:
            return f"{_side(found)} {self.words} on the held-out rows of one seed"
        return "" if found.verdict is Verdict.BETTER else f"not shown to beat {self.words}"

    def says(self, recipe: Recipe, mark: Mark) -> str:
        """One sentence on a recipe."""
        found, name = self.verdicts.get(recipe.label), mark(recipe.label)
        what = column_of(self.metric).replace("_", " ")
        against = f"{self.words} ({formatting.number(self.value)}{f', {self.note}' if self.note else ''})"
        if found is None:
            return f"{name} was not compared with {against}."
        gap = f"difference in {what} {interval(gap_of(found.interval, self.metric), signed=True)}"
        over = formatting.count(found.seeds, "seed")
        if found.verdict is Verdict.ONE_SEED:
            return f"On the held-out rows of one seed {name} is {_side(found)} {against}: {gap}."
        if found.verdict is Verdict.BETTER:
            return f"{name} is shown to beat {against}: {gap} over {over}."
        if found.verdict is Verdict.WORSE:
            return f"{name} is worse than {against}: {gap} over {over}."
        more = "" if found.needed is None else f", {found}"
        return f"{name} is not shown to beat {against}: {gap} over {over}{more}."


def _side(found: Comparison) -> str:
    """Where the rows of one seed lie; without results per row where the mean lies."""
    gap = found.interval
    if gap.low is None or gap.high is None:
        return "higher than" if gap.mean > 0 else "lower than" if gap.mean < 0 else "level with"
    return "above" if gap.low > 0 else "below" if gap.high < 0 else "not told apart from"


def base_of(
    frame: pd.DataFrame, found: Sequence[Recipe], metric: str, examples: Examples, base: pd.DataFrame | None
) -> Yardstick | None:
    """The base before training; None where the trials do not agree on one, or it cannot have such a figure.

    Args:
        frame: all trials.
        found: recipes to compare.
        metric: that ranks.
        examples: of the recipes' trials.
        base: the base's own results per example.
    """
    value = LEVEL if metric == WIN_RATE else shared_value(frame, metric.replace("eval/", "baseline/", 1))
    if value is None or not found:
        return None
    return Yardstick(THE_BASE, metric, value, _compared(found, metric, examples, base, column_of(metric), value))


def prompt_of(
    frame: pd.DataFrame, found: Sequence[Recipe], metric: str, examples: Examples, load: Load | None
) -> Yardstick | None:
    """The base under the best of the prompts that stand before the trials' own; None where they have one in common.

    Of each prompt it takes the trials that were not trained (``algo=none``), else what trained ones had before.

    Args:
        frame: all trials, with their labels.
        found: recipes to compare; those that were not trained are left out.
        metric: that ranks.
        examples: of the recipes' trials.
        load: gives results per example of others.
    """
    best: tuple[float, pd.DataFrame, str] | None = None
    groups = _by_prompt(finished(frame))
    for rows in groups:
        untrained = pd.DataFrame(rows[rows["algo"] == UNTRAINED])
        figures = {
            "eval": float(pd.Series(values).mean()) if (values := known(untrained, metric)) else None,
            "baseline": shared_value(rows, metric.replace("eval/", "baseline/", 1)),
        }
        side, value = next(((s, v) for s, v in figures.items() if v is not None), ("", None))
        if value is not None and (best is None or value > best[0]):
            best = value, untrained if side == "eval" else rows, side
    trained = [r for r in found if r.trained]
    if len(groups) < 2 or best is None or not trained:
        return None
    value, rows, side = best
    table, first = table_of(metric), pd.DataFrame(rows.head(1))
    held = None
    if load and table:
        held = next(iter(load(first, table.replace("eval_", f"{side}_", 1)).values()), None)
    label = formatting.without_seed(str(first["label"].iloc[0]))
    note = label if side == "eval" else f"that of {label}"
    verdicts = _compared(trained, metric, examples, held, column_of(metric), value)
    return Yardstick(BEST_PROMPT, metric, value, verdicts, note)


def _by_prompt(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The trials of each prompt (``params.prompt``); all together where none says any."""
    columns = [c for c in rows if str(c).startswith(PROMPT)]
    if not columns:
        return [rows]
    keys = rows[columns].astype("str").fillna("").agg("\n".join, axis=1)
    return [pd.DataFrame(group) for _, group in rows.groupby(keys, sort=False)]


def length_of(frame: pd.DataFrame, found: Sequence[Recipe], examples: Examples) -> Yardstick | None:
    """Length alone, by whichever side wins with it; None without preference accuracies."""
    accuracy, rule = length_rule(frame)
    having = [r for r in found if r.values(PREFERENCE)]
    if accuracy is None or not having:
        return None
    table = next(iter(examples.values()), None)
    if rule == "shorter wins" and table is not None and column_of(LENGTH) in table:
        table = table.assign(**{column_of(LENGTH): 1 - table[column_of(LENGTH)]})
    verdicts = _compared(having, PREFERENCE, examples, table, column_of(LENGTH), accuracy.mean)
    return Yardstick("length alone", PREFERENCE, accuracy.mean, verdicts, rule)


def _compared(
    found: Sequence[Recipe], metric: str, examples: Examples, held: pd.DataFrame | None, column: str, value: float
) -> dict[str, Comparison]:
    table = aligned(found, metric, examples)
    paired = (
        table is not None and held is not None and column in held and list(held["example"]) == list(table["example"])
    )
    scores = {r.label: s for r in found if (s := r.scores(metric, examples if paired else {}))}
    if not scores:
        return {}
    fixed = [float(v) for v in held[column]] if paired and held is not None else [value]
    return stats.against(scores, fixed, clusters=clusters_of(table) if paired else None)
