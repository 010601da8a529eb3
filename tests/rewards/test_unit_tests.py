"""Programs that are paid for passing tests: the reward by name, on the task's rows and on others."""

from __future__ import annotations

import pytest

from harness.rewards.unit_tests import UnitTests
from harness.sandbox import exam, jail
from harness.tasks.base import TaskData
from harness.tasks.code import Code
from harness.tasks.judging import tally

sandboxed = pytest.mark.skipif(jail.problem("bubblewrap") is not None, reason=f"{jail.problem('bubblewrap')}")
ROW = {"prompt": "Double a number with twice(x).", "tests": "assert twice(2) == 4\nassert twice(0) == 0"}
RIGHT, WRONG, SLOW = "def twice(x):\n    return 2 * x", "def twice(x):\n    return 4", "while True:\n    pass"


@sandboxed
def test_programs_are_paid_for_all_tests_and_those_out_of_time_are_counted():
    tally.take()
    assert UnitTests(timeout_s=1.0)([ROW] * 3, [f"```python\n{RIGHT}\n```", WRONG, SLOW]) == [1.0, 0.0, 0.0]
    assert tally.take() == (3, 1)


@sandboxed
def test_a_program_that_is_judged_twice_runs_once(monkeypatch):
    ran = []
    once = exam.Hall.one
    monkeypatch.setattr(exam.Hall, "one", lambda self, paper: ran.append(paper) or once(self, paper))
    row = {**ROW, "entry_point": None, "start": ""}
    written = "def twice(x):\n    return x + x"
    assert UnitTests()([row, row], [written, written]) == [1.0, 1.0]
    assert [s.reward for s in Code(path="x").scores([row], [written])] == [1.0]
    assert len(ran) == 1


def test_rows_without_tests_are_refused_by_name():
    (error,) = UnitTests().data_problems(TaskData(train_prompts=[{"prompt": "q", "answer": "1"}]))
    assert error.key == "reward.column" and "answer, prompt" in str(error) and "task=code" in str(error)
    assert UnitTests().data_problems(TaskData(train_prompts=[ROW])) == []


def test_a_machine_without_a_sandbox_is_refused_unless_none_is_chosen_by_name(monkeypatch):
    monkeypatch.setattr(jail.shutil, "which", lambda name: None)
    jail.problem.cache_clear()
    (error,) = UnitTests().problems(Code(path="x"))
    assert error.key == "reward.sandbox" and "apt-get install bubblewrap" in str(error)
    assert UnitTests(sandbox="none").problems(Code(path="x")) == []
    jail.problem.cache_clear()
