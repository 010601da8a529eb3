"""Rewards that are rules about the text: exact match, numeric answers, format, length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from harness.base.errors import UserError
from harness.rewards.base import Reward
from harness.tasks.base import Row, TaskData
from harness.tasks.judging import patterns
from harness.tasks.judging.answers import same_answer, stated_answer


@dataclass(frozen=True)
class ExactMatch(Reward):
    """1 where the completion is the row's answer, 0 elsewhere.

    Attributes:
        column: of the prompt rows, with the answer; a row whose answer is null pays nothing.
        ignore_case: compare without regard to case.
    """

    column: str = "answer"
    ignore_case: bool = False

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The column must be there."""
        return column_missing(data, self.column)

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """White space around either side does not count."""
        return [
            float(row[self.column] is not None and self._plain(text) == self._plain(str(row[self.column])))
            for row, text in zip(rows, completions, strict=True)
        ]

    def _plain(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()


@dataclass(frozen=True)
class NumericAnswer(Reward):
    r"""1 where the answer that a completion states equals the row's, as GSM8K is judged; 0 elsewhere.

    The answer stands after ``####``, else in ``\boxed{}``, else it is the last number (``stated_answer``).

    Attributes:
        column: of the prompt rows, with the answer.
    """

    column: str = "answer"

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The column must be there."""
        return column_missing(data, self.column)

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Compare as numbers, or as text where either is none."""
        found = []
        for row, text in zip(rows, completions, strict=True):
            stated, answer = stated_answer(text), row[self.column]
            found.append(float(stated is not None and answer is not None and same_answer(stated, str(answer))))
        return found


@dataclass(frozen=True)
class Format(Reward):
    """1 where the completion has a form, 0 elsewhere.

    A completion that the pattern takes more than a second for counts as one without it (``train/reward_timeouts``).

    Attributes:
        pattern: a regular expression of Python; a dot matches line breaks too.
        whole: whether all of the completion must match, or some part of it.
    """

    pattern: str = r"\S"
    whole: bool = False

    def problems(self, task: object) -> list[UserError]:
        """The pattern must be one."""
        wrong = patterns.problem(self.pattern)
        if wrong is None:
            return []
        return [UserError(f"is no regular expression ({wrong})", key="reward.pattern", value=self.pattern)]

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Match or not."""
        return [float(patterns.matches(self.pattern, text, whole=self.whole)) for text in completions]


@dataclass(frozen=True)
class Length(Reward):
    """Pays, or takes, per character.

    Attributes:
        per_character: below zero it is a price.
        longest: characters beyond this count no more; null counts all.
    """

    per_character: float = -0.01
    longest: Annotated[int, Gt(0)] | None = None

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Proportional to the length."""
        return [self.per_character * min(len(text), self.longest or len(text)) for text in completions]


def column_missing(data: TaskData, column: str) -> list[UserError]:
    """An error where the prompt rows lack ``column``; empty where they have it."""
    if not data.train_prompts or column in data.train_prompts[0]:
        return []
    known = ", ".join(sorted(data.train_prompts[0]))
    fix = (
        f"reward.column=NAME with one of {known}; or a reward that reads no column: reward=model learns one from pairs"
    )
    return [UserError("the prompt rows have no such column", key="reward.column", value=column, fix=fix)]
