"""Rewards made of rewards: ensembles, prices of length, bounds; and several reward models on one base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.models.adapters import LoRA
from harness.rewards.base import Desk, Reward, Verifier
from harness.rewards.ensemble import Ensemble
from harness.rewards.model import ModelReward
from harness.rewards.rules import Length
from harness.rewards.shaped import Shaped
from harness.rewards.weighted import Part, Weighted
from harness.tasks.arithmetic import Arithmetic
from tests.runs import Sandbox

ROW = {"prompt": "12+7=", "answer": "19"}
GIVEN = {"0": [1.0, 4.0], "1": [3.0, 4.0]}
STAGE = {"learning_rate": 1e-3, "steps": 5, "batch_size": 4, "contrast": 0.0}


@dataclass(frozen=True)
class Says(Reward):
    """Pays a number."""

    number: float = 0.0

    def __call__(self, rows: Any, completions: Sequence[str]) -> list[float]:
        """For each."""
        return [self.number] * len(completions)


@pytest.mark.parametrize(
    ("how", "deviations", "numbers"),
    [("mean", 1.0, [2.0, 4.0]), ("min", 1.0, [1.0, 4.0]), ("lower", 1.0, [1.0, 4.0]), ("lower", 0.5, [1.5, 4.0])],
)
def test_an_ensemble_is_its_mean_its_least_or_its_mean_less_what_it_disagrees_by(how, deviations, numbers):
    assert Ensemble(how=how, deviations=deviations).combined(GIVEN, ["a", "b"]) == numbers


def test_what_the_members_of_an_ensemble_disagree_by_is_logged():
    assert Ensemble().means(GIVEN) == {"reward_disagreement": 0.5}


def test_members_differ_in_their_seed_or_path_alone_and_each_is_a_stage():
    bound = Ensemble(model=ModelReward(seed=3, pairs=50, **STAGE)).bind(Arithmetic(), LoRA(), "tiny")
    assert [spec.seed for spec in bound.stages()] == [3, 4, 5]
    assert len({spec.key for spec in bound.stages()}) == 3 and all(s.pairs == 50 for s in bound.stages())
    alone = ModelReward(seed=4, pairs=50, **STAGE).bind(Arithmetic(), LoRA(), "tiny")
    assert bound.stages()[1].key == alone.stages()[0].key, "a model that another trial trained is taken"
    paths = Ensemble(paths=("a/b", "c/d")).members().values()
    assert [member.path for member in paths if isinstance(member, ModelReward)] == ["a/b", "c/d"]


def test_one_member_is_no_ensemble():
    (error,) = Ensemble(count=1).problems(Arithmetic())
    assert error.key == "reward.count"
    (error,) = Ensemble(paths=("a/b",)).problems(Arithmetic())
    assert error.key == "reward.paths"


def test_a_model_does_not_agree_with_itself():
    (error,) = Ensemble(model=ModelReward(path="org/rm")).problems(Arithmetic())
    assert error.key == "reward.model.path"
    (error,) = Ensemble(paths=("a/b", "a/b")).problems(Arithmetic())
    assert error.key == "reward.paths" and "twice" in str(error)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_member_without_a_finite_number_is_named_and_not_hidden(number):
    score = Shaped(reward=Says(number)).open(Desk(None, None, list, {}, "cpu", None))
    with pytest.raises(UserError, match=r"reward\.reward: gives no finite number"):
        score([ROW], ["x"], [True])


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"bound": "sigmoid"}, 1 / (1 + math.exp(-3))),
        ({"bound": "none", "per_character": -0.5, "free": 2}, 3 - 0.5 * 3),
        ({"bound": "clip", "low": -1, "high": 2}, 2),
        ({"bound": "clip", "low": -1, "per_character": -9}, -1),
        ({"bound": "sigmoid", "per_character": -300}, 0.0),
    ],
)
def test_a_reward_is_priced_and_then_bounded(options, number):
    assert Shaped(reward=Says(3.0), **options)([ROW], ["12345"]) == [pytest.approx(number)]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"bound": "clip"}, "reward.bound"),
        ({"bound": "sigmoid", "low": 0.0}, "reward.bound"),
        ({"bound": "clip", "low": 1.0, "high": 1.0}, "reward.low"),
    ],
)
def test_bounds_that_are_none_are_refused(options, key):
    assert [error.key for error in Shaped(reward=Says(), **options).problems(Arithmetic())] == [key]


def test_what_a_part_needs_a_reward_of_rewards_needs():
    inner = Weighted({"rule": Part(Verifier()), "style": Part(Length(per_character=-0.01))})
    bound = Shaped(reward=inner, bound="none").bind(Arithmetic(), LoRA(), "tiny")
    assert bound([ROW], ["19"])[0] == pytest.approx(
        Verifier().bind(Arithmetic(), LoRA(), "tiny")([ROW], ["19"])[0] - 0.02
    )
    nested = Shaped(reward=Ensemble(model=ModelReward(**STAGE), count=2)).bind(Arithmetic(), LoRA(), "tiny")
    assert len(nested.stages()) == 2
    assert nested.contents() == {}
    opened = Shaped(reward=Says(0.0)).open(Desk(None, None, list, {}, "cpu", None))
    assert list(opened([ROW], ["x"], [True])) == [0.5]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_several_reward_models_score_beside_each_other(tmp_path, cache_dir, adapter):
    sandbox = Sandbox(tmp_path, cache_dir)
    short = ("reward.model.steps=3", "reward.model.batch_size=8", "train.steps=2", "train.batch_size=8")
    done = sandbox.run("algo=grpo", f"adapter={adapter}", "reward=ensemble", "reward.count=2", *short, "sweep=several")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = sandbox.folders("several")
    logged = [e for e in sandbox.events(folder, "worker.jsonl") if "reward_disagreement" in str(e)]
    assert logged, "what they disagree by is logged"
    roles = sandbox.results("several")[folder.name]["metrics"]
    assert roles["memory/role_reward_mb"] > 0
    single = sandbox.run(
        "algo=grpo", f"adapter={adapter}", "reward=model", *[o.replace(".model", "") for o in short], "sweep=one"
    )
    assert single.returncode == 0, single.stdout + single.stderr
    (alone,) = sandbox.folders("one")
    held = sandbox.results("one")[alone.name]["metrics"]["memory/role_reward_mb"]
    assert roles["memory/role_reward_mb"] == pytest.approx(2 * held, rel=0.05)
