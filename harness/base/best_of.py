"""What the best of so many random draws is expected to score, and whether that tells two searches apart. Pure.

A search that tries more finds more, so two algorithms are compared at an equal number of draws (Dodge et al. 2019,
arXiv 1909.03004). Their estimate draws with replacement and is biased; this one is the unbiased U-statistic (Tang et
al. 2020, arXiv 2004.08097).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.base.stats import Interval

RESAMPLES = 2_000
LEVEL = 0.95


def expected_best(values: Sequence[float], n: int) -> float:
    """The mean, over all subsets of ``n`` of the values, of the highest of the subset.

    Args:
        values: scores of independent draws; higher is better.
        n: from 1 to their number.
    """
    return float(np.sort(np.asarray(values, dtype=float)) @ _weights(len(values), n))


def expected_choice(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """The mean, over all subsets of ``n`` draws, of the value of the draw that scores highest in the subset.

    Of draws that score alike each is as likely to be the one.

    Args:
        scores: of independent draws, by which one is chosen; higher is better.
        values: of the same draws.
        n: from 1 to their number.
    """
    order = np.argsort(np.asarray(scores, dtype=float), kind="stable")
    ranked, weights = np.asarray(scores, dtype=float)[order], _weights(len(scores), n)
    _, groups = np.unique(ranked, return_inverse=True)
    shared = np.bincount(groups, weights) / np.bincount(groups)
    return float(np.asarray(values, dtype=float)[order] @ shared[groups])


def distance(n: int) -> float:
    """KL of best-of-``n`` to the policy that the draws are of, in nats: log n - (n - 1) / n.

    Exact where no two draws are alike, and an upper bound elsewhere (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def half(draws: int) -> int:
    """The number of draws at which searches are compared: the best of all is one value, that of half is a mean."""
    return max(1, math.ceil(draws / 2))


def curve(values: Sequence[float], seed: int = 0) -> list[Interval]:
    """The expected best of 1, 2, … of the values, each with the 95 % interval of the luck of the draw (bootstrap)."""
    resampled = np.sort(_resampled(values, np.random.default_rng(seed)), axis=1)
    found = []
    for n in range(1, len(values) + 1):
        low, high = np.quantile(resampled @ _weights(len(values), n), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found.append(Interval(expected_best(values, n), float(low), float(high), len(values), "bootstrap"))
    return found


def told_apart(one: Sequence[float], other: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Expected best of ``one`` less that of ``other``, each of half of its draws, and the p-value of the difference.

    Two-sided, by permutation: whether luck alone tells so much between two searches of one and the same thing. That an
    algorithm's winner beats another's on the test split says less: each winner is one draw's luck, and with equal
    algorithms such a comparison finds a difference in a quarter to a half of all cases (docs/tuning.md).

    Args:
        one: scores of independent draws; higher is better.
        other: likewise.
        seed: of the permutations.
    """
    generator = np.random.default_rng(seed)
    pool, cut = np.asarray([*one, *other], dtype=float), len(one)
    mixed = pool[np.argsort(generator.random((RESAMPLES, len(pool))), axis=1)]
    sides = np.sort(mixed[:, :cut], axis=1), np.sort(mixed[:, cut:], axis=1)
    chance = sides[0] @ _weights(cut, half(cut)) - sides[1] @ _weights(len(other), half(len(other)))
    found = expected_best(one, half(cut)) - expected_best(other, half(len(other)))
    as_much = int((np.abs(chance) >= abs(found) - 1e-12).sum())
    return found, (1 + as_much) / (1 + RESAMPLES)


def _weights(count: int, n: int) -> Any:
    """Of each of ``count`` sorted values, the share of subsets of ``n`` whose highest it is."""
    return np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])


def _resampled(values: Sequence[float], generator: np.random.Generator) -> Any:
    drawn = generator.integers(0, len(values), (RESAMPLES, len(values)))
    return np.asarray(values, dtype=float)[drawn]
