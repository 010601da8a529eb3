"""Estimates, comparisons and verdicts: pure functions of numbers.

Two sources of noise are kept apart. *Examples* (held-out pairs, prompts): two trials judged on the same examples are
compared example by example, and examples that share a prompt are one cluster. *Seeds*: a recipe is what its seeds have
in common, so recipes are compared by the means of their seeds, with the spread that the whole sweep shows
(``spread``). One seed proves nothing of a recipe: it gets no verdict.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from harness.base.calibration import clustered_error, column, numbered
from harness.base.spread import Error, Spread, error_of, p_value, quantile, smallest_step, spread_of

LEVEL = 0.95
MOST_SEEDS = 100
SAME = 0.05
"""Of true reward or of a share: a difference that decides nothing."""
"""A need for more seeds than this is told as "more than"."""
ROUNDING = 1e-12
"""Of a mean: a smaller error is that of the arithmetic."""

Scores = Mapping[int, Sequence[float]]
"""A recipe's results: seed -> a value per example, in an order that all recipes share."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        low, high: bounds; None where one value alone leaves the spread unknown.
        n: values it rests on.
        method: how the bounds were found.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str


class Verdict(StrEnum):
    """What a comparison says of the first side."""

    BETTER = "better"
    WORSE = "worse"
    TIE = "tie"
    OPEN = "needs more seeds"
    ONE_SEED = "one seed"


@dataclass(frozen=True)
class Comparison:
    """First minus second.

    Attributes:
        interval: of the difference.
        p: two-sided; after the correction for many comparisons where they were made together.
        seeds: of the side that has fewer; with one, examples alone were compared, and seeds may differ by more.
        examples: shared by both sides, per seed.
        margin: differences smaller than this do not matter.
        verdict: ``one seed`` where a side has no more than that.
        needed: seeds that would probably settle it; None where it is settled, or nothing is known of the spread.
        freedom: degrees of freedom of the interval.
        rows_error: standard error that the examples leave however many seeds there are.
    """

    interval: Interval
    p: float
    seeds: int
    examples: int
    margin: float
    verdict: Verdict
    needed: int | None
    freedom: float = 1.0
    rows_error: float = 0.0

    def __str__(self) -> str:
        """The verdict in words."""
        if self.verdict is not Verdict.OPEN or self.needed is None:
            return str(self.verdict)
        return f"{self.verdict} ({f'about {self.needed}' if self.needed <= MOST_SEEDS else f'more than {MOST_SEEDS}'})"

    @property
    def turned(self) -> Comparison:
        """Second minus first; the verdict must be found anew."""
        i = self.interval
        low, high = None if i.high is None else -i.high, None if i.low is None else -i.low
        return replace(self, interval=replace(i, mean=-i.mean, low=low, high=high))


# -- intervals -----------------------------------------------------------------------------------------


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of a mean; made for few values, such as the means of seeds.

    Raises:
        ValueError: no values.
    """
    sample = column(values)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, None, None, 1, "one value")
    return _around(mean, Error(float(sample.std(ddof=1)) / math.sqrt(len(sample)), len(sample) - 1), len(sample), level)


def rows_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    *,
    least: float = 0.0,
) -> Interval:
    """Student's interval of a mean of many values, such as examples, with their clusters as units.

    A paired comparison is this one on the differences. ``least`` is a standard error below which it cannot be. Where
    all values are alike and not 0 there are no bounds: three equal differences say nothing of how the fourth would be.

    Raises:
        ValueError: no values.
    """
    sample, error = column(values), clustered_error(values, clusters)
    mean = float(sample.mean())
    if error is None:
        return Interval(mean, None, None, len(sample), "one cluster")
    size = max(error, least)
    if size <= ROUNDING * abs(mean):
        bound = 0.0 if mean == 0 else None
        return Interval(mean, bound, bound, len(sample), "all rows alike")
    freedom = int(numbered(clusters, len(sample)).max())
    return _around(mean, Error(size, freedom), len(sample), level, "held-out rows")


def _around(mean: float, error: Error, n: int, level: float = LEVEL, method: str = "t") -> Interval:
    reach = quantile(error.freedom, level) * error.size
    return Interval(mean, mean - reach, mean + reach, n, method)


# -- comparisons ---------------------------------------------------------------------------------------


def compare(
    first: Scores,
    second: Scores,
    *,
    margin: float,
    higher_is_better: bool = True,
    clusters: Sequence[Hashable] | None = None,
    spread: Spread | None = None,
) -> Comparison:
    """Two recipes, each by all of its seeds.

    With two seeds or more on both sides the difference of their means carries a t interval: the wider of that of the
    seeds and that of the examples. With one the differences on the examples are told, and no verdict.

    Args:
        first: see ``Scores``.
        second: likewise.
        margin: half-width of the band in which a difference does not matter.
        higher_is_better: what the verdict means by better.
        clusters: what each example belongs to, such as its prompt; None: to itself.
        spread: of the sweep; None is that of the two.

    Raises:
        ValueError: no seed, or numbers of examples that differ.
    """
    found = _raw(_by_example(first), _by_example(second), margin, clusters, spread or spread_in([first, second]))
    return judged(found, found.p, higher_is_better=higher_is_better)


def compare_all(
    recipes: Mapping[str, Scores],
    *,
    margin: float,
    higher_is_better: bool = True,
    clusters: Sequence[Hashable] | None = None,
) -> dict[tuple[str, str], Comparison]:
    """Every pair of recipes; p-values by Holm's procedure, so that the whole sweep has 5 % false alarms at most.

    The pair that a table singles out (best and runner-up) was chosen by looking, so all pairs count.

    Returns:
        both orders of each pair.
    """
    names, spread = list(itertools.combinations(recipes, 2)), spread_in(list(recipes.values()))
    values = {name: _by_example(scores) for name, scores in recipes.items()}
    raw = [_raw(values[a], values[b], margin, clusters, spread) for a, b in names]
    found: dict[tuple[str, str], Comparison] = {}
    for (a, b), comparison, p in zip(names, raw, _corrected(raw), strict=True):
        found[a, b] = judged(comparison, p, higher_is_better=higher_is_better)
        found[b, a] = judged(comparison.turned, p, higher_is_better=higher_is_better)
    return found


def against(
    recipes: Mapping[str, Scores],
    fixed: Sequence[float],
    *,
    margin: float = 0.0,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Comparison]:
    """Every recipe against what has no seeds (the base, length alone); corrected for their number (Holm).

    Args:
        recipes: label -> scores.
        fixed: a value per example, or its mean alone: then the examples' error is not known.
        margin: as in ``compare``.
        clusters: likewise.
    """
    spread, raw = spread_in(list(recipes.values())), []
    for scores in recipes.values():
        values, held = _by_example(scores), np.asarray(fixed, float)
        if len(held) != values.shape[1]:
            values, held = values.mean(axis=1, keepdims=True), held.mean(keepdims=True)
        centred = (values - held.mean()).mean(axis=1)
        kept = clusters if values.shape[1] == len(clusters or ()) else None
        raw.append(_compared(values.mean(axis=0) - held, [centred], margin, kept, spread))
    corrected = zip(recipes, raw, _corrected(raw), strict=True)
    return {label: judged(comparison, p, higher_is_better=True) for label, comparison, p in corrected}


def spread_in(recipes: Sequence[Scores]) -> Spread:
    """The spread between seeds of a sweep, with the step of the metric's means."""
    values = [_by_example(scores) for scores in recipes]
    step = smallest_step(v for table in values for v in table.ravel())
    return spread_of([table.mean(axis=1).tolist() for table in values], step / max(v.shape[1] for v in values))


def _by_example(scores: Scores) -> np.ndarray:
    """Of shape (seeds, examples)."""
    if not scores:
        raise ValueError("no seed is there")
    rows = [column(values) for _, values in sorted(scores.items())]
    if len({len(r) for r in rows}) > 1:
        raise ValueError("seeds were judged on different numbers of examples")
    return np.stack(rows)


def _raw(
    first: np.ndarray, second: np.ndarray, margin: float, clusters: Sequence[Hashable] | None, spread: Spread
) -> Comparison:
    """Two tables of shape (seeds, examples); not judged yet."""
    if first.shape[1] != second.shape[1]:
        raise ValueError("the two sides were judged on different numbers of examples")
    differences = first.mean(axis=0) - second.mean(axis=0)
    return _compared(differences, [first.mean(axis=1), second.mean(axis=1)], margin, clusters, spread)


def _compared(
    differences: np.ndarray,
    means: Sequence[np.ndarray],
    margin: float,
    clusters: Sequence[Hashable] | None,
    spread: Spread,
) -> Comparison:
    """Of differences per example, averaged over seeds, and the means of each side's seeds; not judged yet."""
    seeds, examples = min(map(len, means)), len(differences)
    if seeds < 2:
        interval = rows_interval(differences, clusters)
        return Comparison(interval, 1.0, seeds, examples, margin, Verdict.ONE_SEED, None)
    error, mean = error_of(means, spread), float(differences.mean())
    rows_error = clustered_error(differences, clusters) or 0.0
    rows = Error(rows_error, max(1, int(numbered(clusters, examples).max())))
    wider = max((error, rows), key=lambda e: quantile(e.freedom, LEVEL) * e.size)
    p = max(p_value(mean, error), p_value(mean, rows) if rows_error else 0.0)  # both must say so
    interval = _around(mean, wider, seeds)
    return Comparison(interval, p, seeds, examples, margin, Verdict.OPEN, None, error.freedom, rows_error)


def _corrected(raw: Sequence[Comparison]) -> list[float]:
    """Holm's p of those that have two seeds; the others are not tested."""
    tested = iter(holm([c.p for c in raw if c.seeds > 1]))
    return [next(tested) if c.seeds > 1 else 1.0 for c in raw]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure (1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def judged(comparison: Comparison, p: float, *, higher_is_better: bool) -> Comparison:
    """The verdict: a tie where the interval lies inside the margin; better or worse where p is below 5 %.

    None of these with one seed: two seeds of one recipe may differ by more than the examples tell (with verdicts of
    their own, 10.7 % of equal recipes got one).
    """
    interval, margin = comparison.interval, comparison.margin
    if comparison.seeds < 2:
        return replace(comparison, p=p, verdict=Verdict.ONE_SEED, needed=None)
    if interval.low is None or interval.high is None:
        return replace(comparison, p=p, verdict=Verdict.OPEN, needed=None)
    if -margin < interval.low and interval.high < margin:
        verdict = Verdict.TIE
    elif p < 1 - LEVEL and interval.mean != 0:
        verdict = Verdict.BETTER if (interval.mean > 0) == higher_is_better else Verdict.WORSE
    else:
        verdict = Verdict.OPEN
    needed = seeds_needed(comparison, p / comparison.p if comparison.p else 1.0) if verdict is Verdict.OPEN else None
    return replace(comparison, p=p, verdict=verdict, needed=needed)


def seeds_needed(comparison: Comparison, correction: float = 1.0) -> int | None:
    """The fewest seeds at which an interval with this mean and spread would lie inside the margin, or beside 0.

    ``correction`` is the factor by which other comparisons of the sweep raise p, which must then stay below 5 %.
    None with one seed, which says nothing of the spread between seeds; ``MOST_SEEDS + 1`` where it takes more. The
    error of the examples stays, however many seeds there are.
    """
    interval, n = comparison.interval, comparison.seeds
    if n < 2 or interval.high is None:
        return None
    size = abs(interval.mean)
    error = (interval.high - interval.mean) / quantile(comparison.freedom, LEVEL)

    def settles(wanted: int) -> bool:
        smaller = max(error * math.sqrt(n / wanted), comparison.rows_error)
        freedom = comparison.freedom * (wanted - 1) / (n - 1)
        tie = size + quantile(freedom, LEVEL) * smaller < comparison.margin
        return tie or size > quantile(freedom, 1 - (1 - LEVEL) / max(1.0, correction)) * smaller

    return n + 1 + bisect.bisect_left(range(n + 1, MOST_SEEDS + 1), True, key=settles)
