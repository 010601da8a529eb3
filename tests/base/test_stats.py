"""Estimates against scipy, scikit-learn and hand-worked values; coverage and false alarms by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.base import spread, stats
from harness.base.spread import smallest_step, spread_of
from harness.base.stats import Verdict
from tests.toys import script

verdict_power = script("verdict_power")
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


def test_one_value_has_a_mean_and_no_bounds():
    for found in (stats.t_interval([3.0]), stats.rows_interval([3.0])):
        assert (found.mean, found.low, found.high) == (3.0, None, None)


@pytest.mark.parametrize(("values", "low"), [([0.3] * 3, None), ([-1.0] * 50, None), ([0.0] * 3, 0.0)])
def test_rows_that_are_all_alike_have_no_interval_of_width_zero_unless_they_tie(values, low):
    found = stats.rows_interval(values)
    assert (found.low, found.high, found.method) == (low, low, "all rows alike")
    assert stats.rows_interval([0.3] * 3, least=0.1).high is not None


@pytest.mark.parametrize("call", [stats.t_interval, stats.rows_interval])
def test_no_values_are_an_error(call):
    with pytest.raises(ValueError, match="values are needed"):
        call([])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_across_seeds_covers_the_truth_in_95_of_100_sweeps(seeds):
    rng, covered, sweeps = np.random.default_rng(seeds), 0, 2000
    for _ in range(sweeps):
        a, b = recipe(0.6, seeds, rng, examples=50), recipe(0.5, seeds, rng, examples=50)
        interval = stats.t_interval([float((a[s] - b[s]).mean()) for s in a])
        covered += interval.low <= 0.1 <= interval.high
    assert 0.93 <= covered / sweeps <= 0.97


def test_the_interval_over_examples_covers_the_truth_in_95_of_100_trials():
    rng, covered, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        a, b = rng.random(150) < 0.7, rng.random(150) < 0.6
        interval = stats.rows_interval(a.astype(float) - b)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.935 <= covered / trials <= 0.965


def test_examples_of_one_prompt_are_one_by_hand():
    """Six pairs of two prompts, as in N2: two clusters, so one degree of freedom."""
    found = stats.rows_interval([1.0, 1.0, 1.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b", "b", "b"])
    error = math.sqrt(2 / 1 * (1.0**2 + 1.0**2)) / 6  # residuals sum to +1 and -1
    assert (found.mean, found.high) == (pytest.approx(2 / 3), pytest.approx(2 / 3 + 12.7062 * error, abs=1e-3))
    assert stats.rows_interval([1.0, 0.0], ["a", "a"]).low is None


# -- comparisons ---------------------------------------------------------------------------------------


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
    found = stats.compare({0: values + 0.001, 1: values + 0.001}, {0: values, 1: values}, margin=0.02)
    assert found.verdict is Verdict.TIE and found.interval.mean == pytest.approx(0.001)


def test_an_open_comparison_says_how_many_seeds_would_settle_it():
    a = {0: [0.60], 1: [0.50], 2: [0.64]}
    b = {0: [0.50], 1: [0.51], 2: [0.55]}
    found = stats.compare(a, b, margin=0.01)
    assert found.verdict is Verdict.OPEN and found.seeds == 3
    error = math.sqrt((np.var([0.60, 0.50, 0.64], ddof=1) + np.var([0.50, 0.51, 0.55], ddof=1)) / 3)
    assert (
        found.interval.high - found.interval.mean == pytest.approx(scipy_stats.t.ppf(0.975, found.freedom) * error)
        and 2 < found.freedom < 4
    )

    def reach(n: int) -> float:
        return scipy_stats.t.ppf(0.975, found.freedom * (n - 1) / 2) * error * math.sqrt(3 / n)

    assert reach(found.needed) < 0.06 <= reach(found.needed - 1)
    assert str(found) == f"needs more seeds (about {found.needed})"


def test_a_need_for_very_many_seeds_is_told_as_such():
    a = {0: [0.5], 1: [0.6]}
    b = {0: [0.5999], 1: [0.5]}
    found = stats.compare(a, b, margin=1e-6)
    assert str(found) == "needs more seeds (more than 100)"


def test_one_seed_tells_what_the_rows_show_and_gets_no_verdict():
    rng = np.random.default_rng(4)
    right, wrong = (rng.random(300) < 0.8).astype(float), (rng.random(300) < 0.5).astype(float)
    for other in (wrong, right):
        found = stats.compare({0: right}, {0: other}, margin=0.02)
        assert found.verdict is Verdict.ONE_SEED and (found.seeds, found.examples) == (1, 300)
        assert found.needed is None and str(found) == "one seed"
    found = stats.compare({0: right, 1: right, 2: right}, {0: wrong}, margin=0.02)
    assert found.verdict is Verdict.ONE_SEED and found.interval.low > 0.18


def test_a_recipe_of_one_seed_does_not_raise_the_price_of_the_others():
    """Holm counts what is tested: three pairs of which one has two seeds on both sides."""
    pair = {"a": {0: [0.9], 1: [0.91]}, "b": {0: [0.5], 1: [0.512]}}
    alone = stats.compare_all(pair, margin=0.0)["a", "b"]
    beside = stats.compare_all({**pair, "c": {0: [0.7]}}, margin=0.0)["a", "b"]
    assert beside.p == pytest.approx(alone.p) and alone.p < 0.05


def test_every_seed_of_either_side_counts():
    a, b = {0: [1.0], 1: [0.8]}, {7: [0.1], 8: [0.3], 9: [0.2]}
    found = stats.compare(a, b, margin=0.1)
    assert found.seeds == 2 and found.interval.mean == pytest.approx(0.7)


# -- errors that are not 0 -------------------------------------------------------------------------------


def test_two_seeds_that_coincide_prove_nothing():
    """One step apart in both seeds, with no spread in sight: p was 0, and is 0.18."""
    found = stats.compare({0: [0.5], 1: [0.5]}, {0: [0.5 + 1 / 512], 1: [0.5 + 1 / 512]}, margin=0.0)
    assert found.verdict is Verdict.OPEN and found.p > 0.1
    step = 1 / 512  # two values, each of a quarter of a step squared at most, over two seeds
    assert (found.interval.high - found.interval.mean) == pytest.approx(
        scipy_stats.t.ppf(0.975, 2) * math.sqrt(2 * step**2 / 4 / 2)
    )


def test_the_examples_are_a_floor_that_no_number_of_seeds_lowers():
    first, second = [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]
    many = range(50)
    found = stats.compare({s: first for s in many}, {s: second for s in many}, margin=0.0)
    assert found.rows_error == pytest.approx(0.25)  # differences 0, 1, 0, 0: deviation ½ over 4 rows
    assert found.verdict is Verdict.OPEN and found.needed == stats.MOST_SEEDS + 1


def test_a_clustered_floor_is_wider_than_one_of_single_examples():
    first, second = {s: [1.0, 1.0, 0.0, 0.0] for s in (0, 1)}, {s: [0.0, 0.0, 0.0, 0.0] for s in (0, 1)}
    free = stats.compare(first, second, margin=0.0)
    tied = stats.compare(first, second, margin=0.0, clusters=["p", "p", "q", "q"])
    assert tied.rows_error == pytest.approx(0.5) and free.rows_error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_the_step_is_the_smallest_difference_and_never_dust():
    assert smallest_step([0.5, 0.25, 1.0, 0.25]) == 0.25
    assert smallest_step([0.1 + 0.2, 0.3, 1.3]) == pytest.approx(1.0)
    assert smallest_step([0.7, 0.7]) == 0.0 and smallest_step([]) == 0.0


def test_recipes_that_spread_alike_lend_one_another_their_spread_and_others_do_not():
    rng = np.random.default_rng(0)
    alike = spread_of(rng.normal(0, 1, (20, 3)).tolist())
    unlike = spread_of((rng.normal(0, 1, (20, 3)) * np.exp(rng.normal(0, 1.5, (20, 1)))).tolist())
    assert alike.freedom == unlike.freedom == 40 and alike.weight > 10 > 2 > unlike.weight
    assert alike.usual == pytest.approx(1.0, abs=0.4)
    wild = spread_of([*rng.normal(0, 1, (4, 3)).tolist(), [0.0, 300.0, 50.0]])
    assert wild.weight < 2 and wild.usual < 300  # the mean variance would be 5,000
    assert spread_of([[1.0, 2.0], [5.0]]).weight == 0.0  # nobody else to lend


def test_the_weight_of_the_others_is_smyths_where_caution_is_left_out(monkeypatch):
    """Scaled chi-squares of 4 degrees of freedom around a prior of 8: limma's moments find it again."""
    monkeypatch.setattr(spread, "CAUTION", 0.0)
    rng = np.random.default_rng(1)
    scale = np.sqrt(8 / rng.chisquare(8, 4000))
    found = spread_of((rng.normal(0, 1, (4000, 5)) * scale[:, None]).tolist())
    assert found.weight == pytest.approx(8, rel=0.15)


def test_against_what_has_no_seeds_the_recipes_own_seeds_and_rows_are_the_error():
    recipe, base = {0: [0.6, 0.4], 1: [0.7, 0.5]}, [0.1, 0.1]
    found = stats.against({"a": recipe}, base)["a"]
    assert found.interval.mean == pytest.approx(0.45) and found.seeds == 2
    assert found.rows_error == pytest.approx(0.1)  # 0.55 and 0.35 over the two rows
    assert stats.against({"a": recipe}, [0.1])["a"].rows_error == 0.0
    assert stats.against({"a": {0: [0.6, 0.4]}}, base)["a"].verdict is Verdict.ONE_SEED


def test_sides_without_a_seed_or_with_other_examples_are_an_error():
    with pytest.raises(ValueError, match="no seed is there"):
        stats.compare({0: [1.0]}, {}, margin=0.1)
    with pytest.raises(ValueError, match="different numbers of examples"):
        stats.compare({0: [1.0]}, {0: [1.0, 0.0]}, margin=0.1)


def test_a_single_example_settles_nothing():
    assert stats.compare({0: [1.0]}, {0: [0.0]}, margin=0.1).interval.low is None


def test_both_orders_of_a_pair_agree():
    rng = np.random.default_rng(8)
    found = stats.compare_all({"a": recipe(0.8, 3, rng), "b": recipe(0.4, 3, rng)}, margin=0.02)
    there, back = found["a", "b"], found["b", "a"]
    assert (there.verdict, back.verdict) == (Verdict.BETTER, Verdict.WORSE)
    assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))


# -- false alarms and power, simulated (scripts/verdict_power.py; docs/metrics.md has the tables) ---------


@pytest.mark.parametrize(("recipes", "seeds", "sweeps"), [(2, 2, 1500), (2, 3, 1500), (5, 2, 300), (20, 2, 25)])
def test_sweeps_of_equal_recipes_raise_a_false_alarm_in_5_of_100_at_most(recipes: int, seeds: int, sweeps: int):
    world = verdict_power.World(recipes, seeds, steps=512)
    assert verdict_power.alarms(world, sweeps) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps)


def test_few_false_alarms_are_not_bought_by_silence():
    """Three deviations between two recipes of three seeds: 78 of 100 is what any unbiased test can find at 5 %."""
    assert verdict_power.found(verdict_power.World(2, 3, steps=512), 1000) > 0.72
    assert verdict_power.found(verdict_power.World(2, 4, steps=512), 500) > 0.9
    assert verdict_power.alarms(verdict_power.World(2, 3), 1000, seed=1) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("grid", verdict_power.GRIDS)
def test_false_alarms_stay_below_5_of_100_for_every_metric_and_size_of_sweep(grid: str):
    for recipes, seeds in itertools.product((1, 2, 3, 5, 10), (2, 3, 4)):
        sweeps = 1000 if recipes < 5 else 200
        share = verdict_power.alarms(verdict_power.GRIDS[grid](verdict_power.World(recipes, seeds)), sweeps)
        assert share <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / sweeps), (recipes, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("kind", verdict_power.UNLIKE)
def test_recipes_that_do_not_spread_alike_raise_at_most_twice_as_many(kind: str):
    for recipes, seeds in itertools.product((2, 5), (2, 3, 4)):
        assert (
            verdict_power.alarms(verdict_power.UNLIKE[kind](verdict_power.World(recipes, seeds)), 500) <= 0.135
        )  # 10 and noise
