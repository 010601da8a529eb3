"""The reward contract: rows and completions in, one finite number each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from harness.errors import UserError
from harness.tasks.base import Task


@dataclass(frozen=True)
class Reward(ABC):
    """What an online algorithm maximizes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def problems(self, task: Task) -> list[UserError]:
        """Why this reward cannot be computed on this task; empty where it can."""
        return []

    def bind(self, task: Task) -> Reward:
        """The reward, knowing its task."""
        return self

    @abstractmethod
    def __call__(self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> Sequence[float]:
        """One finite number per completion."""


@dataclass(frozen=True)
class Verifier(Reward):
    """The task's own rule: its true reward."""

    task: Task | None = None

    def problems(self, task: Task) -> list[UserError]:
        """The task must know the true reward of a completion."""
        if task.has_reward:
            return []
        return [
            UserError(
                "this data has no rule that scores a completion, so an online algorithm has no reward on it",
                key="reward",
                value="verifier",
                fix="use an offline algorithm (algo=dpo, ipo or kto), or a task with verifiable answers "
                "(task=gsm8k, task=arithmetic); runner.skip_invalid=true runs the valid rest of a sweep",
            )
        ]

    def bind(self, task: Task) -> Verifier:
        """Remember the task."""
        return replace(self, task=task)

    def __call__(self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[float]:
        """The task's true reward."""
        assert self.task is not None
        return [self.task.score(row, text).reward for row, text in zip(rows, completions, strict=True)]
