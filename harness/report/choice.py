"""Which recipe to take: the front of quality, memory and time, and the three sentences a reader wants. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.base import formatting
from harness.base.stats import Comparison, Verdict
from harness.report.intervals import interval
from harness.report.recipes import Recipe
from harness.report.yardsticks import BEST_PROMPT, THE_BASE, Mark, Yardstick

ALIKE = 1.05
"""Factor within which two memories or two times are the same."""

MOST_NAMED = 3
"""Recipes that a sentence names."""

Verdicts = Mapping[tuple[str, str], Comparison]


def front(found: Sequence[Recipe], metric: str, verdicts: Verdicts) -> set[str]:
    """Labels of the recipes that no other one beats on quality, memory and time together.

    One recipe beats another where it is better or a tie in quality, takes no more memory and time, and is better in one
    of the three by more than noise. Quality goes by the 95 % interval of the difference, of each pair for itself: the
    correction for all pairs keeps a claim from being false, and here it would keep a bad recipe in the choice. Without
    a comparison it goes by the means. The best recipe is always among them.
    """
    quality = _column(found, lambda r: r.mean(metric))
    costs = [_column(found, lambda r: r.mean("memory/peak_mb")), _column(found, lambda r: r.training_s())]
    places = {r.label: i for i, r in enumerate(found)}
    judged: dict[int, list[tuple[int, bool, bool]]] = defaultdict(list)
    for (one, other), comparison in verdicts.items():
        low = comparison.interval.low
        better, no_worse = low is not None and low > 0, low is not None and low >= -comparison.margin
        judged[places[other]].append((places[one], better, no_worse))
    kept = set()
    for i, recipe in enumerate(found):
        if np.isnan(quality[i]):
            continue
        better, alike = quality > quality[i], quality == quality[i]
        for j, is_better, is_alike in judged[i]:
            better[j], alike[j] = is_better, is_alike
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [cost / cost[i] for cost in costs]  # not a number where either is not known: says nothing
        dearer = np.logical_or.reduce([r > ALIKE for r in ratios])
        cheaper = np.logical_or.reduce([r < 1 / ALIKE for r in ratios])
        beats = ~dearer & (better | (alike & cheaper))
        beats[i] = False
        if not beats.any():
            kept.add(recipe.label)
    best = next((r.label for i, r in enumerate(found) if not np.isnan(quality[i])), None)
    return kept if best is None else kept | {best}  # tolerances could let three recipes beat one another in a ring


def _column(found: Sequence[Recipe], of: Callable[[Recipe], float | None]) -> np.ndarray:
    return np.array([math.nan if (v := of(r)) is None else v for r in found])


def bold(label: str) -> str:
    """A recipe's name in markdown, where it is data."""
    return f"**{formatting.escape(label)}**"


def sentences(
    found: Sequence[Recipe],
    metric: str,
    verdicts: Verdicts,
    words: str,
    base: Yardstick | None = None,
    length: Yardstick | None = None,
    mark: Mark = bold,
) -> list[str]:
    """Against the base and length alone first; then what is recommended, what is cheaper, and what to avoid.

    Nothing is recommended that has not a higher mean than the base; what is not shown to be above it is called the
    highest, and no more.

    Args:
        found: recipes, the best first.
        metric: that ranks.
        verdicts: of every two that were compared.
        words: for the metric.
        base: the yardstick, where there is one.
        length: likewise.
        mark: how a recipe's name is written.
    """
    if base is not None and base.words == BEST_PROMPT:
        found = [r for r in found if r.trained] or found
    best = _shown_best(found, base)
    estimate = best.estimate(metric)
    said = [y.says(best, mark) for y in (base, length) if y is not None]
    above = is_above(best, metric, base)
    if not above:
        kept = "the base" if base is None or base.words == THE_BASE else f"the base, and {base.words}"
        said.append(f"Keep {kept}: no recipe has a higher {words}.")
    first = "Best" if base is None or base.beaten_by(best.label) else "Highest"
    said.append(f"{first} {words}: {mark(best.label)} with {interval(estimate)}.")
    if len(found) > 1:
        said += [_cheapest(found, verdicts, mark)] if above and best is found[0] else []
        said += [_worst(found, metric, verdicts, None if base is None else base.value, mark)]
        said += [_lost(found, metric, base.value, mark)] if base is not None else []
    return [s for s in [_unchanged(found, mark), *said] if s]


def _unchanged(found: Sequence[Recipe], mark: Mark) -> str:
    """Recipes of which no seed changed a weight: their figures are the base's."""
    idle = [mark(r.label) for r in found if (values := r.values("params/changed")) and not any(values)]
    if not idle:
        return ""
    what = "it is the base" if len(idle) == 1 else "they are the base"
    return f"Training changed no weight of {_named(idle)}: {what} (larger train.learning_rate, more steps)."


def is_above(best: Recipe, metric: str, base: Yardstick | None) -> bool:
    """Whether a recipe's mean is above the base, where there is one."""
    estimate = best.estimate(metric)
    return base is None or (estimate is not None and estimate.mean > base.value)


def _shown_best(found: Sequence[Recipe], base: Yardstick | None) -> Recipe:
    """The best of those that are shown to beat the base; of all, where none is."""
    return next((r for r in found if base is not None and base.beaten_by(r.label)), found[0])


def _cheapest(found: Sequence[Recipe], verdicts: Verdicts, mark: Mark) -> str:
    best = found[0]
    if not any((r.label, best.label) in verdicts for r in found[1:]):
        return ""
    against = [(r, c.verdict) for r in found[1:] if (c := verdicts.get((r.label, best.label)))]
    ties = [r for r, verdict in against if verdict is Verdict.TIE]
    open_ = [r for r, verdict in against if verdict in (Verdict.OPEN, Verdict.ONE_SEED)]
    costs = [(s, r) for r in [best, *ties] if (s := r.training_s()) is not None]
    if not costs:
        return ""
    seconds, cheap = min(costs, key=lambda pair: pair[0])
    memory = cheap.mean("memory/peak_mb")
    price = f"{formatting.seconds(seconds)} s of training" + (
        "" if memory is None else f" and {formatting.whole(memory)} MB"
    )
    if ties and cheap is not best:
        return f"Cheapest within a tie of it: {mark(cheap.label)}, {price}."
    if ties:
        return f"It is also the cheapest of the {len(ties) + 1} that were compared and tie, {price}."
    if open_:
        unsettled = formatting.count(len(open_), "recipe")
        return f"None is shown to tie with it, and {unsettled} would need more seeds to tell. It takes {price}."
    return f"Nothing ties with it; it takes {price}."


def _lost(found: Sequence[Recipe], metric: str, base: float, mark: Mark) -> str:
    """Recipes of one seed, but the best, whose held-out rows lie below the base: worth a word, and no verdict."""
    single = [(r, r.estimate(metric)) for r in found[1:] if len(r.values(metric)) == 1]
    below = [mark(r.label) for r, e in single if e is not None and e.high is not None and e.high < base]
    if not below:
        return ""
    return f"On the held-out rows of one seed, {_named(below)} {'is' if len(below) == 1 else 'are'} below the base."


def _named(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _worst(found: Sequence[Recipe], metric: str, verdicts: Verdicts, base: float | None, mark: Mark) -> str:
    """The recipe that is worst for certain: below the base, else the last that is shown worse than the best."""
    for recipe in reversed(found[1:]):
        estimate, comparison = recipe.estimate(metric), verdicts.get((recipe.label, found[0].label))
        if estimate is None:
            continue
        name = mark(recipe.label)
        several = len(recipe.values(metric)) > 1  # one seed proves nothing, for a recipe or against it
        if several and base is not None and estimate.high is not None and estimate.high < base:
            return f"Avoid {name}: {interval(estimate)} is below the base."
        if comparison is None:
            continue  # it was not among the recipes that were compared
        if comparison.verdict is not Verdict.WORSE:
            return ""
        behind = formatting.number(-comparison.interval.mean)
        return f"Avoid {name}: worse than the best by {behind}, at {interval(estimate)}."
    return ""
