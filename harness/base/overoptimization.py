"""The law of reward over-optimization (Gao, Schulman and Hilton 2022, arXiv 2210.10760), fitted to points. Pure.

With d = sqrt(KL to the policy before training), the change of a reward follows

    reinforcement learning: R(d) = d (alpha - beta log d)
    best of n:              R(d) = d (alpha - beta d)

Both are linear in alpha and beta, so least squares has one solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from harness.base.stats import Interval

Form = Literal["rl", "best_of_n"]
FEWEST = 4
"""Points of a fit of two parameters: with fewer, a curve passes through almost anything."""
FEWEST_GROUPS = 3
"""Seeds to draw from; of fewer, points are drawn."""
DRAWS = 2000
LEVEL = 0.95


class Observed(NamedTuple):
    """A point.

    Attributes:
        group: the training that it is of, such as a seed.
        kl: nats per completion, to the policy before training.
        change: of a reward since then.
    """

    group: str
    kl: float
    change: float


@dataclass(frozen=True)
class Law:
    """A fit.

    Attributes:
        alpha, beta: with their 95 % intervals by bootstrap; without bounds where too few draws could be fitted.
        explained: share of the variance of the changes that it explains; below 0 where their mean says more.
        points: that it rests on.
        drawn: what the bootstrap draws: ``seeds`` or ``points``.
    """

    form: Form
    alpha: Interval
    beta: Interval
    explained: float
    points: int
    drawn: str

    def __call__(self, kl: float) -> float:
        """The change of the reward that the law expects at a KL, in nats per completion."""
        return float(_columns(self.form, np.sqrt([kl]))[0] @ [self.alpha.mean, self.beta.mean]) if kl > 0 else 0.0


def fit(form: Form, observed: Sequence[Observed], *, seed: int = 0) -> Law | str:
    """The law by least squares, or why there is none, in words.

    Points whose KL is not above 0 (an estimate may be below) say nothing: the law is 0 there whatever its parameters.

    Args:
        form: of the law.
        observed: points of one recipe; those of several seeds together.
        seed: of the bootstrap, which draws seeds where there are three, and single points elsewhere.
    """
    used = [o for o in observed if o.kl > 0]
    if len(used) < FEWEST:
        return f"{len(used)} of {len(observed)} points have a KL above 0, and a fit needs {FEWEST}"
    distance = np.sqrt([o.kl for o in used])
    columns, changes = _columns(form, distance), np.array([o.change for o in used])
    best = _solved(columns, changes)
    if best is None:
        return "the points are at one distance, which two parameters cannot be told from"
    groups = [np.flatnonzero([o.group == name for o in used]) for name in dict.fromkeys(o.group for o in used)]
    by_seed = len(groups) >= FEWEST_GROUPS
    units = groups if by_seed else [np.array([i]) for i in range(len(used))]
    rng = np.random.default_rng(seed)
    count = len(units)
    drawn = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(DRAWS)])
    member = np.zeros((count, len(used)))
    for row, unit in zip(member, units, strict=True):
        row[unit] = 1.0
    draws = _solved_weighted(columns, changes, drawn @ member)
    alpha, beta = (_interval(best[i], draws[:, i], len(used)) for i in (0, 1))
    around = float(((changes - changes.mean()) ** 2).sum())
    explained = 1 - float(((changes - columns @ best) ** 2).sum()) / around if around else 0.0
    return Law(form, alpha, beta, explained, len(used), "seeds" if by_seed else "points")


def _columns(form: Form, distance: np.ndarray) -> np.ndarray:
    """What alpha and beta are multiplied by, (points, 2)."""
    return np.stack([distance, -distance * (np.log(distance) if form == "rl" else distance)], axis=1)


def _solved(columns: np.ndarray, changes: np.ndarray) -> np.ndarray | None:
    """Least squares; None where the points do not determine both parameters."""
    if np.linalg.matrix_rank(columns) < 2:
        return None
    return np.linalg.lstsq(columns, changes, rcond=None)[0]


def _solved_weighted(columns: np.ndarray, changes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares for each row of ``weights`` (draws, points), those that determine both parameters: (n, 2)."""
    a, b = columns.T
    aa, ab, bb, ay, by = (weights @ product for product in (a * a, a * b, b * b, a * changes, b * changes))
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-12 * aa * bb
    alpha, beta = bb * ay - ab * by, aa * by - ab * ay
    return np.stack([alpha[sound], beta[sound]], axis=1) / determinant[sound, None]


def _interval(mean: float, draws: np.ndarray, points: int) -> Interval:
    if 2 * len(draws) < DRAWS:
        return Interval(float(mean), None, None, points, "too few draws")
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(mean), float(low), float(high), points, "bootstrap")
