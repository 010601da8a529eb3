"""The best of so many draws: against brute force, and two searches of one and the same thing."""

from __future__ import annotations

import itertools
import random

import pytest

from harness.base.best_of import curve, distance, expected_best, expected_choice, half, told_apart

VALUES = (0.3, -1.0, 0.7, 0.7, 0.1)


@pytest.mark.parametrize("n", range(1, 6))
def test_the_expected_best_is_the_mean_over_all_subsets(n):
    subsets = [max(chosen) for chosen in itertools.combinations(VALUES, n)]
    assert expected_best(VALUES, n) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("n", range(1, 6))
def test_the_expected_choice_is_the_value_of_the_highest_of_each_subset_and_ties_are_drawn_by_lot(n):
    values = (10.0, 0.0, 4.0, 8.0, 1.0)

    def chosen(subset: tuple[int, ...]) -> float:
        best = [i for i in subset if VALUES[i] == max(VALUES[j] for j in subset)]
        return sum(values[i] for i in best) / len(best)

    subsets = [chosen(subset) for subset in itertools.combinations(range(5), n)]
    assert expected_choice(VALUES, values, n) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)
    assert expected_choice(VALUES, VALUES, n) == pytest.approx(expected_best(VALUES, n), abs=1e-12)


def test_where_all_score_alike_choosing_is_drawing():
    assert expected_choice([1.0] * 64, list(range(64)), 32) == pytest.approx(31.5)


def test_the_distance_of_best_of_n():
    assert distance(1) == 0.0 and distance(2) == pytest.approx(0.6931 - 0.5, abs=1e-4)


def test_the_curve_rises_from_the_mean_to_the_highest_within_its_bounds():
    found = curve(VALUES)
    means = [f.mean for f in found]
    assert means == sorted(means) and means[0] == pytest.approx(sum(VALUES) / 5) and means[-1] == 0.7
    assert all(f.low is not None and f.high is not None and f.low <= f.mean + 1e-9 <= f.high + 2e-9 for f in found)


def test_half_of_the_draws_is_at_least_one():
    assert [half(n) for n in (1, 2, 3, 8)] == [1, 1, 2, 4]


def test_the_difference_turns_with_its_sides():
    one, other = [0.1, 0.5, 0.4, 0.2], [0.3, 0.2, 0.0, 0.1]
    there, p = told_apart(one, other)
    back, q = told_apart(other, one)
    assert there == pytest.approx(-back) and there > 0 and p == pytest.approx(q, abs=0.03)


@pytest.mark.parametrize("draws", [4, 8, 16])
def test_of_equal_searches_luck_tells_five_in_a_hundred_apart(draws):
    rng = random.Random(draws)
    found = 0
    for _ in range(300):
        one, other = ([rng.random() ** 2 for _ in range(draws)] for _ in range(2))
        found += told_apart(one, other)[1] < 0.05
    assert found <= 25  # 15 are expected, and more than 25 in one of 100 such tests


def test_a_search_whose_points_are_all_better_is_told_apart():
    one, other = [1 + i / 100 for i in range(8)], [i / 100 for i in range(8)]
    difference, p = told_apart(one, other)
    assert difference == pytest.approx(1.0) and p < 0.01
