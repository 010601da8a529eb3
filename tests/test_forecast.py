"""Calibration, agreement and length control, held against scikit-learn and against arithmetic by hand."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from harness import forecast

RNG = np.random.default_rng(0)


def test_brier_and_calibration_error_by_hand():
    predicted, happened = [0.9, 0.8, 0.3, 0.1], [1, 0, 0, 0]
    assert forecast.brier(predicted, happened) == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)
    assert forecast.brier(predicted, happened) == pytest.approx(sklearn_metrics.brier_score_loss(happened, predicted))
    bins = forecast.reliability(predicted, happened, bins=2)
    assert [(b.count, b.predicted, b.observed) for b in bins] == [(2, 0.2, 0.0), (2, pytest.approx(0.85), 0.5)]
    assert forecast.expected_calibration_error(bins) == pytest.approx(0.5 * 0.2 + 0.5 * 0.35)


def test_bins_hold_their_edges_and_leave_out_what_is_empty():
    bins = forecast.reliability([0.0, 0.1, 0.5, 1.0], [0, 0, 1, 1], bins=10)
    assert [(round(b.low, 1), b.count) for b in bins] == [(0.0, 2), (0.4, 1), (0.9, 1)]


def test_a_calibrated_forecaster_has_almost_no_calibration_error():
    p = RNG.random(20_000)
    happened = (RNG.random(20_000) < p).astype(float)
    assert forecast.expected_calibration_error(forecast.reliability(p, happened)) < 0.015
    assert forecast.expected_calibration_error(forecast.reliability(p**3, happened)) > 0.1


def test_kappa_is_scikit_learns():
    first = RNG.integers(0, 3, 200)
    second = np.where(RNG.random(200) < 0.6, first, RNG.integers(0, 3, 200))
    assert forecast.cohens_kappa(first.tolist(), second.tolist()) == pytest.approx(
        sklearn_metrics.cohen_kappa_score(first, second)
    )
    assert forecast.cohens_kappa([1, 1], [1, 1]) is None
    with pytest.raises(ValueError, match="same items"):
        forecast.cohens_kappa([1], [1, 2])


def test_the_length_controlled_rate_takes_out_what_length_alone_explains():
    gap = RNG.normal(1.0, 1.0, 4000)
    by_length = (RNG.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(gap)))).astype(float)
    assert by_length.mean() > 0.65
    assert forecast.length_controlled_rate(by_length, gap) == pytest.approx(0.5, abs=0.05)
    assert forecast.length_controlled_rate([1, 1, 0, 1], [0, 0, 0, 0]) == pytest.approx(0.75, abs=1e-4)
    assert forecast.length_controlled_rate([1, 1, 0, 0], [5, 6, -5, -6]) == pytest.approx(0.5)
    assert forecast.length_controlled_rate([], []) is None
