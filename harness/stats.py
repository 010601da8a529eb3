"""Estimates, comparisons and verdicts: pure functions of numbers, scipy where it has the test.

Two sources of noise are kept apart. *Examples* (held-out pairs, prompts): two trials judged on the same examples are
compared example by example. *Seeds*: a recipe is what its seeds have in common, so recipes are compared by the
differences of their seed means, seed by seed; a hierarchical bootstrap covers 84 % at two seeds and 89 % at three where
a t interval covers 95 %.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from harness.forecast import column

LEVEL = 0.95
RESAMPLES = 9999
MOST_SEEDS = 100
"""A need for more seeds than this is told as "more than"."""

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


@dataclass(frozen=True)
class Comparison:
    """First minus second.

    Attributes:
        interval: of the difference.
        p: two-sided; after the correction for many comparisons where they were made together.
        seeds: shared by both sides; with one, examples alone were compared, and seeds may differ by more.
        examples: shared by both sides, per seed.
        margin: differences smaller than this do not matter.
        needed: seeds that would probably settle it; None where it is settled, or nothing is known of the spread.
    """

    interval: Interval
    p: float
    seeds: int
    examples: int
    margin: float
    verdict: Verdict
    needed: int | None

    def __str__(self) -> str:
        """The verdict in words."""
        if self.verdict is not Verdict.OPEN or self.needed is None:
            return str(self.verdict)
        return f"{self.verdict} ({f'about {self.needed}' if self.needed <= MOST_SEEDS else f'more than {MOST_SEEDS}'})"


# -- intervals -----------------------------------------------------------------------------------------


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of a mean; made for few values, such as the means of seeds.

    Raises:
        ValueError: no values.
    """
    sample = column(values)
    if len(sample) < 2:
        return Interval(float(sample[0]), None, None, 1, "one value")
    mean, error = float(sample.mean()), _standard_error(sample)
    reach = _quantile(len(sample) - 1, level) * error
    return Interval(mean, mean - reach, mean + reach, len(sample), "t")


def bootstrap_interval(
    values: Sequence[float], level: float = LEVEL, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bias-corrected and accelerated bootstrap of a mean (Efron 1987); made for many values, such as examples.

    A paired bootstrap is this one on the differences.

    Raises:
        ValueError: no values.
    """
    sample = column(values)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, None, None, 1, "one value")
    if np.ptp(sample) < 1e-12:
        return Interval(mean, mean, mean, len(sample), "all values equal")
    found: Any = scipy_stats.bootstrap(
        (sample,), np.mean, confidence_level=level, n_resamples=resamples, method="BCa",
        rng=np.random.default_rng(seed), vectorized=True, batch=1000,
    ).confidence_interval  # fmt: skip
    return Interval(mean, float(found.low), float(found.high), len(sample), "bootstrap")


def over_seeds(scores: Scores, level: float = LEVEL) -> Interval:
    """A recipe's mean: over the means of its seeds, or over its examples where it has one seed.

    Raises:
        ValueError: no seeds, or one without examples.
    """
    means = [float(column(values).mean()) for values in scores.values()]
    if len(means) != 1:
        return t_interval(means, level)
    return bootstrap_interval(next(iter(scores.values())), level)


# -- comparisons ---------------------------------------------------------------------------------------


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided p of McNemar's test: are rights and wrongs that differ between two models even?

    Args:
        first: 1 where the first model is right, 0 where it is wrong.
        second: the same examples under the second model.
    """
    a, b = column(first), column(second)
    won, lost = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return float(scipy_stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def compare(first: Scores, second: Scores, *, margin: float, higher_is_better: bool = True) -> Comparison:
    """Two recipes on the seeds they share.

    With two seeds or more the means of each seed's paired differences carry a t interval. With one seed the examples
    do: a bootstrap of the paired differences, and McNemar's p where every value is 0 or 1.

    Args:
        first: see ``Scores``.
        second: likewise.
        margin: half-width of the band in which a difference does not matter.
        higher_is_better: what the verdict means by better.

    Raises:
        ValueError: no shared seed, or numbers of examples that differ.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("no seed is shared")
    pairs = [(column(first[seed]), column(second[seed])) for seed in shared]
    if any(len(a) != len(b) for a, b in pairs):
        raise ValueError("the two sides were judged on different numbers of examples")
    differences = [a - b for a, b in pairs]
    examples = len(differences[0])
    if len(shared) > 1:
        means = np.array([d.mean() for d in differences])
        interval, p = t_interval(means.tolist()), _t_test(means)
    else:
        interval = bootstrap_interval(differences[0].tolist())
        both = np.concatenate(pairs[0])
        p = (
            mcnemar(pairs[0][0].tolist(), pairs[0][1].tolist())
            if np.isin(both, (0.0, 1.0)).all()
            else _t_test(differences[0])
        )
    found = Comparison(interval, p, len(shared), examples, margin, Verdict.OPEN, None)
    return judged(found, p, higher_is_better=higher_is_better)


def compare_all(
    recipes: Mapping[str, Scores], *, margin: float, higher_is_better: bool = True
) -> dict[tuple[str, str], Comparison]:
    """Every pair of recipes; p-values by Holm's procedure, so that the whole sweep has 5 % false alarms at most.

    The pair that a table singles out (best and runner-up) was chosen by looking, so all pairs count.

    Returns:
        both orders of each pair.
    """
    names = list(itertools.combinations(recipes, 2))
    raw = [
        compare(recipes[a], recipes[b], margin=margin, higher_is_better=higher_is_better) for a, b in names
    ]  # fmt: skip
    found: dict[tuple[str, str], Comparison] = {}
    for (a, b), comparison, p in zip(names, raw, holm([c.p for c in raw]), strict=True):
        found[a, b] = judged(comparison, p, higher_is_better=higher_is_better)
        found[b, a] = judged(_turned(comparison), p, higher_is_better=higher_is_better)
    return found


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

    Of a single seed the interval knows the examples alone, and two seeds of one recipe may well differ by more. So
    it must lie beyond the margin as a whole before anything is called better or worse.
    """
    interval, margin = comparison.interval, comparison.margin
    if interval.low is None or interval.high is None:
        return replace(comparison, p=p, verdict=Verdict.OPEN, needed=None)
    if -margin < interval.low and interval.high < margin:
        verdict = Verdict.TIE
    elif (
        p < 1 - LEVEL
        and interval.mean != 0
        and (comparison.seeds > 1 or interval.low > margin or interval.high < -margin)
    ):
        verdict = Verdict.BETTER if (interval.mean > 0) == higher_is_better else Verdict.WORSE
    else:
        verdict = Verdict.OPEN
    needed = seeds_needed(comparison, p / comparison.p if comparison.p else 1.0) if verdict is Verdict.OPEN else None
    return replace(comparison, p=p, verdict=verdict, needed=needed)


def seeds_needed(comparison: Comparison, correction: float = 1.0) -> int | None:
    """The fewest seeds at which an interval with this mean and spread would lie inside the margin, or beside 0.

    ``correction`` is the factor by which other comparisons of the sweep raise p, which must then stay below 5 %.
    None with one seed, which says nothing of the spread between seeds; ``MOST_SEEDS + 1`` where it takes more.
    """
    interval, n = comparison.interval, comparison.seeds
    if n < 2 or interval.high is None:
        return None
    size = abs(interval.mean)
    deviation = (interval.high - interval.mean) / _quantile(n - 1) * math.sqrt(n)
    for wanted in range(n + 1, MOST_SEEDS + 1):
        error = deviation / math.sqrt(wanted)
        tie = size + _quantile(wanted - 1) * error < comparison.margin
        if tie or size > _quantile(wanted - 1, 1 - (1 - LEVEL) / max(1.0, correction)) * error:
            return wanted
    return MOST_SEEDS + 1


@functools.cache
def _quantile(freedom: int, level: float = LEVEL) -> float:
    """Student's, two-sided."""
    return float(scipy_stats.t.ppf(0.5 + level / 2, freedom))


def _standard_error(sample: np.ndarray) -> float:
    return float(sample.std(ddof=1)) / math.sqrt(len(sample))


def _t_test(differences: np.ndarray) -> float:
    """Two-sided p of a mean that is 0."""
    if len(differences) < 2:
        return 1.0
    error = _standard_error(differences)
    if error == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(2 * scipy_stats.t.sf(abs(differences.mean()) / error, len(differences) - 1))


def _turned(comparison: Comparison) -> Comparison:
    i = comparison.interval
    low = None if i.high is None else -i.high
    high = None if i.low is None else -i.low
    return replace(comparison, interval=replace(i, mean=-i.mean, low=low, high=high))
