"""The reward contract: rows and completions in, one finite number each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.base.errors import UserError
from harness.base.records import UNTOLD
from harness.tasks.base import Row, Task, TaskData

if TYPE_CHECKING:
    from harness.models.adapters import Adapter
    from harness.rewards.learned import Recipe

ScoreFunction = Callable[[Sequence[Row], Sequence[str], Sequence[bool]], Sequence[float]]
"""Prompt rows, completions and whether each ended by itself, to one number per completion."""


@dataclass(frozen=True)
class Payment:
    """A part of what a completion is paid, and where.

    Attributes:
        end: characters of the completion that earn it.
        share: the part; all of a completion's together are its reward.
    """

    end: int
    share: float


class Opened(ABC):
    """A ``ScoreFunction`` that can say something of the batch that it scored last."""

    @abstractmethod
    def __call__(self, rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        """One number per completion."""

    def means(self) -> Mapping[str, float]:
        """What a trial logs of it, under ``train/``."""
        return {}

    def placed(self) -> Sequence[Sequence[Payment]] | None:
        """Of each completion where its reward is earned; None where that is its end, as of most rewards."""
        return None


@dataclass(frozen=True)
class Desk:
    """What a reward with a model of its own works with, in the trial's process.

    Attributes:
        policy: the model being trained, wrapped where an adapter is.
        tokenizer: the policy's.
        rows: gives rows in the form the model wants (messages where it has a template).
        folders: key of each stage that the reward asked for -> where it is.
        dtype: torch's, of the weights of a model that only scores.
        precision: in which it computes.
        roles: takes the parameters that the reward holds, for the account of memory by role.
        data: the trial's rows.
        cache: folder in which answers that cost something are kept between trials; None: nowhere.
        longest: tokens that a completion has at most, where that is known.
    """

    policy: Any
    tokenizer: Any
    rows: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]
    folders: Mapping[str, Path]
    device: str
    dtype: Any
    precision: str = "fp32"
    roles: dict[str, list[Any]] = field(default_factory=dict)
    data: TaskData = TaskData()
    cache: Path | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Reward(ABC):
    """What an online algorithm maximizes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def problems(self, task: Task) -> list[UserError]:
        """Why this reward cannot be computed on this task; empty where it can."""
        return []

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The same, about the task's rows."""
        return []

    def bind(self, task: Task, adapter: Adapter, preset: str) -> Reward:
        """The reward, knowing its trial: the task, what is trained, and the preset that the model chose."""
        return self

    def contents(self) -> Mapping[str, str]:
        """Of each field that names something on disk or on the hub, what stands for the content behind it."""
        return {}

    def stages(self) -> tuple[Recipe, ...]:
        """Models that must exist before training; the trial takes them from the cache or builds them."""
        return ()

    def open(self, desk: Desk) -> ScoreFunction:
        """How to score, with models loaded; by default the reward itself."""
        return lambda rows, completions, _: self(rows, completions)

    def without_weights(self) -> Reward:
        """The same for tensors without data: a model that it scores by has its shape, and nothing is read from disk."""
        return self

    @abstractmethod
    def __call__(self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> Sequence[float]:
        """One finite number per completion."""


@dataclass(frozen=True)
class Verifier(Reward):
    """The task's own rule: its true reward."""

    task: Task | None = field(default=None, metadata=UNTOLD)  # told as the trial's task already

    def problems(self, task: Task) -> list[UserError]:
        """The task must know the true reward of a completion."""
        if task.has_reward:
            return []
        return [
            UserError(
                "this data has no rule that scores a completion, so an online algorithm has no reward on it",
                key="reward",
                value="verifier",
                fix="reward=model trains a reward model on the data's pairs; or use an offline algorithm (algo=dpo, "
                "ipo or kto), or a task with verifiable answers (task=problems, task=gsm8k, task=arithmetic); "
                "runner.skip_invalid=true runs the valid rest of a sweep",
            )
        ]

    def bind(self, task: Task, adapter: Adapter, preset: str) -> Verifier:
        """Remember the task."""
        return replace(self, task=task)

    def __call__(self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[float]:
        """The task's true reward."""
        assert self.task is not None
        return [score.reward for score in self.task.scores(rows, completions)]
