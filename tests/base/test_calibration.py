"""Calibration, agreement and length control, held against scikit-learn and against arithmetic by hand."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from harness.base import calibration
from tests.toys import script

share_coverage = script("share_coverage")
RNG = np.random.default_rng(0)


def test_brier_and_calibration_error_by_hand():
    predicted, happened = [0.9, 0.8, 0.3, 0.1], [1, 0, 0, 0]
    assert calibration.brier(predicted, happened) == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)
    assert calibration.brier(predicted, happened) == pytest.approx(
        sklearn_metrics.brier_score_loss(happened, predicted)
    )
    bins = calibration.reliability(predicted, happened, bins=2)
    assert [(b.count, b.predicted, b.observed) for b in bins] == [(2, 0.2, 0.0), (2, pytest.approx(0.85), 0.5)]
    assert calibration.expected_calibration_error(bins) == pytest.approx(0.5 * 0.2 + 0.5 * 0.35)


def test_bins_hold_their_edges_and_leave_out_what_is_empty():
    bins = calibration.reliability([0.0, 0.1, 0.5, 1.0], [0, 0, 1, 1], bins=10)
    assert [(round(b.low, 1), b.count) for b in bins] == [(0.0, 2), (0.4, 1), (0.9, 1)]


def test_a_calibrated_forecaster_has_almost_no_calibration_error():
    p = RNG.random(20_000)
    happened = (RNG.random(20_000) < p).astype(float)
    assert calibration.expected_calibration_error(calibration.reliability(p, happened)) < 0.015
    assert calibration.expected_calibration_error(calibration.reliability(p**3, happened)) > 0.1


def test_kappa_is_scikit_learns():
    first = RNG.integers(0, 3, 200)
    second = np.where(RNG.random(200) < 0.6, first, RNG.integers(0, 3, 200))
    assert calibration.cohens_kappa(first.tolist(), second.tolist()) == pytest.approx(
        sklearn_metrics.cohen_kappa_score(first, second)
    )
    assert calibration.cohens_kappa([1, 1], [1, 1]) is None
    with pytest.raises(ValueError, match="same items"):
        calibration.cohens_kappa([1], [1, 2])


def test_the_length_controlled_rate_takes_out_what_length_alone_explains():
    gap = RNG.normal(1.0, 1.0, 4000)
    by_length = (RNG.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(gap)))).astype(float)
    assert by_length.mean() > 0.65
    assert calibration.length_controlled_rate(by_length, gap) == pytest.approx(0.5, abs=0.05)
    assert calibration.length_controlled_rate([1, 1, 0, 1], [0, 0, 0, 0]) == pytest.approx(0.75, abs=1e-4)
    assert calibration.length_controlled_rate([1, 1, 0, 0], [5, 6, -5, -6]) == pytest.approx(0.5)
    assert calibration.length_controlled_rate([], []) is None


# -- errors over groups ----------------------------------------------------------------------------------


def test_values_of_one_cluster_count_as_one_by_hand():
    assert calibration.clustered_error([1.0, 2.0, 3.0]) == pytest.approx((1 / 3) ** 0.5)
    # clusters {1, 1} and {0, 0}: residuals sum to +1 and -1; sqrt(2 / 1 * 2) / 4
    assert calibration.clustered_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert calibration.clustered_error([1, 0], ["a", "a"]) is None and calibration.clustered_error([1.0]) is None
    with pytest.raises(ValueError, match="2 clusters for 3 values"):
        calibration.clustered_error([1, 2, 3], ["a", "b"])


def test_copies_of_every_value_in_its_cluster_change_no_error():
    values = RNG.random(30)
    assert calibration.clustered_error(np.repeat(values, 4), np.repeat(np.arange(30), 4)) == pytest.approx(
        calibration.clustered_error(values)
    )


def test_wilson_is_statsmodels_figure_for_15_of_20():
    assert calibration.wilson(0.75, 20, 1.959964) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert calibration.wilson(1.0, 10, 1.959964) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_six_pairs_of_two_prompts_say_next_to_nothing_and_stay_between_0_and_1():
    found = calibration.share([1, 1, 1, 0, 0, 1], list("aaabbb"))  # N2: it said 0.667 [0.253, 1.080]
    assert found.low is not None and found.high is not None
    assert 0 <= found.low < 0.1 and 0.9 < found.high <= 1 and found.mean == pytest.approx(2 / 3)
    alone = calibration.share([1, 0], ["a", "a"])
    assert (alone.mean, alone.error, alone.low, alone.high) == (0.5, None, None, None)


def test_where_all_agree_each_cluster_is_one_witness():
    found = calibration.share([1.0] * 12, [i // 3 for i in range(12)])
    assert (found.low, found.high) == pytest.approx(calibration.wilson(1.0, 4, calibration.t_quantile(3)))


def test_the_interval_of_a_share_holds_the_truth():
    for prompts, most, correlation in ((5, 8, 0.5), (30, 1, 0.0), (30, 8, 1.0), (100, 8, 0.5)):
        assert share_coverage.coverage(prompts, most, correlation, 0.8, 400) > 0.9


def test_the_bootstrap_of_whole_clusters_gives_the_error_of_a_mean():
    values, clusters = RNG.random(200), np.repeat(np.arange(50), 4).tolist()
    found = calibration.bootstrap_error(lambda places: float(values[places].mean()), 200, clusters)
    assert found == pytest.approx(calibration.clustered_error(values, clusters), rel=0.12)
    assert calibration.bootstrap_error(lambda _: 0.0, 3, ["a"] * 3) is None
