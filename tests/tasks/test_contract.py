"""A task of the user's own is held to its contract before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from harness.base.errors import UserErrors
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import Score, Task, TaskData
from harness.tasks.contract import check_contract

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


@dataclass(frozen=True)
class Mine(Task):
    has_reward: ClassVar[bool] = True

    def load(self) -> TaskData:
        return TaskData()

    def score(self, row: Any, completion: str) -> Any:
        return row["gives"](completion)


def test_the_embedded_task_keeps_it():
    task = Arithmetic(pairs=5, eval_pairs=2, eval_prompts=2)
    assert check_contract(task, task.load()).train_pairs


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([GOOD], "load() must return a harness.tasks.base.TaskData, not list"),
        (TaskData(train_pairs=[GOOD, {"prompt": "q", "chosen": "a"}]), "train_pairs[1] lacks 'rejected'"),
        (TaskData(train_pairs=["row"]), "train_pairs[0] must be a dictionary, not str"),  # type: ignore[list-item]
        (TaskData(train_prompts=[{"prompt": 7}]), "train_prompts[0]['prompt'] must be text or a list"),
        (TaskData(eval_pairs={"test": [{"prompt": ["hi"]} | {k: "a" for k in ("chosen", "rejected")}]}),
         "eval_pairs['test'][0]['prompt'] must be text or a list"),
        (TaskData(train_unpaired=[{"prompt": "q", "completion": "a", "label": "good"}]), "must be true or false"),
        (TaskData(eval_prompts={"test": "rows"}), "eval_prompts['test'] must be a list of rows"),
        (TaskData(train_unpaired=[{"prompt": "q", "completion": "a", "label": -1}]), "must be true or false, not -1"),
        (TaskData(eval_pairs=[GOOD]), "eval_pairs must be a dictionary of rows by split, not list"),
        (TaskData(eval_prompts={"valid": []}), "has the split 'valid', which nothing reads"),
        (TaskData(train_pairs=[{**GOOD, "chosen": [{"role": "assistant", "content": "a"}]}]),
         "let the prompt be messages too"),
        (TaskData(train_prompts=[{"prompt": [{"role": "human", "content": "q"}]}]), "chat templates call 'user'"),
    ],
)  # fmt: skip
def test_what_breaks_it_is_named_with_kind_row_and_field(data, words):
    with pytest.raises(UserErrors) as caught:
        check_contract(Mine(), data)
    assert words in str(caught.value) and "test_contract.Mine" in str(caught.value)


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (lambda _: 1.0, "score() must return a Score"),
        (lambda _: Score(float("nan"), True), "score() must return a Score with a finite reward"),
        (lambda c: Score(float(c), True), "score() raised ValueError"),
        (lambda c: Score(1.0, "no"), "correct true or false, not Score(reward=1.0, correct='no')"),
        (lambda c: {}["answer"], "give the rows of train_prompts and eval_prompts what score() reads: 'answer'"),
    ],
)
def test_a_score_that_is_none_is_said_before_the_run(gives, words):
    with pytest.raises(UserErrors) as caught:
        check_contract(Mine(), TaskData(train_prompts=[{"prompt": "q", "gives": gives}]))
    assert words in str(caught.value)


def test_a_score_that_takes_its_arguments_in_another_order_is_found_by_their_names():
    @dataclass(frozen=True)
    class Swapped(Mine):
        def score(self, completion: Any, row: Any) -> Any:
            return Score(float(row in completion), True)

    with pytest.raises(UserErrors, match="takes the row first"):
        check_contract(Swapped(), TaskData(train_prompts=[{"prompt": "q"}]))


def test_a_score_that_nobody_asks_is_said():
    @dataclass(frozen=True)
    class Unasked(Mine):
        has_reward: ClassVar[bool] = False

    with pytest.raises(UserErrors, match="has_reward: ClassVar"):
        check_contract(Unasked(), TaskData(train_pairs=[GOOD]))


def test_completions_that_repeat_their_prompt_are_noted():
    rows = [
        {"prompt": f"question {i}?", "chosen": f"question {i}? yes", "rejected": f"question {i}? no"} for i in range(5)
    ]
    (note,) = check_contract(Mine(), TaskData(train_pairs=rows)).notes
    assert "5 of the first 5 completions begin with their prompt" in note
    assert not check_contract(Mine(), TaskData(train_pairs=[GOOD] * 5)).notes
