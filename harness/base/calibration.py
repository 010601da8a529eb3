"""Probabilities held against what happened, labels against labels, errors of means: for the evaluators. Pure.

Apart from ``stats``, whose verdicts may change without a change of any measured number: the evaluators' digest covers
this file and not that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Predictions between ``low`` and ``high``: how many, their mean, and how often the event came."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def brier(predicted: Sequence[float], happened: Sequence[float]) -> float:
    """Mean squared difference of probability and event (Brier 1950); 0 is perfect, a constant ½ scores ¼."""
    return float(((column(predicted) - column(happened)) ** 2).mean())


def reliability(
    predicted: Sequence[float] | np.ndarray,
    happened: Sequence[float] | np.ndarray,
    bins: int = 10,
    span: tuple[float, float] = (0.0, 1.0),
) -> list[Bin]:
    """Bins of equal width over ``span``, closed on the right, the first on both sides; empty ones are left out."""
    p, y = column(predicted), column(happened)
    edges = np.linspace(*span, bins + 1)
    index = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, bins - 1)
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(inside.sum()), float(p[inside].mean()), float(y[inside].mean()))
        for i in range(bins)
        if (inside := index == i).any()
    ]


def confidence(chosen: list[float]) -> tuple[list[float], list[float]]:
    """Probabilities that the chosen side is better -> confidence in the preferred side, and whether it was right."""
    sure = [max(p, 1 - p) for p in chosen]
    return sure, [1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in chosen]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean gap of predicted and observed, bins weighted by their count (Naeini et al. 2015)."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.predicted - b.observed) for b in bins) / total


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960); None where chance alone would agree always."""
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError("two raters of the same items are needed")
    seen = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(first.count(label) * second.count(label) for label in set(first)) / n**2
    return None if chance == 1 else (seen - chance) / (1 - chance)


def length_controlled_rate(won: Sequence[float], length_difference: Sequence[float]) -> float | None:
    """The win rate to expect at equal length: a logistic regression of wins on length difference, read at 0.

    In the spirit of AlpacaEval 2 (arXiv 2404.04475), with the length difference divided by its deviation and squashed
    by tanh. A penalty of half the squared slope keeps it finite where length separates wins from losses.

    Args:
        won: 1, 0, or ½ for a tie.
        length_difference: own length less the opponent's.

    Returns:
        None where nothing was compared.
    """
    y, gap = np.asarray(won, float), np.asarray(length_difference, float)
    if len(y) == 0:
        return None
    deviation = float(gap.std())
    x = np.tanh(gap / deviation) if deviation else np.zeros_like(gap)
    design, penalty = np.stack([np.ones_like(x), x], axis=1), np.diag([1e-6, 1.0])
    weights = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (p - y) + penalty @ weights
        curvature = (design.T * (p * (1 - p))) @ design + penalty
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-weights[0])))


# -- errors of means over groups ------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A mean of values between 0 and 1, with its 95 % interval.

    Attributes:
        error: standard error, with clusters as units; None of one cluster.
        low, high: within [0, 1]; None of one cluster.
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None


def numbered(clusters: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """Groups as numbers from 0; each value is a group of its own where none are given.

    Raises:
        ValueError: not one for each value.
    """
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} clusters for {n} values")
    places: dict[Hashable, int] = {}
    return np.array([places.setdefault(c, len(places)) for c in clusters])


def clustered_error(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of a mean whose values come in groups: pairs of one prompt rise and fall together.

    The mean is a ratio of sums over groups, linearised (Cochran 1977, equation 9.16); groups of one value give
    the plain standard error. None for fewer than two groups.
    """
    sample = column(values)
    groups = numbered(clusters, len(sample))
    count = int(groups.max()) + 1
    if count < 2:
        return None
    sums = np.bincount(groups, sample - sample.mean())
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(sample)


def share(values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, draws: int = 1) -> Share:
    """A share with Wilson's interval (1927) for as many independent values as its clusters are worth.

    That number is p(1 - p) over the squared clustered error (Kish's design effect), and that of the values at most;
    where all agree the error says nothing, and every cluster is taken to be of one mind. Student's quantile with as
    many degrees of freedom as there are clusters, less one, stands in for the normal one (Korn and Graubard 1998).
    docs/metrics.md has its coverage at 5 to 500 clusters.

    Args:
        values: each between 0 and 1.
        clusters: what each belongs to; None: to itself.
        draws: independent draws of which each value is the mean.
    """
    sample = column(values)
    mean, error = float(sample.mean()), clustered_error(values, clusters)
    if error is None:
        return Share(mean, None, None, None)
    sizes = np.bincount(numbered(clusters, len(sample)))
    worth = mean * (1 - mean) / error**2 if error > 1e-12 else len(sample) ** 2 / float((sizes**2).sum())
    low, high = wilson(mean, min(worth, draws * len(sample)), t_quantile(len(sizes) - 1))
    return Share(mean, error, low, high)


def t_quantile(freedom: float) -> float:
    """Student's, for a 95 % interval."""
    from scipy import special

    return float(special.stdtrit(freedom, 0.975))


def wilson(mean: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share of ``n`` independent values."""
    square = quantile**2 / n
    centre = (mean + square / 2) / (1 + square)
    reach = math.sqrt(mean * (1 - mean) * square + square**2 / 4) / (1 + square)
    return max(0.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach))


def bootstrap_error(
    measure: Callable[[np.ndarray], float], n: int, clusters: Sequence[Hashable] | None = None, *, resamples: int = 500
) -> float | None:
    """Standard error of any figure of ``n`` values, by drawing whole clusters anew; None of fewer than two.

    Args:
        measure: the figure, from the places of the values that were drawn.
        n: number of values.
        clusters: what each value belongs to.
        resamples: 500 give the error to 3 %.
    """
    groups = numbered(clusters, n)
    count = int(groups.max()) + 1
    if count < 2:
        return None
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    rng = np.random.default_rng(0)
    found = [measure(np.concatenate([members[g] for g in rng.integers(0, count, count)])) for _ in range(resamples)]
    return float(np.std(found, ddof=1))


def column(values: Any) -> np.ndarray:
    """Values as an array.

    Raises:
        ValueError: there are none, or they have more than one dimension.
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) == 0:
        raise ValueError("values are needed, in one dimension")
    return found
