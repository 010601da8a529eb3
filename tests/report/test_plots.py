"""Plots: what is drawn, what is left out, and that many trials are no trouble. Looked at by eye besides."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from harness.report.figures import curves, scatter
from harness.report.figures.drawing import colour_of, looks
from harness.report.standings import find
from harness.store import results
from tests.report.test_report import trials
from tests.store.test_results import BEGAN

# -- plots ---------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[str, list[float], list[float]]]:
    """What is handed to matplotlib: the kind of drawing, xs and ys."""
    from matplotlib.axes import Axes

    seen: list[tuple[str, list[float], list[float]]] = []

    def watch(kind: str) -> None:
        original = getattr(Axes, kind)

        def spy(self: Any, xs: Any, ys: Any, *rest: Any, **options: Any) -> Any:
            seen.append((kind, list(xs), list(ys)))
            return original(self, xs, ys, *rest, **options)

        monkeypatch.setattr(Axes, kind, spy)

    for kind in ("plot", "errorbar", "fill_between", "barh"):
        watch(kind)
    return seen


def test_a_plot_without_data_is_not_drawn(tmp_path):
    frame = trials({"outcome": "failed"})
    nothing = pd.DataFrame(columns=list(results.SERIES_COLUMNS))
    found = find(frame)
    for plot in (
        scatter.quality_against_memory,
        scatter.quality_against_drift,
        scatter.responses,
        scatter.memory_by_phase,
    ):
        assert not plot(found, tmp_path / "p.png")
    assert not scatter.reliability({"dpo": pd.DataFrame()}, tmp_path / "r.png")
    assert not curves.learning_curves(nothing, found, tmp_path / "l.png")
    assert not curves.memory_over_time(nothing, found, tmp_path / "m.png")
    assert list(tmp_path.iterdir()) == []


def test_the_memory_of_single_trials_is_drawn_with_its_phases(tmp_path):
    frame = trials({"memory/peak_mb": 500.0, "memory/predicted_peak_mb": 550.0}, {"memory/peak_mb": 400.0})
    series = pd.DataFrame(
        [("run0", curves.MEMORY_SERIES[1], s, BEGAN + s, 100.0 * s) for s in range(6)],
        columns=list(results.SERIES_COLUMNS),
    )
    stretches = {
        "run0": pd.DataFrame({"phase": ["prepare", "train"], "began": [BEGAN, BEGAN + 2], "seconds": [2.0, 3.0]}),
        "run1": pd.DataFrame({"phase": ["train"], "began": [BEGAN], "seconds": [1.0]}),  # without a series
    }
    assert curves.memory_timelines(series, stretches, find(frame), tmp_path / "t.png")
    drawn = (tmp_path / "t.svg").read_text()
    assert drawn.count('id="axes_') == 1
    assert not curves.memory_timelines(series, {}, find(frame), tmp_path / "n.png")


def test_many_trials_can_be_plotted(tmp_path):
    rows = [
        {"eval/true_reward": i / 40, "memory/peak_mb": 500.0 + i % 7, "eval/true_reward_stderr": 0.02}
        for i in range(40)
    ]
    frame = trials(*rows)
    series = pd.DataFrame(
        [(f"run{i}", "train/loss", s, BEGAN + s, 1 / (s + 1)) for i in range(40) for s in range(4)],
        columns=list(results.SERIES_COLUMNS),
    )
    found = find(frame)
    assert scatter.quality_against_memory(found, tmp_path / "q.png")
    assert curves.learning_curves(series, found, tmp_path / "l.png")


def drifting(*betas: float, algos: str = "dpo") -> pd.DataFrame:
    rows = [
        {
            "trial_id": f"{algo}-b{beta:g}-s{seed}-00000000", "algo": algo, "beta": beta, "seed": seed,
            "params.algo.name": algo, "params.algo.beta": str(beta),
            "eval/true_reward": 0.3 + beta, "eval/kl_per_sequence": 0.5 / beta * (1 + 0.1 * seed),
        }
        for algo in algos.split(",") for beta in betas for seed in range(3)
    ]  # fmt: skip
    return trials(*rows)


def test_quality_is_drawn_against_drift_with_a_line_over_beta(tmp_path, drawn):
    assert scatter.quality_against_drift(find(drifting(0.5, 0.1, algos="dpo,kto")), tmp_path / "d.png")
    lines = [d[1:] for d in drawn if d[0] == "plot"]
    assert len(lines) == 2
    for xs, ys in lines:
        assert xs == pytest.approx([5.5, 1.1]) and ys == pytest.approx([0.4, 0.8])  # by beta, means over seeds


def test_one_recipe_or_none_with_a_measured_drift_is_no_plot(tmp_path):
    assert not scatter.quality_against_drift(find(drifting(0.5)), tmp_path / "d.png")
    unmeasured = drifting(0.5, 0.1).drop(columns="eval/kl_per_sequence")
    assert not scatter.quality_against_drift(find(unmeasured), tmp_path / "d.png")


def test_a_knob_with_three_values_is_drawn_and_one_with_two_is_not(tmp_path, drawn):
    assert scatter.responses(find(drifting(0.1, 0.2, 0.4)), tmp_path / "r.png")
    (bars,) = [d for d in drawn if d[0] == "errorbar"]
    assert bars[1] == pytest.approx([0.1, 0.2, 0.4]) and bars[2] == pytest.approx([0.4, 0.5, 0.7])
    assert not scatter.responses(find(drifting(0.1, 0.2)), tmp_path / "r.png")


def test_the_phases_stack_to_the_peak_of_the_trial(tmp_path, drawn):
    peaks = {"memory/prepare_peak_mb": 100.0, "memory/train_peak_mb": 400.0, "memory/evaluate_peak_mb": 250.0}
    assert scatter.memory_by_phase(
        find(trials({"eval/true_reward": 0.5, "memory/peak_mb": 400.0, **peaks})), tmp_path / "p.png"
    )
    assert [added for kind, _, added in drawn if kind == "barh"] == [[100.0], [300.0]]


def test_what_was_built_for_the_cache_does_not_reach_above_the_peak(tmp_path, drawn):
    peaks = {"memory/prepare_peak_mb": 100.0, "memory/baseline_peak_mb": 700.0, "memory/train_peak_mb": 400.0}
    found = find(trials({"eval/true_reward": 0.5, "memory/peak_mb": 400.0, **peaks}))
    assert scatter.memory_by_phase(found, tmp_path / "p.png")
    assert sum(added[0] for kind, _, added in drawn if kind == "barh") == 400.0


def test_seeds_of_a_recipe_share_a_line_with_a_band_over_their_range(tmp_path, drawn):
    frame = drifting(0.5)
    series = pd.DataFrame(
        [(run, "train/loss", s, BEGAN + s, s + i) for i, run in enumerate(frame["run_id"]) for s in range(3 + i)],
        columns=list(results.SERIES_COLUMNS),
    )
    assert curves.learning_curves(series, find(frame), tmp_path / "l.png")
    assert [d[1:] for d in drawn if d[0] == "plot"] == [([0, 1, 2], [1.0, 2.0, 3.0])]  # the steps that all seeds have
    assert [d for d in drawn if d[0] == "fill_between"][0][2] == [0.0, 1.0, 2.0]


def test_seeds_that_logged_at_other_steps_have_a_line_each(tmp_path, drawn):
    frame = drifting(0.5)
    series = pd.DataFrame(
        [(run, "train/loss", 3 * s + i, BEGAN + s, 1.0) for i, run in enumerate(frame["run_id"]) for s in range(2)],
        columns=list(results.SERIES_COLUMNS),
    )
    assert curves.learning_curves(series, find(frame), tmp_path / "l.png")
    assert [d[1] for d in drawn if d[0] == "plot"] == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(("low", "high", "logarithmic"), [(0.3, 40.0, True), (1e-4, 0.7, False)])
def test_a_wide_series_gets_a_scale_that_writes_plain_numbers(low, high, logarithmic, tmp_path, monkeypatch):
    ticks = []
    monkeypatch.setattr(
        curves, "save", lambda drawn, _: ticks.extend(t.get_text() for t in drawn.axes[0].get_yticklabels()) or True
    )
    frame = drifting(0.5)
    values = [high, *[low] * 9]
    series = pd.DataFrame(
        [(frame["run_id"][0], "train/loss", s, BEGAN + s, v) for s, v in enumerate(values)],
        columns=list(results.SERIES_COLUMNS),
    )
    assert curves.learning_curves(series, find(frame), tmp_path / "l.png")
    assert all("$" not in tick for tick in ticks), ticks
    assert ("10" in ticks) is logarithmic, ticks


def test_reliability_pools_the_bins_of_all_seeds_by_their_counts(tmp_path, drawn):
    bins = pd.DataFrame({"low": [0.5, 0.5], "count": [30, 10], "predicted": [0.6, 0.7], "observed": [0.5, 0.9]})
    assert scatter.reliability({"dpo": bins}, tmp_path / "r.png")
    (_, xs, ys) = [d for d in drawn if d[0] == "plot"][-1]
    assert xs == pytest.approx([0.625]) and ys == pytest.approx([0.6])


def test_recipes_of_one_algorithm_have_colours_of_their_own_and_those_of_several_their_algorithms():
    alone = [look["color"] for look in looks([f"grpo-lora reward={i}" for i in range(9)]).values()]
    assert alone[0] == colour_of("grpo") and len(set(alone)) == 9
    several = looks(["grpo-lora", "grpo-full", "dpo-lora"])
    assert [look["color"] for look in several.values()] == [colour_of("grpo")] * 2 + [colour_of("dpo")]
    assert several["grpo-lora"]["linestyle"] != several["grpo-full"]["linestyle"]
