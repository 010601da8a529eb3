"""Spaces of tuning, the points drawn of them, and sweeps that are a list of points."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from harness.base.errors import UserError, UserErrors
from harness.config.listed import listed
from harness.sweep.expand import plan_sweep
from harness.sweep.search import Axis, Search, overrides_of, space_of
from harness.trial.assemble import Setup, assemble
from tests.conftest import QUICK
from tests.inside import plain_config


def setup_of(*overrides: str, **search: Any) -> Setup:
    setup = assemble(plain_config(*overrides))
    return replace(setup, algo=replace(setup.algo, search=search)) if search else setup


# -- spaces --------------------------------------------------------------------------------------------


def test_a_factor_is_around_the_value_that_the_trial_has():
    rate, beta = space_of(setup_of("algo=dpo", "train.learning_rate=1e-3", "algo.beta=0.2"))
    assert (rate.key, rate.log) == ("train.learning_rate", True)
    assert (rate.low, rate.high) == (pytest.approx(2e-4), pytest.approx(5e-3))
    assert (beta.key, beta.low, beta.high) == ("beta", pytest.approx(0.04), pytest.approx(1.0))


@pytest.mark.parametrize(
    "algo", ["cpo", "dpo", "grpo", "ipo", "kto", "online_dpo", "orpo", "ppo", "rloo", "sft", "simpo"]
)
def test_every_algorithm_declares_a_space(algo):
    axes = space_of(setup_of(f"algo={algo}"))
    assert axes[0].key == "train.learning_rate"
    assert len({a.key for a in axes}) == len(axes) >= (1 if algo == "sft" else 2)
    for axis in axes:  # each key is one that the command line takes
        point = Search([axis], "random", 0).ask(1)[0][1]
        assemble(plain_config(f"algo={algo}", *overrides_of(point)))


def test_an_algorithm_that_declares_nothing_has_its_learning_rate_and_beta():
    bare = setup_of("algo=dpo")
    bare = replace(bare, algo=replace(bare.algo, search={}))
    assert [a.key for a in space_of(bare)] == ["train.learning_rate", "beta"]


def test_what_the_command_line_fixes_is_not_searched():
    assert [a.key for a in space_of(setup_of("algo=dpo"), ["beta"])] == ["train.learning_rate"]
    with pytest.raises(UserError, match="fixes everything"):
        space_of(setup_of("algo=sft"), ["train.learning_rate"])


def test_ranges_of_all_kinds():
    axes = space_of(
        setup_of(
            "algo=grpo",
            beta={"low": 0.01, "high": 1, "log": True, "factor": 5},  # as a range on the command line is merged
            algo={"num_iterations": {"low": 1, "high": 4}, "scale_rewards": ["group", "none"]},
        )
    )
    assert axes == [
        Axis("beta", 0.01, 1, log=True),
        Axis("algo.num_iterations", 1, 4),
        Axis("algo.scale_rewards", choices=("group", "none")),
    ]
    points = [point for _, point in Search(axes, "random", 0).ask(40)]
    assert {p["algo.num_iterations"] for p in points} == {1, 2, 3, 4}
    assert {p["algo.scale_rewards"] for p in points} == {"group", "none"}
    assert all(0.01 <= p["beta"] <= 1 for p in points) and sum(p["beta"] < 0.1 for p in points) > 10
    assert [str(a) for a in axes] == [
        "beta 0.01–1 (log)", "algo.num_iterations 1–4", "algo.scale_rewards of group, none",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (3, "is no range"),
        ({"low": 1}, "is no range"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"factor": 1}, "above 1"),
        ({"factor": "x"}, "is no range"),
        ([], "is no range"),
    ],
)
def test_a_range_that_is_none_is_named(wanted, words):
    with pytest.raises(UserError, match=words) as refused:
        space_of(setup_of("algo=dpo", beta=wanted))
    assert refused.value.key == "algo.search.beta"


def test_a_factor_needs_a_value_to_start_from():
    with pytest.raises(UserError, match="value to start from"):
        space_of(setup_of("algo=dpo", algo={"gamma": {"factor": 5}}))


# -- points --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_questions_and_answers_give_the_same_points(sampler):
    axes = [Axis("beta", 0.01, 1.0, log=True), Axis("algo.gamma", 0.0, 2.0)]

    def points() -> list[dict[str, Any]]:
        search, found = Search(axes, sampler, 3), []
        for _ in range(6):
            asked = search.ask(2)
            found += [point for _, point in asked]
            for trial, point in asked:
                search.tell(trial, -abs(point["beta"] - 0.1))
        return found

    first = points()
    assert points() == first and len({json.dumps(p) for p in first}) == 12


def test_points_learn_from_what_they_are_told_where_the_search_is_adaptive():
    """The last of 40 points are nearer to the best than the first, as no random draw would be."""
    axes = [Axis("x", 0.0, 1.0)]
    search, found = Search(axes, "tpe", 0), []
    for _ in range(40):
        (trial, point), *_ = search.ask(1)
        search.tell(trial, -((point["x"] - 0.8) ** 2))
        found.append(abs(point["x"] - 0.8))
    assert sum(found[-10:]) < 0.5 * sum(found[:10])


# -- lists of points -----------------------------------------------------------------------------------


def test_points_of_a_file_are_a_sweep(tmp_path):
    file = tmp_path / "points.jsonl"
    file.write_text('["algo=dpo", "beta=0.2"]\n\n["algo=simpo", "beta=3"]\n["algo=dpo", "beta=0.2"]\n')
    words = [*QUICK, "sweep=x", "hydra/sweeper=listed", f"hydra.sweeper.file={file}"]
    sweep = plan_sweep(words, multirun=True)
    assert sweep.expanded and [p.trial.config["beta"] for p in sweep.points] == [0.2, 3.0]
    assert [twin for _, twin in sweep.duplicates] == [sweep.points[0].trial.trial_id]
    with pytest.raises(UserErrors, match=r"takes the points of a file|seed=0,1") as refused:
        try:
            plan_sweep([*words, "seed=0,1"], multirun=True)
        except UserError as error:
            raise UserErrors([error]) from None
    assert "seed=0,1" in str(refused.value)


def test_a_point_may_hold_what_else_ends_a_line_in_unicode(tmp_path):
    file = tmp_path / "points.jsonl"
    file.write_bytes('\ufeff["task.prefix=a\u2028b"]\r\n["beta=1"]'.encode())
    assert listed(str(file), []) == [["task.prefix=a\u2028b"], ["beta=1"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no point"), ("{}\n", "line 1 must be"), ('["beta=1"]\nbeta=2\n', "line 2 must be"), ("[1]", "line 1")],
)
def test_a_file_of_points_that_is_none_is_named(tmp_path, text, words):
    file = tmp_path / "points.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        listed(str(file), [])
    with pytest.raises(UserError, match="cannot be read"):
        listed(str(tmp_path / "none.jsonl"), [])
