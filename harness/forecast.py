"""Probabilities held against what happened, and labels against labels: what the evaluators compute with. Pure.

Apart from ``stats``, whose verdicts may change without a change of any measured number: the evaluators' digest covers
this file and not that one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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
    predicted: Sequence[float], happened: Sequence[float], bins: int = 10, span: tuple[float, float] = (0.0, 1.0)
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


def column(values: Any) -> np.ndarray:
    """Values as an array.

    Raises:
        ValueError: there are none, or they have more than one dimension.
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) == 0:
        raise ValueError("values are needed, in one dimension")
    return found
