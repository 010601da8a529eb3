"""Rewards that are made of others: what concerns the parts is handed on to them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from harness.base.errors import UserError
from harness.rewards.base import Desk, Opened, Reward, ScoreFunction
from harness.tasks.base import Row, Task, TaskData

if TYPE_CHECKING:
    from harness.models.adapters import Adapter
    from harness.rewards.learned import Recipe


@dataclass(frozen=True)
class Composite(Reward):
    """A reward of several, or of one that is changed."""

    @abstractmethod
    def members(self) -> Mapping[str, Reward]:
        """What it is made of, by key below this reward (``parts.rule``)."""

    @abstractmethod
    def rebuilt(self, members: Mapping[str, Reward]) -> Self:
        """The same of other members, under the keys that ``members`` gave."""

    @abstractmethod
    def combined(self, scores: Mapping[str, Sequence[float]], completions: Sequence[str]) -> list[float]:
        """One number per completion, of what each member gave them."""

    def means(self, scores: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
        """What a trial logs of what the members gave to a batch, under ``train/``."""
        return {}

    def problems(self, task: Task) -> list[UserError]:
        """Every member's."""
        return [error for member in self.members().values() for error in member.problems(task)]

    def data_problems(self, data: TaskData) -> list[UserError]:
        """Every member's."""
        return [error for member in self.members().values() for error in member.data_problems(data)]

    def bind(self, task: Task, adapter: Adapter, preset: str) -> Self:
        """Bind the members."""
        return self.rebuilt({key: member.bind(task, adapter, preset) for key, member in self.members().items()})

    def contents(self) -> Mapping[str, str]:
        """Every member's."""
        found = {key: member.contents() for key, member in self.members().items()}
        return {f"{key}.{field}": content for key, own in found.items() for field, content in own.items()}

    def without_weights(self) -> Self:
        """The members without theirs."""
        return self.rebuilt({key: member.without_weights() for key, member in self.members().items()})

    def stages(self) -> tuple[Recipe, ...]:
        """Every member's."""
        return tuple(stage for member in self.members().values() for stage in member.stages())

    def open(self, desk: Desk) -> ScoreFunction:
        """Open every member."""
        return _Opened(self, {key: member.open(desk) for key, member in self.members().items()})

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """The same, where no member needs a model."""
        return self.combined({key: member(rows, completions) for key, member in self.members().items()}, completions)


@dataclass
class _Opened(Opened):
    """Scores by members that have been opened, and remembers what is logged of the last batch."""

    reward: Composite
    functions: Mapping[str, ScoreFunction]
    logged: Mapping[str, float] | None = None

    def __call__(self, rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        scores = {key: list(function(rows, completions, ended)) for key, function in self.functions.items()}
        for key, values in scores.items():
            if len(values) != len(completions) or not all(math.isfinite(value) for value in values):
                rule = f"gives no finite number for each of {len(completions)} completions: {values!r:.80}"
                fix = "a bound or a minimum would hide it: mend the reward, or see whether its model has diverged"
                raise UserError(rule, key=f"reward.{key}", fix=fix)
        self.logged = self.reward.means(scores)
        return self.reward.combined(scores, completions)

    def means(self) -> Mapping[str, float]:
        """Of the last batch; a member's own too, with its name behind what several members have."""
        below = {key: f.means() for key, f in self.functions.items() if isinstance(f, Opened)}
        often = Counter(name for means in below.values() for name in means)
        own = {
            name if often[name] == 1 else f"{name}_{key.rpartition('.')[2]}": value
            for key, means in below.items()
            for name, value in means.items()
        }
        return {**own, **(self.logged or {})}


def means_of(function: ScoreFunction) -> Mapping[str, float]:
    """What is logged of the last batch that a reward scored; nothing of most."""
    return function.means() if isinstance(function, Opened) else {}
