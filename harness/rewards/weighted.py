"""A sum of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.base.errors import UserError
from harness.rewards.base import Reward
from harness.rewards.composite import Composite
from harness.tasks.base import Task


@dataclass(frozen=True)
class Part:
    """One term of the sum."""

    reward: Reward
    weight: float = 1.0


@dataclass(frozen=True)
class Weighted(Composite):
    """The weighted sum of other rewards.

    Attributes:
        parts: by a name of your choice; null leaves one out.
    """

    parts: dict[str, Part | None] = field(default_factory=dict)

    @property
    def active(self) -> dict[str, Part]:
        """The parts that are not left out, by their keys."""
        return {f"parts.{name}": part for name, part in self.parts.items() if part is not None}

    def members(self) -> Mapping[str, Reward]:
        """Those of the parts."""
        return {key: part.reward for key, part in self.active.items()}

    def rebuilt(self, members: Mapping[str, Reward]) -> Weighted:
        """With the same weights."""
        parts = {key: replace(part, reward=members[key]) for key, part in self.active.items()}
        return replace(self, parts={key.removeprefix("parts."): part for key, part in parts.items()})

    def problems(self, task: Task) -> list[UserError]:
        """Every part's, and that there is one."""
        if not self.active:
            return [UserError("a sum of nothing", key="reward.parts", value=None, fix="see conf/reward/weighted.yaml")]
        return super().problems(task)

    def combined(self, scores: Mapping[str, Sequence[float]], completions: Sequence[str]) -> list[float]:
        """The sum."""
        weights = {key: part.weight for key, part in self.active.items()}
        return [sum(weights[key] * values[i] for key, values in scores.items()) for i in range(len(completions))]
