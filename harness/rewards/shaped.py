"""A reward with a price of length, and within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.base.errors import UserError
from harness.rewards.base import Reward
from harness.rewards.composite import Composite
from harness.tasks.base import Task


@dataclass(frozen=True)
class Shaped(Composite):
    """Another reward, less a price of length, and then bounded: what has no end can be exploited without end.

    Attributes:
        reward: the other one.
        per_character: added for each character; below zero it is a price.
        free: characters that cost nothing.
        bound: ``sigmoid`` gives 1 / (1 + e^−r), between 0 and 1, whose slope fades where a reward model is sure (Fu et
            al. 2025, arXiv 2502.18770); ``clip`` cuts at ``low`` and ``high``; ``none`` leaves it.
        low: null: no bound below.
        high: null: no bound above.
    """

    reward: Reward
    per_character: float = 0.0
    free: int = 0
    bound: Literal["none", "sigmoid", "clip"] = "sigmoid"
    low: float | None = None
    high: float | None = None

    def members(self) -> Mapping[str, Reward]:
        """The other one."""
        return {"reward": self.reward}

    def rebuilt(self, members: Mapping[str, Reward]) -> Shaped:
        """Around another."""
        return replace(self, reward=members["reward"])

    def problems(self, task: Task) -> list[UserError]:
        """The other's, and that bounds are bounds."""
        found = super().problems(task)
        limits = [x for x in (self.low, self.high) if x is not None]
        if (self.bound == "clip") != bool(limits):
            fix = "reward.bound=clip reward.low=-2 reward.high=2, or reward.bound=sigmoid without them"
            found.append(
                UserError("goes with reward.low or reward.high", key="reward.bound", value=self.bound, fix=fix)
            )
        if len(limits) == 2 and limits[0] >= limits[1]:
            rule, fix = f"must lie below reward.high ({limits[1]:g})", f"reward.low={limits[1] - 1:g}"
            found.append(UserError(rule, key="reward.low", value=self.low, fix=fix))
        return found

    def combined(self, scores: Mapping[str, Sequence[float]], completions: Sequence[str]) -> list[float]:
        """Priced, then bounded."""
        priced = [
            value + self.per_character * max(0, len(text) - self.free)
            for value, text in zip(scores["reward"], completions, strict=True)
        ]
        return [self._bounded(value) for value in priced]

    def _bounded(self, value: float) -> float:
        if self.bound == "sigmoid":
            return 0.5 * (1 + math.tanh(value / 2))
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return min(max(value, low), high) if self.bound == "clip" else value
