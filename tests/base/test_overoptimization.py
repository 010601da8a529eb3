"""The law of over-optimization: its parameters are found again where they are known, and too few points say so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.base.overoptimization import FEWEST, Law, Observed, fit


def along(form: str, alpha: float, beta: float, distances: list[float], group: str = "s0") -> list[Observed]:
    """Points on the law, by its formula."""
    bent = {"rl": math.log, "best_of_n": float}[form]
    return [Observed(group, d * d, d * (alpha - beta * bent(d))) for d in distances]


def test_points_worked_out_by_hand_give_their_parameters():
    """R(d) = d (1 - 0.5 log d): R(1) = 1, R(e) = e / 2, R(e^2) = 0, R(1/e) = 1.5 / e."""
    e = math.e
    found = fit("rl", [Observed("s", *p) for p in [(1, 1.0), (e**2, e / 2), (e**4, 0.0), (e**-2, 1.5 / e)]])
    assert isinstance(found, Law)
    assert (found.alpha.mean, found.beta.mean) == (pytest.approx(1.0), pytest.approx(0.5))
    assert found.points == 4 and found.drawn == "points"
    assert found(e**2) == pytest.approx(e / 2) and found(0.0) == 0.0


def test_best_of_n_bends_with_the_distance_and_not_with_its_logarithm():
    """R(d) = d (2 - 0.25 d): R(1) = 1.75, R(2) = 3, R(4) = 4, R(8) = 0."""
    found = fit("best_of_n", [Observed("s", *p) for p in [(1, 1.75), (4, 3.0), (16, 4.0), (64, 0.0)]])
    assert isinstance(found, Law)
    assert (found.alpha.mean, found.beta.mean) == (pytest.approx(2.0), pytest.approx(0.25))


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_on_the_law_itself_the_interval_has_no_width(form):
    found = fit(form, along(form, 0.3, 0.1, [0.5, 1.0, 2.0, 3.0, 5.0, 6.0]))
    assert isinstance(found, Law)
    for interval, truth in ((found.alpha, 0.3), (found.beta, 0.1)):
        assert interval.low == pytest.approx(truth) and interval.high == pytest.approx(truth)


def test_noisy_points_of_many_seeds_give_intervals_that_hold_the_truth_and_seeds_are_drawn_whole():
    rng = np.random.default_rng(3)
    observed = [
        o._replace(change=o.change + float(rng.normal(0, 0.05)))
        for seed in range(8)
        for o in along("rl", 0.6, 0.2, [0.5, 1.0, 2.0, 3.0, 4.0], f"s{seed}")
    ]
    found = fit("rl", observed)
    assert isinstance(found, Law) and found.drawn == "seeds" and found.points == 40
    for interval, truth in ((found.alpha, 0.6), (found.beta, 0.2)):
        assert interval.low is not None and interval.high is not None
        assert interval.low < truth < interval.high and interval.high - interval.low < 0.1
    assert fit("rl", observed) == found, "the same draws"


def test_too_few_points_say_so():
    points = along("rl", 1.0, 0.5, [1.0, 2.0, 3.0])
    assert fit("rl", points) == f"3 of 3 points have a KL above 0, and a fit needs {FEWEST}"
    below = [*points, Observed("s0", -0.2, 0.1), Observed("s0", 0.0, 0.0)]
    assert fit("rl", below) == f"3 of 5 points have a KL above 0, and a fit needs {FEWEST}"


def test_points_at_one_distance_determine_nothing():
    assert "at one distance" in str(fit("rl", along("rl", 1.0, 0.5, [2.0, 2.0, 2.0, 2.0])))
