"""Prompts of the hub whose answers can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.tasks.base import Row, Score, TaskData
from harness.tasks.hub import Hub
from harness.tasks.judging.answers import Kind as Compared
from harness.tasks.judging.answers import scored, unanswerable
from harness.tasks.reading.rows import Kind


@dataclass(frozen=True)
class HubVerifiable(Hub):
    """Prompts with checkable answers (``answer_column``), and thereby a true reward.

    Attributes:
        answers: ``number``: as GSM8K is judged; ``math``: as mathematics, by ``math-verify`` (``maths``).
    """

    has_reward: ClassVar[bool] = True

    kind: Kind = "prompts"
    answers: Compared = "number"

    def load(self) -> TaskData:
        """Read and check the rows, where their answers can be compared."""
        unanswerable(self.answers)
        return super().load()

    def __post_init__(self) -> None:
        """A true reward needs prompts and answers."""
        super().__post_init__()
        if self.kind != "prompts" or self.answer_column is None:
            raise ValueError("a task with a true reward needs kind=prompts and answer_column")

    def score(self, row: Row, completion: str) -> Score:
        """True reward: 1 if the stated answer is the row's, 0 if not, less ``length_cost`` per character."""
        return self.scores([row], [completion])[0]

    def scores(self, rows: Sequence[Row], completions: Sequence[str]) -> list[Score]:
        """The same for many at once."""
        return scored(rows, completions, self.length_cost, self.answers)
