"""Estimates against scipy, scikit-learn and hand-worked values; coverage and false alarms by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness import stats
from harness.stats import Verdict

RNG = np.random.default_rng(0)


def recipe(mean: float, seeds: int, rng: np.random.Generator, *, deviation: float = 0.02, examples: int = 200):
    """Seeds of a recipe whose means wander by ``deviation``, judged on examples that have a difficulty of their own."""
    difficulty = np.random.default_rng(1).normal(0, 0.3, examples)
    return {seed: mean + rng.normal(0, deviation) + difficulty + rng.normal(0, 0.2, examples) for seed in range(seeds)}


# -- intervals -----------------------------------------------------------------------------------------


def test_the_t_interval_of_three_values_by_hand():
    found = stats.t_interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.n == 3
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.low == pytest.approx(4 - found.high)


def test_the_paired_bootstrap_is_scipys():
    a, b = RNG.normal(0.2, 1, 80), RNG.normal(0, 1, 80)
    found = stats.bootstrap_interval((a - b).tolist(), seed=3)
    theirs = scipy_stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, vectorized=True, n_resamples=9999,
        rng=np.random.default_rng(3), batch=1000,
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.low < (a - b).mean() < found.high


def test_the_bootstrap_says_the_same_twice_and_knows_values_without_spread():
    values = RNG.normal(size=50).tolist()
    assert stats.bootstrap_interval(values) == stats.bootstrap_interval(values)
    flat = stats.bootstrap_interval([0.25] * 9)
    assert (flat.mean, flat.low, flat.high) == (0.25, 0.25, 0.25)


def test_one_value_has_a_mean_and_no_bounds():
    for found in (stats.t_interval([3.0]), stats.bootstrap_interval([3.0])):
        assert (found.mean, found.low, found.high) == (3.0, None, None)


@pytest.mark.parametrize("call", [stats.t_interval, stats.bootstrap_interval])
def test_no_values_are_an_error(call):
    with pytest.raises(ValueError, match="values are needed"):
        call([])


def test_a_recipe_of_one_seed_is_estimated_over_its_examples_and_of_more_over_seed_means():
    scores = recipe(0.5, 3, np.random.default_rng(5))
    one, three = stats.over_seeds({0: scores[0]}), stats.over_seeds(scores)
    assert (one.n, one.method) == (200, "bootstrap") and (three.n, three.method) == (3, "t")
    assert three.mean == pytest.approx(np.mean([v.mean() for v in scores.values()]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_across_seeds_covers_the_truth_in_95_of_100_sweeps(seeds):
    rng, covered, sweeps = np.random.default_rng(seeds), 0, 2000
    for _ in range(sweeps):
        a, b = recipe(0.6, seeds, rng, examples=50), recipe(0.5, seeds, rng, examples=50)
        interval = stats.t_interval([float((a[s] - b[s]).mean()) for s in a])
        covered += interval.low <= 0.1 <= interval.high
    assert 0.93 <= covered / sweeps <= 0.97


def test_the_bootstrap_over_examples_covers_the_truth_in_95_of_100_trials():
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        a, b = rng.random(150) < 0.7, rng.random(150) < 0.6
        interval = stats.bootstrap_interval((a.astype(float) - b).tolist(), resamples=999, seed=int(rng.integers(1e9)))
        covered += interval.low <= 0.1 <= interval.high
    assert 0.93 <= covered / trials <= 0.97


# -- comparisons ---------------------------------------------------------------------------------------


def test_mcnemar_counts_discordant_examples_alone():
    first = [1] * 50 + [1] * 9 + [0] * 2 + [0] * 30
    second = [1] * 50 + [0] * 9 + [1] * 2 + [0] * 30
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert stats.mcnemar(first, second) == pytest.approx(by_hand)
    assert stats.mcnemar([1, 0], [1, 0]) == 1.0


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_a_recipe_that_is_much_better_is_better_and_the_other_worse():
    rng = np.random.default_rng(2)
    good, bad = recipe(0.8, 3, rng), recipe(0.4, 3, rng)
    assert stats.compare(good, bad, margin=0.02).verdict is Verdict.BETTER
    assert stats.compare(bad, good, margin=0.02).verdict is Verdict.WORSE
    assert stats.compare(bad, good, margin=0.02, higher_is_better=False).verdict is Verdict.BETTER


def test_a_difference_that_is_certain_and_does_not_matter_is_a_tie():
    values = RNG.normal(0.5, 0.1, 400)  # differences carry the dust of subtraction
    found = stats.compare({0: values + 0.001}, {0: values}, margin=0.02)
    assert found.interval.low == pytest.approx(0.001) and found.verdict is Verdict.TIE


def test_an_open_comparison_says_how_many_seeds_would_settle_it():
    a = {0: [0.60, 0.60], 1: [0.50, 0.50], 2: [0.64, 0.64]}
    b = {0: [0.50, 0.50], 1: [0.51, 0.51], 2: [0.55, 0.55]}
    found = stats.compare(a, b, margin=0.01)
    assert found.verdict is Verdict.OPEN and found.seeds == 3
    differences = np.array([0.10, -0.01, 0.09])
    reach = lambda n: scipy_stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n)  # noqa: E731
    assert reach(found.needed) < 0.06 <= reach(found.needed - 1)
    assert str(found) == f"needs more seeds (about {found.needed})"


def test_a_need_for_very_many_seeds_is_told_as_such():
    a = {0: [0.5], 1: [0.6]}
    b = {0: [0.5999], 1: [0.5]}
    found = stats.compare(a, b, margin=1e-6)
    assert str(found) == "needs more seeds (more than 100)"


def test_one_seed_is_compared_over_examples_and_promises_nothing_about_seeds():
    rng = np.random.default_rng(4)
    right, wrong = (rng.random(300) < 0.8).astype(float), (rng.random(300) < 0.5).astype(float)
    found = stats.compare({0: right}, {0: wrong}, margin=0.02)
    assert found.verdict is Verdict.BETTER and (found.seeds, found.examples) == (1, 300)
    assert found.p == stats.mcnemar(right, wrong) and found.needed is None


def test_of_one_seed_a_difference_must_lie_beyond_the_margin_as_a_whole():
    """Two seeds of one recipe may differ for certain on the same examples, and that proves no recipe better."""
    rng = np.random.default_rng(5)
    low, noise = rng.normal(0.5, 0.1, 400), rng.normal(0, 0.1, 400)
    for gain, verdict in ((0.03, Verdict.TIE), (0.055, Verdict.OPEN), (0.2, Verdict.BETTER)):
        high = low + gain + noise - noise.mean()
        found = stats.compare({0: high}, {0: low}, margin=0.05)
        assert found.verdict is verdict and found.p < 0.001
    seeds = {seed: [0.055 + seed / 1e4] for seed in range(3)}
    assert stats.compare(seeds, {s: [0.0] for s in seeds}, margin=0.05).verdict is Verdict.BETTER


def test_only_shared_seeds_are_compared():
    a, b = {0: [1.0, 0.0], 1: [1.0, 1.0]}, {1: [0.0, 1.0], 2: [0.0, 0.0]}
    found = stats.compare(a, b, margin=0.1)
    assert found.seeds == 1 and found.interval.mean == 0.5


def test_sides_without_a_shared_seed_or_with_other_examples_are_an_error():
    with pytest.raises(ValueError, match="no seed is shared"):
        stats.compare({0: [1.0]}, {1: [1.0]}, margin=0.1)
    with pytest.raises(ValueError, match="different numbers of examples"):
        stats.compare({0: [1.0]}, {0: [1.0, 0.0]}, margin=0.1)


def test_a_single_example_settles_nothing():
    assert stats.compare({0: [1.0]}, {0: [0.0]}, margin=0.1).verdict is Verdict.OPEN


def test_both_orders_of_a_pair_agree():
    rng = np.random.default_rng(8)
    found = stats.compare_all({"a": recipe(0.8, 3, rng), "b": recipe(0.4, 3, rng)}, margin=0.02)
    there, back = found["a", "b"], found["b", "a"]
    assert (there.verdict, back.verdict) == (Verdict.BETTER, Verdict.WORSE)
    assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))


def test_sweeps_of_equal_recipes_raise_a_false_alarm_in_5_of_100_at_most():
    rng, alarms, sweeps = np.random.default_rng(0), 0, 1000
    for _ in range(sweeps):
        recipes = {str(i): recipe(0.5, 3, rng, examples=20) for i in range(4)}
        found = stats.compare_all(recipes, margin=0.0)
        alarms += any(c.verdict in (Verdict.BETTER, Verdict.WORSE) for c in found.values())
    assert alarms / sweeps <= 0.05
    assert alarms > 0, "a test that never speaks proves nothing"
