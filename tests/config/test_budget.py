"""Training ends where the budget says, in any unit, for every algorithm, and the other units are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from harness.algorithms.budget_meter import Meter, rate
from harness.algorithms.dpo import DPO
from harness.algorithms.grpo import GRPO
from harness.algorithms.ppo.algorithm import PPO
from harness.base.errors import UserError, UserErrors
from harness.config.train import UNKNOWN_STEPS, Budget, Train, fill_from_preset
from harness.tasks.conversation import encode
from harness.trial.assemble import assemble
from tests.inside import plain_config, tell

FAST = ("eval=none", "adapter=lora", "train.steps=null", "train.logging_steps=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# -- arithmetic ----------------------------------------------------------------------------------------

TRAIN = Train(batch_size=16)


@pytest.mark.parametrize(("steps", "seen"), [(0, 0), (1, 16), (3, 48), (4, 50), (5, 66), (8, 100)])
def test_of_50_rows_in_batches_of_16_the_fourth_batch_has_2(steps, seen):
    assert DPO(beta=0.1).prompts_seen(steps, 50, TRAIN) == seen


@pytest.mark.parametrize(
    ("algo", "steps", "seen"),
    [
        (GRPO(num_generations=8), 3, 6),
        (GRPO(num_generations=8, num_iterations=4), 4, 2),
        (GRPO(num_generations=8, num_iterations=4), 5, 4),
        (GRPO(num_generations=4, rollout_batches=2), 2, 8),
        (PPO(epochs=4, minibatches=2), 8, 32),
        (PPO(epochs=4, minibatches=2), 9, 64),
    ],
)
def test_online_algorithms_count_the_prompts_of_their_rollouts(algo, steps, seen):
    assert algo.prompts_seen(steps, 1000, TRAIN) == seen


@pytest.mark.parametrize(
    "algo", [DPO(beta=0.1), GRPO(num_generations=8, num_iterations=3), PPO(epochs=4, minibatches=2)]
)
@pytest.mark.parametrize("prompts", [1, 16, 49, 50, 51, 64, 333, 5000])
def test_steps_for_prompts_are_the_most_that_stay_within_them(algo, prompts):
    steps = algo.steps_for(prompts, 50, TRAIN)
    rollout = algo.rollout(TRAIN)
    whole = rollout.steps if rollout else 1
    assert steps % whole == 0
    assert steps == whole or algo.prompts_seen(steps, 50, TRAIN) <= prompts
    assert algo.prompts_seen(steps + whole, 50, TRAIN) > prompts


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_over_a_budget_the_learning_rate_runs_as_transformers_lets_it_run_over_steps(name, warmup):
    steps = 40
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=int(warmup * steps), num_training_steps=steps)
    for step in range(steps):
        assert rate(step / steps, name, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()
    assert rate(1.2, "linear", warmup) == 0.0
    assert rate(1.2, "constant_with_warmup", warmup) == 1.0


def test_a_budget_silences_the_steps_and_epochs_of_the_recipe():
    table = {"tiny": {"lora": {"steps": 100, "batch_size": 64}}}
    budget = {"steps": None, "prompts": None, "tokens": 5, "seconds": None}
    filled = fill_from_preset({"preset": "tiny", "steps": None, "budget": budget, "batch_size": None}, table, "lora")
    assert filled["steps"] is None and filled["batch_size"] == 64


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.budget.tokens=10", "train.budget.seconds=2"), "one unit"),
        (("train.budget.tokens=10", "train.steps=2"), "train.steps=2"),
        (("train.budget.tokens=10", "train.epochs=2"), "train.epochs=2"),
        (("train.budget.tokens=0",), "greater than 0"),
        (("train.steps=2", "train.epochs=3"), "training ends after train.steps=2"),
        (("train.budget.hours=1",), "hours"),
    ],
)
def test_a_budget_that_contradicts_is_refused_by_name(compose, overrides, words):
    with pytest.raises((UserErrors, UserError)) as error:
        assemble(compose(*overrides))
    assert words in str(error.value) and "train." in str(error.value)


# -- whole trials --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["sft", "dpo", "ipo", "kto", "grpo", "ppo"])
def test_a_budget_of_tokens_ends_every_algorithm_with_the_step_that_reaches_it(tmp_path, cache, algo):
    told = tell(tmp_path, cache, f"algo={algo}", *FAST, "train.budget.tokens=900")
    seen = [value for _, name, value in told.series if name == "train/tokens"]
    assert seen[-1] == told.metrics["budget/tokens"] >= 900
    assert len(seen) == told.metrics["budget/steps"] > 1
    assert all(tokens < 900 for tokens in seen[:-1])
    rates = [value for _, name, value in told.series if name == "train/learning_rate"]
    assert max(rates) > 0 and rates[-1] < max(rates) / 2
    units = told.under("budget/").keys() - {"budget/reference_rows"}
    assert units == {"budget/steps", "budget/prompts", "budget/tokens", "budget/seconds"}


@pytest.mark.parametrize("algo", ["kto", "ppo"])
def test_a_budget_of_seconds_ends_training_soon_after_it(tmp_path, cache, algo):
    told = tell(tmp_path, cache, f"algo={algo}", *FAST, "train.budget.seconds=0.5")
    passed = [value for _, name, value in told.points if name == "train/seconds"]
    assert passed and told.metrics["budget/seconds"] >= 0.5
    assert all(seconds < 0.5 for seconds in passed[:-2]), "a step went on after the budget was spent"


@pytest.mark.parametrize(
    ("algo", "steps", "prompts"),
    [("dpo", 9, 72), ("kto", 9, 72), ("ppo", 36, 72), pytest.param("grpo", 78, 78, marks=pytest.mark.slow)],
)
def test_a_budget_of_prompts_is_the_same_rows_for_all(tmp_path, cache, algo, steps, prompts):
    told = tell(tmp_path, cache, f"algo={algo}", *FAST, "train.budget.prompts=78")
    assert told.metrics["budget/steps"] == steps
    assert told.metrics["budget/prompts"] == prompts


def test_tokens_are_those_of_both_sides_of_a_pair_without_padding(tmp_path, cache):
    overrides = ("algo=dpo", *FAST, "train.epochs=2")
    told = tell(tmp_path, cache, *overrides)
    setup = assemble(plain_config(*overrides))
    tokenizer = setup.model.tokenizer(next(p for p in (cache / "sft").iterdir() if p.is_dir()))
    by_hand = sum(
        len(ids)
        for row in setup.task.load().train_pairs
        for side in ("chosen", "rejected")
        for ids in encode(tokenizer, row["prompt"], row[side])
    )
    assert told.metrics["budget/tokens"] == 2 * by_hand
    assert told.metrics["budget/prompts"] == 128


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_each_pass_over_a_rollout_trains_its_tokens_anew_and_the_critic_adds_none(tmp_path, cache, adapter):
    once, thrice = (
        tell(tmp_path / str(n), cache, "algo=ppo", *FAST, f"adapter={adapter}", f"algo.epochs={n}", f"train.steps={n}")
        for n in (1, 3)
    )
    assert thrice.metrics["budget/tokens"] == 3 * once.metrics["budget/tokens"]
    response = 8 * next(value for _, name, value in once.series if name == "train/response_tokens")
    assert response < once.metrics["budget/tokens"] < response + 8 * len("99+9=..")


def test_a_resumed_trial_counts_on_from_its_checkpoint(tmp_path):
    meter = Meter(DPO(beta=0.1), Train(batch_size=4, budget=Budget(tokens=1000)))
    meter.rows = 100
    model = torch.nn.Linear(1, 1)
    ids = torch.ones(4, 25)
    meter._count(model, (), {"input_ids": ids, "attention_mask": ids})
    with torch.no_grad():
        meter._count(model, (), {"input_ids": ids})  # a reference, or a rollout
    (tmp_path / "checkpoint-1").mkdir()

    class State:
        global_step = 1

    class Arguments:
        output_dir = tmp_path

    meter.on_train_begin(Arguments, State, None)
    meter.on_save(Arguments, State, None)
    again = Meter(meter.algo, meter.train)
    again.rows = 100
    again.restore(tmp_path / "checkpoint-1")
    again.on_train_begin(Arguments, State, None)
    assert again.spent["tokens"] == 100 and again.share == pytest.approx(0.1)
    assert again.spent["prompts"] == 4
    assert again.expected(1, UNKNOWN_STEPS) == 10
    assert again.expected(1, 7) == 7
