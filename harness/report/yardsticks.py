"""What a recipe must beat before it is recommended: the base it was trained from, and length alone. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.base import formatting, stats
from harness.base.stats import Comparison, Verdict
from harness.report.intervals import LENGTH, gap_of, interval, length_rule, shared_value
from harness.report.recipes import Examples, Recipe, aligned, clusters_of, column_of

PREFERENCE = "eval/preference_accuracy"
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
    value = shared_value(frame, metric.replace("eval/", "baseline/", 1))
    if value is None or not found:
        return None
    return Yardstick("the base", metric, value, _compared(found, metric, examples, base, column_of(metric), value))


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
