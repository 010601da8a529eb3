"""Prompts of the hub whose answers can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.tasks.answers import scored
from harness.tasks.base import Row, Score
from harness.tasks.hub import Hub
from harness.tasks.reading.rows import Kind


@dataclass(frozen=True)
class HubVerifiable(Hub):
    """Prompts with checkable answers (``answer_column``), and thereby a true reward."""

    has_reward: ClassVar[bool] = True

    kind: Kind = "prompts"

    def __post_init__(self) -> None:
        """A true reward needs prompts and answers."""
        super().__post_init__()
        if self.kind != "prompts" or self.answer_column is None:
            raise ValueError("a task with a true reward needs kind=prompts and answer_column")

    def score(self, row: Row, completion: str) -> Score:
        """True reward: 1 if the stated answer is the row's, 0 if not, less ``length_cost`` per character."""
        return scored(row, completion, self.length_cost)
