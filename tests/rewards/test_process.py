"""The process reward: what it refuses, what it reads from a file, and what PPO, GRPO and RLOO make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import UserError, UserErrors
from harness.config.compose import compose, hydra_config
from harness.models.classifier import with_score
from harness.models.loading import character_tokenizer
from harness.rewards.base import Desk
from harness.rewards.learned import Held
from harness.rewards.process import Graded, ProcessReward
from harness.rewards.scoring import Scorer
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.tasks.reading.steps import read_steps
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from tests.inside import tell
from tests.toys import random_llama, write_jsonl

ROWS = [{"prompt": f"{n}+1-1=", "completions": [f"{n + 1}-1", f"{n}"], "labels": [True, n % 2 == 0]} for n in range(40)]


def composed(*overrides: str) -> Any:
    with hydra_config():
        return compose(["sweep=test", *overrides])


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        check_data(assemble(composed(*overrides)))
    return str(caught.value)


# -- refusals ------------------------------------------------------------------------------------------


def test_a_task_without_steps_needs_rows_of_them_or_a_model():
    said = refused("algo=ppo", "reward=process")
    assert "which steps" in said and "reward.path_of_steps" in said and "task.steps=2" in said
    for fine in (["task.steps=2"], ["algo=dpo"]):
        assemble(composed("algo=ppo", "reward=process", *fine))


def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path):
    def of(*rows: Any) -> str:
        path = write_jsonl(tmp_path / "steps.jsonl", [*rows, *ROWS])
        return told(path)

    def told(path: Any) -> str:
        return str(ProcessReward(path_of_steps=str(path)).data_problems(TaskData())[0])

    assert "line 1" in (said := of({"prompt": "a", "completions": ["b"]})) and "labels" in said
    assert "one for each step" in of({"prompt": "a", "steps": ["b", "c"], "labels": [True]})
    assert "must be true or false" in of({"prompt": "a", "steps": ["b"], "labels": [7]})
    assert "neither steps nor completions" in of({"prompt": "a", "labels": [True]})
    missing = told("/nowhere/steps.jsonl")
    assert "does not exist" in missing and "reward.path_of_steps" in missing
    few = write_jsonl(tmp_path / "few.jsonl", ROWS[:2])
    assert "2 distinct prompts" in told(few)
    held = TaskData(eval_prompts={"test": ROWS})
    whole = write_jsonl(tmp_path / "held.jsonl", ROWS)
    assert "held out by the task" in str(ProcessReward(path_of_steps=str(whole)).data_problems(held)[0])


def test_a_model_that_is_taken_as_it_is_learns_from_no_rows(tmp_path):
    said = refused("algo=ppo", "reward=process", "reward.path=some/model", "reward.path_of_steps=steps.jsonl")
    assert "is not trained" in said


def test_an_aggregate_that_nobody_knows_names_those_that_there_are():
    with pytest.raises(UserErrors, match="min"):
        assemble(composed("algo=ppo", "reward=process", "task.steps=2", "reward.aggregate=sum"))


# -- rows of a file ------------------------------------------------------------------------------------


def test_rows_of_a_file_are_split_by_prompt_and_unlabelled_ones_are_passed_over(tmp_path):
    unknown = {"prompt": "0+1-1=", "completions": ["1-1", "0"], "labels": [1, None]}
    path = str(write_jsonl(tmp_path / "steps.jsonl", [*ROWS, unknown]))
    found = read_steps(path, key="k", held_out=0.2, seed=0)
    parts = [found.train, found.held_out["validation"], found.held_out["test"]]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert len({row["prompt"] for part in parts for row in part}) == 40
    assert found.train[0].keys() == {"prompt", "steps", "labels"}
    away = found.away_from({"test": [{"prompt": found.train[0]["prompt"].upper()}]})
    assert away.train == found.train[1:] and away.digest != found.digest


def test_another_file_under_the_same_name_is_another_reward(tmp_path):
    path = write_jsonl(tmp_path / "steps.jsonl", ROWS)
    reward = ProcessReward(path_of_steps=str(path))
    before = reward.contents()
    write_jsonl(path, [*ROWS[:-1], {**ROWS[-1], "labels": [True, True]}])
    assert reward.contents() != before and before.keys() == {"path_of_steps"}
    assert len(read_steps(str(path), key="k", held_out=0.2, seed=0).train) == 32


# -- grades --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk() -> Desk:
    rows: Any = lambda rows: [dict(row) for row in rows]  # noqa: E731
    return Desk(None, character_tokenizer(96), rows, {}, "cpu", torch.float32)


@pytest.fixture(scope="module")
def shell(desk) -> Any:
    model = with_score(random_llama(0), each_token=True).eval()
    torch.nn.init.normal_(model.score.weight)
    return model


def graded(desk: Desk, shell: Any, **fields: Any) -> Graded:
    from contextlib import nullcontext

    reward = ProcessReward(separator="=", **fields)
    return Graded(reward, desk, Held(shell, desk.tokenizer, nullcontext))


def chance(desk: Desk, shell: Any, text: str) -> float:
    """What the model says at the last character of a text."""
    with torch.no_grad():
        return torch.sigmoid(shell(input_ids=torch.tensor([desk.tokenizer(text)["input_ids"]])).logits[0, -1, 0]).item()


def test_each_step_has_the_chance_that_the_model_gives_at_its_separator(desk, shell):
    score = graded(desk, shell, aggregate="min")
    rows, texts = [{"prompt": "12+7-3="}] * 4, ["19-3=16", "19-3=16", "", "19-3="]
    first, whole, cut = (chance(desk, shell, "12+7-3=" + t) for t in ("19-3=", "19-3=16=", "19-3=16"))
    found = score(rows, texts, [True, False, True, False])
    assert found == pytest.approx([min(first, whole), min(first, cut), 0.0, first], abs=1e-5)
    placed = score.placed()
    assert placed is not None and [[p.end for p in own] for own in placed] == [[5, 7], [5, 7], [], [5]]
    assert [sum(p.share for p in own) for own in placed] == pytest.approx(found, abs=1e-5)
    assert score.means()["reward_steps"] == pytest.approx(5 / 4) and score.means()["reward_without_steps"] == 0.25


def test_a_completion_without_steps_is_paid_what_is_said_and_a_reward_that_is_not_dense_places_nothing(desk, shell):
    score = graded(desk, shell, without_steps=0.25, dense=False)
    assert score([{"prompt": "1+1="}] * 2, ["", " "], [True, True]) == [0.25, 0.25]
    assert score.placed() is None


def test_what_the_trainer_asks_is_told_where_rewards_are_placed(desk, shell):
    reward = ProcessReward(separator="=")
    scorer = Scorer(reward, Arithmetic(steps=2), [{"prompt": "12+7-3=", "answer": "16"}])
    assert scorer.placed() is None
    scorer.use(graded(desk, shell))
    scorer(["19-3=16"], [0], [True])
    placed = scorer.placed()
    assert placed is not None and [p.end for p in placed[0]] == [5, 7]
    assert scorer.means()["correct"] == 1 and scorer.means()["reward_steps"] == 2


# -- trials --------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize(
    "options",
    [
        ("algo=ppo", "adapter=full"),
        ("algo=ppo", "adapter=lora", "rank=2"),
        ("algo=ppo", "adapter=lora", "rank=2", "reward.dense=false"),
        ("algo=grpo", "adapter=qlora", "rank=2"),
        ("algo=rloo", "adapter=lora", "rank=2", "reward.aggregate=mean"),
    ],
)
def test_algorithms_train_on_graded_steps(tmp_path, options):
    fast = ("reward=process", "task.steps=2", "reward.steps=3", "reward.rows=200", "reward.batch_size=8", "eval=none",
            "train.steps=4", "train.batch_size=8")  # fmt: skip
    told = tell(tmp_path, tmp_path / "cache", *options, *fast)
    (stage,) = [e.data for e in told.events if e.kind == "stage" and e.data["stage"] == "process_model"]
    assert {"test/step_accuracy", "validation/brier", "test/row_accuracy"} <= set(stage["metrics"])
    assert {"train/reward", "train/reward_steps", "train/reward_per_step"} <= {name for _, name, _ in told.series}
    assert told.under("memory/role_")["memory/role_reward_mb"] > 0


@pytest.mark.nightly
def test_a_model_is_trained_on_rows_of_a_file_and_taken_by_path(tmp_path):
    path = write_jsonl(tmp_path / "steps.jsonl", ROWS)
    fast = ("algo=ppo", "adapter=full", "reward=process", "eval=none", "train.steps=2", "train.batch_size=8")
    own = ("reward.steps=3", "reward.batch_size=8", "reward.separator='='", f"reward.path_of_steps={path}")
    told = tell(tmp_path / "a", tmp_path / "cache", *fast, *own)
    (stage,) = [e.data for e in told.events if e.kind == "stage" and e.data["stage"] == "process_model"]
    assert stage["metrics"]["rows"] <= 36
    (folder,) = [p.parent for p in Path(tmp_path / "cache" / "process_model").glob("*/config.json")]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForTokenClassification"]
    again = tell(tmp_path / "b", tmp_path / "cache", *fast, f"reward.path={folder}", "reward.separator='='")
    assert "process_model" not in again.stages
