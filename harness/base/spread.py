"""How much the seeds of one recipe differ, when each has only two or three: partial pooling over a sweep. Pure.

Two seeds that coincide by chance give a spread of 0, and then any difference looks certain. Three things mend that:

- Recipes of a sweep lend one another their spread, as genes do in limma (Smyth 2004): a pair's own estimate is
  averaged with that of the whole sweep, whose weight is estimated from how alike the recipes spread.
- No spread is below what the metric's step allows: a value that falls on one of two neighbouring steps has a
  variance of a quarter of a step squared at most.
- The held-out examples, on which all seeds are judged alike, have an error of their own beside it (``stats``).

Every floor can only raise the error, so it raises no false alarm. Sides are compared as two samples, not seed by seed:
seeds of different recipes do not go together (correlations of -0.24 to -0.02 over 24 seeds in
experiments/ci/baseline.json), and pairing two seeds would leave one degree of freedom where two samples leave two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

DUST = 1e-9
"""Values that differ by less than this share of the largest are the same but for rounding of floats."""
CAUTION = 0.5
"""Standard errors added to how unlike the recipes' spreads look, before they lend one another theirs."""
EXACT = 1e6
"""Degrees of freedom that are as good as infinitely many."""


@dataclass(frozen=True)
class Spread:
    """The variance between seeds in one sweep.

    Attributes:
        usual: variance of a recipe as the others have it.
        freedom: degrees of freedom of all recipes together.
        weight: degrees of freedom that it is worth to a single pair (Smyth's prior d0); 0 where there is nobody else.
        step: the metric's smallest step, for the mean of a seed; 0 where it is not known.
    """

    usual: float
    freedom: int
    weight: float
    step: float = 0.0

    @property
    def least(self) -> float:
        """Variance of a seed's mean that the step alone allows."""
        return self.step**2 / 4


@dataclass(frozen=True)
class Error:
    """Of a difference of two means of seeds.

    Attributes:
        size: standard error.
        freedom: its degrees of freedom.
    """

    size: float
    freedom: float


def spread_of(groups: Iterable[Sequence[float]], step: float = 0.0) -> Spread:
    """The spread of a sweep from the means of every recipe's seeds; recipes of one seed say nothing of it."""
    several = [np.asarray(g, float) for g in groups if len(g) > 1]
    if not several:
        return Spread(0.0, 0, 0.0, step)
    freedoms = np.array([len(g) - 1 for g in several])
    variances = np.array([float(g.var(ddof=1)) for g in several])
    pooled = float((freedoms * variances).sum() / freedoms.sum())
    usual, weight = _usual(variances, freedoms, pooled, step**2 / 4) if len(several) > 2 else (pooled, 0.0)
    return Spread(usual, int(freedoms.sum()), weight, step)


def _usual(variances: np.ndarray, freedoms: np.ndarray, pooled: float, least: float) -> tuple[float, float]:
    """What variance to expect of a recipe, and the degrees of freedom of the prior: few where recipes spread unlike.

    The variance of a log chi-square is trigamma(d/2); what is beyond it is trigamma(d0/2) (Smyth 2004, section 6.2).
    A part of the estimate's own error is added, since few recipes that look alike may not be. The variance is half-way
    (in logarithms) between Smyth's, which is too small for the recipes that spread more (7 to 10 false alarms in 100
    sweeps of 3 to 5 recipes), and the mean, which one recipe that has gone wild would blow up for all.
    """
    scale = max(pooled, least)
    if scale == 0:
        return pooled, EXACT
    half = freedoms / 2
    logs = np.log(np.maximum(variances, 1e-4 * scale)) - special.digamma(half) + np.log(half)
    chance, tails = special.polygamma(1, half).mean(), special.polygamma(3, half).mean()
    error = math.sqrt(tails / len(logs) + 2 * chance**2 / (len(logs) - 1))
    beyond = float(logs.var(ddof=1) - chance + CAUTION * error)
    weight = EXACT if beyond <= 0 else min(EXACT, 2 * _inverse_trigamma(beyond))
    if weight == EXACT:
        return pooled, weight
    smyth = math.exp(float(logs.mean()) + float(special.digamma(weight / 2)) - math.log(weight / 2))
    return math.sqrt(smyth * pooled), weight


def _inverse_trigamma(value: float) -> float:
    """Newton's iteration of Smyth 2004, appendix."""
    if value < 1e-6:
        return 1 / value
    found = 0.5 + 1 / value
    for _ in range(50):
        slope = float(special.polygamma(1, found))
        step = slope * (1 - slope / value) / float(special.polygamma(2, found))
        found += step
        if abs(step) < 1e-8 * found:
            break
    return found


def error_of(sides: Sequence[Sequence[float] | np.ndarray], spread: Spread) -> Error:
    """Of the mean of one side, or of the difference of the means of two.

    Degrees of freedom are Welch's, with each side's variance drawn half-way to their mean: at two or three seeds
    variances look unlike by chance, and Welch's own figure then costs an eighth of the power (68 for 78 % at three
    seeds and a difference of three deviations).

    Args:
        sides: means of seeds, at least two on each side.
        spread: of the sweep.
    """
    values = [np.asarray(side, float) for side in sides]
    sizes, freedoms = np.array([len(v) for v in values]), np.array([len(v) - 1 for v in values])
    variances = np.array([float(v.var(ddof=1)) for v in values])
    own = float((variances / sizes).sum())
    drawn = (variances + variances.mean()) / 2 / sizes
    freedom = float(drawn.sum() ** 2 / (drawn**2 / freedoms).sum()) if own > 0 else float(freedoms.sum())
    freedom = min(freedom, float(freedoms.sum()))
    shares = float((1 / sizes).sum())
    square = (spread.weight * spread.usual * shares + freedom * own) / (spread.weight + freedom)
    size = math.sqrt(max(square, spread.least * shares))
    return Error(size, min(spread.weight + freedom, max(float(spread.freedom), freedom)))


def smallest_step(values: Iterable[float]) -> float:
    """The smallest difference between two values that are not the same; 0 where all are.

    It is the metric's step or a multiple of it, never less: as a floor it errs to the safe side.
    """
    found = np.unique(np.fromiter(values, float))
    gaps = np.diff(found)
    dust = DUST * max(1e-300, float(np.abs(found).max(initial=0.0)))
    return float(min((g for g in gaps if g > dust), default=0.0))


def quantile(freedom: float, level: float) -> float:
    """Student's, two-sided."""
    return float(special.stdtrit(freedom, 0.5 + level / 2))


def p_value(mean: float, error: Error) -> float:
    """Two-sided p of a mean that is 0; an error of 0 is one that is not known, and proves nothing."""
    return float(2 * special.stdtr(error.freedom, -abs(mean) / error.size)) if error.size else 1.0
