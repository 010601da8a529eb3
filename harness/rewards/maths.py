"""Answers that are judged as mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from harness.base.errors import UserError
from harness.rewards.base import Reward
from harness.rewards.rules import column_missing
from harness.tasks.base import Row, Task, TaskData
from harness.tasks.judging import maths


@dataclass(frozen=True)
class Maths(Reward):
    """1 where a completion states the row's answer, in whatever form; 0 elsewhere (``harness.tasks.judging.maths``).

    Attributes:
        column: of the prompt rows, with the answer in LaTeX or plain; a row whose answer is null pays nothing.
        timeout_s: seconds of work for one answer; one that takes longer pays nothing (``train/reward_timeouts``).
    """

    column: str = "answer"
    timeout_s: Annotated[float, Gt(0)] = maths.LIMIT_S

    def problems(self, task: Task) -> list[UserError]:
        """The package must be there."""
        found = maths.problem("reward")
        return [] if found is None else [found]

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The column must be there."""
        return column_missing(data, self.column)

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Compare as mathematics, several at once."""
        known = [i for i, row in enumerate(rows) if row[self.column] is not None]
        right = maths.same([str(rows[i][self.column]) for i in known], [completions[i] for i in known], self.timeout_s)
        paid = [0.0] * len(rows)
        for i, found in zip(known, right, strict=True):
            paid[i] = float(found)
        return paid
