"""A sum of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.rewards.base import Desk, Reward, ScoreFunction
from harness.tasks.base import Row, Task, TaskData

if TYPE_CHECKING:
    from harness.models.adapters import Adapter
    from harness.rewards.model import RewardModelSpec


@dataclass(frozen=True)
class Part:
    """One term of the sum."""

    reward: Reward
    weight: float = 1.0


@dataclass(frozen=True)
class Weighted(Reward):
    """The weighted sum of other rewards.

    Attributes:
        parts: by a name of your choice; null leaves one out.
    """

    parts: dict[str, Part | None] = field(default_factory=dict)

    @property
    def active(self) -> dict[str, Part]:
        """The parts that are not left out."""
        return {name: part for name, part in self.parts.items() if part is not None}

    def problems(self, task: Task) -> list[UserError]:
        """Every part's, and that there is one."""
        if not self.active:
            return [UserError("a sum of nothing", key="reward.parts", value=None, fix="see conf/reward/weighted.yaml")]
        return [error for part in self.active.values() for error in part.reward.problems(task)]

    def data_problems(self, data: TaskData) -> list[UserError]:
        """Every part's."""
        return [error for part in self.active.values() for error in part.reward.data_problems(data)]

    def bind(self, task: Task, adapter: Adapter, preset: str) -> Weighted:
        """Bind the parts."""
        bound = {n: replace(p, reward=p.reward.bind(task, adapter, preset)) for n, p in self.active.items()}
        return replace(self, parts=bound)

    def contents(self) -> Mapping[str, str]:
        """Every part's."""
        found = {name: part.reward.contents() for name, part in self.active.items()}
        return {f"parts.{name}.{field}": content for name, own in found.items() for field, content in own.items()}

    def without_weights(self) -> Weighted:
        """The parts without theirs."""
        parts = {n: replace(p, reward=p.reward.without_weights()) for n, p in self.active.items()}
        return replace(self, parts=parts)

    def stages(self) -> tuple[RewardModelSpec, ...]:
        """Every part's."""
        return tuple(stage for part in self.active.values() for stage in part.reward.stages())

    def open(self, desk: Desk) -> ScoreFunction:
        """Open every part."""
        opened = [(part.weight, part.reward.open(desk)) for part in self.active.values()]

        def score(rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
            columns: list[Any] = [(weight, function(rows, completions, ended)) for weight, function in opened]
            return [sum(weight * values[i] for weight, values in columns) for i in range(len(completions))]

        return score

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """The sum, where no part needs a model."""
        columns: list[Any] = [(part.weight, part.reward(rows, completions)) for part in self.active.values()]
        return [sum(weight * values[i] for weight, values in columns) for i in range(len(completions))]
