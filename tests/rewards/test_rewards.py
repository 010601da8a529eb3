"""Rewards: rules with known answers, sums, and what a user is told when one goes wrong."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import UserError, UserErrors
from harness.config.building import build
from harness.config.compose import compose, hydra_config
from harness.models.adapters import Full, LoRA
from harness.rewards.base import Reward, Verifier
from harness.rewards.model import ModelReward
from harness.rewards.rules import ExactMatch, Format, Length, NumericAnswer
from harness.rewards.scoring import Scorer
from harness.rewards.weighted import Part, Weighted
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import Task, TaskData
from harness.tasks.judging import patterns
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from harness.trial.identify import identify

ROWS = ({"prompt": "12+7=", "answer": "19"}, {"prompt": "?+1=", "answer": None})
TASK = Arithmetic()


def pays(reward: Any, completion: str, row: Any = ROWS[0]) -> float:
    return list(reward([row], [completion]))[0]


@pytest.mark.parametrize(("said", "paid"), [("19", 1), (" 19\n", 1), ("19.", 0), ("so 19", 0), ("", 0)])
def test_exact_match(said, paid):
    assert pays(ExactMatch(), said) == paid


def test_exact_match_may_ignore_case_and_never_pays_where_there_is_no_answer():
    row = {"prompt": "capital of France?", "answer": "Paris"}
    assert pays(ExactMatch(), "paris", row) == 0
    assert pays(ExactMatch(ignore_case=True), "paris", row) == 1
    assert pays(ExactMatch(), "None", ROWS[1]) == 0


@pytest.mark.parametrize(
    ("said", "answer", "paid"),
    [
        ("3 + 4 = 7, so #### 7", "7", 1),
        ("it is 1,234.00", "1234", 1),
        ("#### 7 (not 8)", "7", 1),
        ("7 or 8", "7", 0),
        ("none", "7", 0),
    ],
)
def test_numeric_answers_are_judged_as_gsm8k_judges_them(said, answer, paid):
    assert pays(NumericAnswer(), said, {"prompt": "q", "answer": answer}) == paid


def test_a_format_is_searched_for_or_matched_whole():
    assert pays(Format(pattern=r"<think>.*</think>"), "x <think>a\nb</think> y") == 1
    assert pays(Format(pattern=r"<think>.*</think>", whole=True), "x <think>a</think>") == 0
    assert pays(Format(pattern=r"\d+", whole=True), "42") == 1


BACKTRACKS = r"(?:a+){2,40}c"


def test_a_pattern_that_backtracks_pays_nothing_for_a_completion_and_is_counted(monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT_S", 0.05)
    scorer = Scorer(Format(pattern=BACKTRACKS), SimpleNamespace(has_reward=False), ROWS)
    assert scorer(["a" * 60 + "b", "aaac", "b"], [0, 0, 0], [True] * 3) == [0.0, 1.0, 0.0]
    assert scorer.means() == {"reward_timeouts": 1 / 3}
    assert scorer(["aac"], [0], [True]) == [1.0]
    assert scorer.means() == {"reward_timeouts": 0.0}


def test_other_threads_run_while_a_pattern_backtracks(monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT_S", 0.5)
    beats: list[float] = []
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    assert pays(Format(pattern=BACKTRACKS), "a" * 60 + "b") == 0
    stop.set()
    thread.join()
    assert len(beats) > 4


def test_length_costs_or_pays_up_to_a_limit():
    assert pays(Length(per_character=-0.01), "12345") == pytest.approx(-0.05)
    assert pays(Length(per_character=0.1, longest=3), "12345") == pytest.approx(0.3)


def test_a_sum_weighs_its_parts():
    parts = {"rule": Part(Verifier(), 2.0), "brevity": Part(Length(per_character=-0.1), 0.5), "off": None}
    bound = Weighted(parts).bind(TASK, Full(), "tiny")
    assert pays(bound, "19") == pytest.approx(2 * 0.96 - 0.5 * 0.2)
    opened = bound.open(None)  # type: ignore[arg-type]
    assert list(opened(list(ROWS), ["19", "17"], [True, True])) == pytest.approx(list(bound(list(ROWS), ["19", "17"])))


# -- what is said before anything runs -----------------------------------------------------------------


def setup_of(*overrides: str) -> Any:
    with hydra_config():
        return assemble(compose(["sweep=test", "algo=grpo", *overrides]))


@pytest.mark.parametrize(
    "name", ["verifier", "exact_match", "numeric_answer", "format", "length", "flawed_length", "weighted", "model"]
)
def test_every_reward_that_ships_makes_a_trial(name):
    setup = setup_of(f"reward={name}")
    check_data(setup)
    assert isinstance(setup.reward, Reward)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("reward=format", "reward.pattern='('"), "reward.pattern"),
        (("reward=exact_match", "reward.column=gold"), "reward.column"),
        (("reward=model", "reward.path=/no/such/model"), "reward.path"),
        (("reward=weighted", "reward.parts.rule=null", "reward.parts.brevity=null"), "reward.parts"),
        (("reward=model", "train.preset=unheard_of", "train.learning_rate=1", "train.steps=1", "train.batch_size=8"),
         "reward.learning_rate"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_reward_is_said_with_its_key(overrides, key):
    with pytest.raises((UserErrors, UserError)) as caught:
        check_data(setup_of(*overrides))
    assert key in str(caught.value)


def test_the_reward_model_stage_needs_pairs():
    (error,) = ModelReward().data_problems(TaskData(train_prompts=ROWS))
    assert "has none" in str(error) and "reward.path" in str(error)


def test_a_stage_draws_its_pairs_by_its_seed_and_more_of_them_are_the_same_and_more():
    def drawn(pairs: int | None, seed: int = 0) -> list[int]:
        reward = setup_of("algo=grpo", "reward=model", f"reward.pairs={pairs or 'null'}", f"reward.seed={seed}").reward
        return list(reward.spec.drawn(list(range(100))))

    assert drawn(None) == list(range(100))
    assert drawn(20)[:5] == drawn(5) and len(set(drawn(20))) == 20 and drawn(5) != drawn(5, seed=1)


def test_more_pairs_than_there_are_are_refused():
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    (error,) = ModelReward(pairs=3).data_problems(TaskData(train_pairs=[row, row]))
    assert error.key == "reward.pairs" and error.value == 3 and error.fix == "at most 2"
    assert not ModelReward(pairs=2).data_problems(TaskData(train_pairs=[row, row]))


def test_the_reward_model_follows_the_trials_adapter_unless_it_is_to_be_full():
    same = setup_of("reward=model", "adapter=lora", "rank=4").reward
    assert isinstance(same.spec.adapter, LoRA) and same.spec.adapter.rank == 4
    full = setup_of("reward=model", "adapter=lora", "reward.adapter=full").reward
    assert isinstance(full.spec.adapter, Full) and full.spec.learning_rate != same.spec.learning_rate
    assert same.spec.key != full.spec.key


def test_seeds_share_a_reward_model_and_rewards_split_trials():
    def trial(*overrides: str) -> Any:
        setup = setup_of(*overrides)
        return setup, identify(setup, check_data(setup))

    (a, one), (b, two) = trial("reward=model", "seed=0"), trial("reward=model", "seed=1")
    assert a.reward.spec.key == b.reward.spec.key and one.train_key != two.train_key
    assert "presets" not in one.config["reward"] and "task" not in one.config["reward"]
    assert trial("reward=weighted")[1].train_key != trial("reward=verifier")[1].train_key
    assert "task" not in trial("reward=weighted")[1].config["reward"]["parts"]["rule"]["reward"]


def test_an_offline_trial_ignores_the_reward():
    with hydra_config():
        setups = [assemble(compose(["sweep=test", "algo=dpo", f"reward={r}"])) for r in ("verifier", "length")]
    keys = {identify(s, check_data(s)).train_key for s in setups}
    assert len(keys) == 1


# -- in the trial --------------------------------------------------------------------------------------


def test_an_error_names_the_function_and_the_row_that_breaks_it():
    @dataclass(frozen=True)
    class Divides(Reward):
        def __call__(self, rows: Any, completions: Any) -> Any:
            return [1 / len(text) for text in completions]

    scorer = Scorer(Divides(), TASK, ROWS)
    with pytest.raises(UserError) as caught:
        scorer(["19", "", "x"], [0, 1, 0], [True] * 3)
    said = str(caught.value)
    assert "Divides raised ZeroDivisionError" in said and "'?+1='" in said and "completion ''" in said


def test_the_true_reward_is_told_beside_a_reward_that_is_another():
    scorer = Scorer(Length(per_character=1.0), TASK, ROWS)
    assert scorer(["19", "7"], [0, 1], [True, True]) == [2.0, 1.0]
    assert scorer.means() == {"true_reward": pytest.approx((0.96 - 0.02) / 2), "correct": 0.5}


def test_a_task_without_a_true_reward_tells_none():
    @dataclass(frozen=True)
    class Plain(Task):
        def load(self) -> TaskData:
            return TaskData()

    scorer = Scorer(Length(), Plain(), ROWS)
    scorer(["19"], [0], [True])
    assert scorer.means() == {}


def test_a_part_without_target_is_refused():
    node = {"_target_": "harness.rewards.weighted.Weighted", "parts": {"x": {"weight": 1.0}}}
    with pytest.raises(UserErrors):
        build(node, path="reward", base=Reward)


def test_the_code_of_a_plugins_reward_counts_inside_a_sum_too():
    from harness.config.identity import modules_of

    @dataclass(frozen=True)
    class Mine(Reward):
        def __call__(self, rows: Any, completions: Any) -> Any:
            return [0.0] * len(completions)

    own = ("harness.rewards.base", "harness.rewards.weighted")
    assert modules_of([Weighted({"mine": Part(Mine()), "rule": Part(Verifier())})]) == (*own, __name__)
    assert modules_of([Weighted({"rule": Part(Verifier())}), None]) == own
