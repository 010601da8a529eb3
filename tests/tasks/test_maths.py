"""Answers compared as mathematics: what is the same, what takes too long, and that nothing is left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.config import closure, identity
from harness.rewards.maths import Maths
from harness.tasks.base import TaskData
from harness.tasks.judging import maths, tally
from harness.tasks.problems import Problems

pytest.importorskip("math_verify", reason="the extra maths is not installed")
ENDLESS = "the answer is $2^{10^{10}}$"


@pytest.mark.parametrize(
    ("answer", "said", "same"),
    [
        ("42", "so the answer is 42.", True),
        ("\\frac{1}{2}", "\\boxed{0.5}", True),
        ("$\\frac{3}{4}$", "3/4", True),
        ("x^2+2x+1", "$(x+1)^2$", True),
        ("\\{1,2\\}", "$\\{2,1\\}$", True),
        ("1,234", "#### 1234", True),
        ("50%", "\\boxed{0.5}", True),
        ("42", "\\boxed{41} or \\boxed{42}", False),
        ("42", "I will not say", False),
        ("42", "", False),
        ("(1,2)", "$(2,1)$", False),
        ("x^2", "$x^3$", False),
        ("\\$18", "\\boxed{18}", True),
        ("\\$18.90", "The answer is $18.90$.", True),
        ("18", "\\boxed{\\$18}", True),
        ("CAB", "\\boxed{ABC}", False),
        ("CAB", "so \\boxed{CAB}", True),
        ("\\text{even}", "\\boxed{\\text{even}}", True),
        ("\\text{even}", "\\boxed{\\text{odd}}", False),
        ("east", "\\boxed{\\text{east}}", True),
    ],
)
def test_what_is_the_same_mathematics(answer, said, same):
    assert maths.same([answer], [said]) == [same]


def test_an_answer_that_takes_too_long_is_none_is_counted_and_holds_up_nothing():
    tally.take()
    began = time.monotonic()
    assert maths.same(["1", "42", "7"], [ENDLESS, "it is 42", "$7$"], limit_s=0.7) == [False, True, True]
    assert tally.take() == (3, 1)
    assert time.monotonic() - began < 40  # it would take a minute and a half alone
    assert maths.same(["9"], ["$9$"], limit_s=0.7) == [True], "another process judges after one that was ended"


def test_an_answer_that_is_no_mathematics_is_compared_as_text():
    row = {"prompt": "q", "answer": "?!"}
    assert Maths()([row, row], [" ?! ", "no"]) == [1.0, 0.0]
    assert Maths()([{"prompt": "q", "answer": None}], ["None"]) == [0.0]


def test_a_reward_reads_its_column_and_names_those_that_there_are():
    data = TaskData(train_prompts=[{"prompt": "q", "solution": "1"}])
    (error,) = Maths().data_problems(data)
    assert error.key == "reward.column" and "prompt, solution" in str(error)
    assert Maths(column="solution").data_problems(data) == []


def test_a_task_compares_its_answers_as_it_is_told(tmp_path: Path):
    path = tmp_path / "problems.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{i}/4?", "answer": f"\\frac{{{i}}}{{4}}"}) + "\n" for i in range(9))
    )
    task, row = Problems(path=str(path), answers="math"), {"prompt": "q", "answer": "\\frac{3}{4}"}
    assert task.load().train_prompts
    assert [s.reward for s in task.scores([row, row], ["\\boxed{0.75}", "0.7"])] == [1.0, 0.0]
    assert Problems(path=str(path)).score(row, "\\boxed{0.75}").reward == 0.0


def test_without_the_package_the_task_and_the_reward_are_refused(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(maths.importlib.util, "find_spec", lambda name: None)
    assert "[maths]" in str(maths.problem("reward"))
    assert [e.key for e in Maths().problems(Problems(path="x"))] == ["reward"]
    with pytest.raises(UserError, match="math-verify is not installed"):
        Problems(path="x.jsonl", answers="math").load()


def test_a_process_that_was_ended_while_it_waited_is_started_again():
    assert maths.same(["5"], ["it is $5$"]) == [True]
    judge = maths._bench.take()
    if judge.process is not None:
        judge.process.kill()
        judge.process.wait()
    maths._bench.give_back(judge)
    assert maths.same(["5", "6"], ["then $5$", "then $7$"]) == [True, False]


def test_what_judges_is_part_of_a_trials_keys():
    names = closure.closure([Maths.__module__])
    assert "harness.tasks.judging.maths_judge" in names and "math_verify" in identity.versions_beside(names)
    inside = closure.closure(["harness.sandbox.exam"])
    assert {"harness.sandbox.inside.examiner", "harness.sandbox.inside.candidate"} <= inside.keys()
