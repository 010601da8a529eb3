"""Trials that have lost on the way: when one has, what it is compared with, and what becomes of it."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.base.errors import Stopped, UserErrors
from harness.base.records import Event, Outcome
from harness.report import comparability
from harness.report.recipes import recipes
from harness.runner.child import tell_story
from harness.runner.decide_mode import decide_mode
from harness.store.journal import Journal, read
from harness.store.result import decide, write_json
from harness.sweep.expand import plan_sweep
from harness.trial.curve import points
from harness.trial.curve.losing import Point, best_rival, has_lost, point_of
from harness.trial.job import Job
from tests.conftest import QUICK
from tests.inside import plain_config
from tests.runner.test_run_trial import TRAINS, TRIAL, past
from tests.trial.test_curve import AT

METRIC = "curve/true_reward"
WHY = {"data": "d1", "curve.at": "[0.25]", "training code": "c1"}


def rival(
    root: Path, name: str, value: Any, *, outcome: str = "finished", share: float = 0.25, held_out: str = "", **why: str
) -> Path:
    """The folder of a trial with one point."""
    folder = root / name
    folder.mkdir()
    past(folder, outcome)
    write_json(folder / "trial.json", {
        **vars(TRIAL), "environment": {}, "why": {**WHY, **why}, "digests": {"held_out": held_out}
    })  # fmt: skip
    with closing(Journal(folder / "worker.jsonl")) as book:
        values = {METRIC: value, f"{METRIC}_stderr": 0.05}
        book.write("point", share=share, spent=share, step=1, values=values, absent={})
    return folder


# -- the decision --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "best", "lost"),
    [
        ((0.1, 0.05), (0.5, 0.05), True),
        ((0.3, 0.05), (0.57, 0.05), True),  # a tie, and 4.4 errors of one, 3.1 of the difference
        ((0.3, 0.05), (0.56, 0.05), False),
        ((0.3, 0.01), (0.48, 0.05), False),  # an error is no smaller than the other
        ((0.0, 0.0), (0.15, 0.05), False),  # all rows alike are not certain for that
        ((0.0, 0.0), (0.5, 0.05), True),
        ((0.9, 0.05), (0.5, 0.05), False),
    ],
)
def test_a_trial_has_lost_where_the_difference_is_more_than_luck(own, best, lost):
    assert has_lost(Point("a", *own), Point("b", *best)) is lost


@pytest.mark.parametrize("rivals", [1, 5, 20, 100])
def test_of_equal_trials_hardly_any_is_stopped(rivals):
    """At four points, against the luckiest of so many."""
    rng = random.Random(0)

    def seen() -> float:
        return rng.gauss(0.4, 0.06)

    stopped = sum(
        any(
            has_lost(Point("a", seen(), 0.06), Point("b", max(seen() for _ in range(rivals)), 0.06, rivals))
            for _ in range(4)
        )
        for _ in range(2_000)
    )
    assert stopped / 2_000 <= 0.01


def test_the_best_finished_trial_that_looked_at_the_same_rows_is_the_rival(tmp_path):
    own = rival(tmp_path, "own", 0.9)
    assert best_rival(own, 0.25, METRIC) is None
    rival(tmp_path, "low", 0.3)
    rival(tmp_path, "high", 0.4)
    rival(tmp_path, "running", 0.8, outcome="interrupted")
    rival(tmp_path, "stopped", 0.8, outcome="stopped")
    rival(tmp_path, "other-rows", 0.8, data="d2")
    rival(tmp_path, "other-curve", 0.8, **{"curve.at": "[0.25,0.5]"})
    rival(tmp_path, "other-share", 0.8, share=0.5)
    rival(tmp_path, "no-figure", None)
    assert best_rival(own, 0.25, METRIC) == Point("high", 0.4, 0.05, rivals=2)


def test_rivals_are_measured_by_the_same_rule_and_may_be_trained_on_other_rows(tmp_path):
    """A trial that is paid less for the same answers has not lost for that."""
    rule = {"evaluation: rule.length_cost": "0.02"}
    own = rival(tmp_path, "own", 0.2, held_out="h", **rule)
    rival(tmp_path, "paid-more", 0.9, held_out="h", **{"evaluation: rule.length_cost": "0.0"})
    rival(tmp_path, "on-other-held-out-rows", 0.9, held_out="i", **rule)
    assert best_rival(own, 0.25, METRIC) is None
    rival(tmp_path, "on-flipped-rows", 0.1, held_out="h", data="d2", **rule)
    assert best_rival(own, 0.25, METRIC) == Point("on-flipped-rows", 0.1, 0.05, rivals=1)


def test_a_point_without_a_figure_is_none():
    assert point_of("a", {}, METRIC) is None and point_of("a", {METRIC: "nan"}, METRIC) is None
    assert point_of("a", {METRIC: 0.2}, METRIC) == Point("a", 0.2, 0.0)


# -- what becomes of it --------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [True, False])
def test_training_ends_at_the_share_where_it_has_lost_and_goes_on_where_nobody_asked(tmp_path, monkeypatch, stops):
    asked: list[float] = []

    def best(folder: Path, share: float, metric: str) -> Point:
        asked.append(share)
        assert folder == tmp_path / "own" and metric == METRIC
        return Point("dpo-b", 9.0 if share >= 0.5 else -9.0, 0.01)

    monkeypatch.setattr(points, "best_rival", best)
    plain = plain_config("algo=dpo", *AT)
    job = Job(str(tmp_path / "own"), plain, str(tmp_path / "cache"), device="cpu", stop_losing=stops)
    with closing(Journal(tmp_path / "own" / "worker.jsonl")) as journal:
        if not stops:
            tell_story(job, journal)
            assert asked == []
            return
        with pytest.raises(Stopped, match=r"lost at 0\.5 of its budget: true reward .* dpo-b had 9\.000 .*validation"):
            tell_story(job, journal)
    assert asked == [0.25, 0.5]
    told = [e.data["share"] for e in read(tmp_path / "own" / "worker.jsonl") if e.kind == "point"]
    assert told[:3] == [0.0, 0.25, 0.5] and 0.75 not in told


def test_its_outcome_is_stopped_with_the_reason():
    event = Event(0.0, "error", {"error": "Stopped", "message": "lost at 0.25 of its budget", "oom": False})
    assert decide(1, [event]) == (Outcome.STOPPED, "lost at 0.25 of its budget")
    assert not Outcome.STOPPED.succeeded


def test_a_trial_that_had_lost_stays_so_until_losers_may_go_on(tmp_path):
    folder = past(tmp_path, "stopped")
    assert decide_mode(folder, TRIAL, TRAINS, resume=True, stop_losing=True).mode == "reuse"
    assert decide_mode(folder, TRIAL, TRAINS, resume=True).mode == "train"
    assert decide_mode(folder, TRIAL, TRAINS, resume=False, stop_losing=True).mode == "train"
    other = replace(TRIAL, train_key="t2")
    assert decide_mode(folder, other, TRAINS, resume=True, stop_losing=True).mode == "train"


def test_without_a_curve_nothing_can_lose():
    words = [*QUICK, "sweep=x", "algo=dpo", "runner.stop_losing=true"]
    with pytest.raises(UserErrors, match=r"runner\.stop_losing.*\n.*eval\.at"):
        plan_sweep(words, multirun=False)
    assert plan_sweep([*words, "eval.at=[0.5]"], multirun=False).points
    assert plan_sweep([*words[:-2], "algo=none", "runner.stop_losing=true"], multirun=False).points


def test_a_recipe_with_a_stopped_seed_stands_in_no_comparison():
    """Its other seeds are the lucky ones."""

    def row(algo: str, seed: int, outcome: str, reward: float | None) -> dict[str, Any]:
        trial = f"{algo}-s{seed}-00000000"
        settings = {"params.algo.name": algo, "params.seed": str(seed)}
        figures = {"eval/true_reward": reward, "algo": algo, "seed": seed}
        return {"trial_id": trial, "label": trial, "outcome": outcome, **settings, **figures}

    rows = [row("dpo", 0, "finished", 0.9), row("dpo", 1, "stopped", None)]
    frame = pd.DataFrame([*rows, row("ipo", 0, "finished", 0.5), row("ipo", 1, "finished", 0.6)])
    assert [r.label for r in recipes(frame, "eval/true_reward")] == ["ipo"]
    assert any("stopped on the way" in line and "dpo" in line for line in comparability.differences(frame))
