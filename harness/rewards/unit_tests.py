"""Programs that are paid for passing their row's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.rewards.base import Reward
from harness.sandbox import jail
from harness.sandbox.exam import Hall
from harness.tasks.base import Row, Task, TaskData
from harness.tasks.code import paper_of
from harness.tasks.judging import tally


@dataclass(frozen=True)
class UnitTests(Reward):
    """1 where the program in a completion passes all tests of its row, 0 elsewhere; both run in a sandbox.

    Attributes:
        column: of the prompt rows, with the tests: assertions, or a function ``check(candidate)`` beside a column
            ``entry_point`` that names what it checks.
        sandbox: ``bubblewrap``; ``none`` runs what the model writes with your own rights.
        timeout_s: seconds that a program may take, its tests included; one that takes longer pays nothing
            (``train/reward_timeouts``).
        memory_mb: that a program may hold.
        workers: programs judged at once; 0: as many as there are cores.
    """

    column: str = "tests"
    sandbox: jail.Kind = "bubblewrap"
    timeout_s: Annotated[float, Gt(0)] = 5.0
    memory_mb: Annotated[int, Ge(64)] = 512
    workers: Annotated[int, Ge(0)] = 0

    def problems(self, task: Task) -> list[UserError]:
        """The sandbox must be there."""
        found = jail.problem(self.sandbox, "reward.sandbox")
        return [] if found is None else [found]

    def data_problems(self, data: TaskData) -> list[UserError]:
        """Every row must have tests."""
        bad = next((row for row in data.train_prompts if not isinstance(row.get(self.column), str)), None)
        if bad is None:
            return []
        known = ", ".join(sorted(bad))
        rule = f"a prompt row has no tests there (it has {known})"
        fix = "task=code task.path=FILE reads HumanEval's and MBPP's formats; or reward.column=NAME of a text column"
        return [UserError(rule, key="reward.column", value=self.column, fix=fix)]

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Run them, several at once."""
        hall = Hall(self.sandbox, self.timeout_s, self.memory_mb, self.workers)
        papers = [paper_of({**r, "tests": r[self.column]}, text) for r, text in zip(rows, completions, strict=True)]
        verdicts = hall.examine(papers)
        for found in verdicts:
            tally.count(found.expired)
        return [float(found.passed) for found in verdicts]
