"""Several reward models as one: where they disagree, a policy has left what their data taught them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge

from harness.base.errors import UserError
from harness.rewards.base import Reward
from harness.rewards.composite import Composite
from harness.rewards.model import ModelReward
from harness.tasks.base import Task


@dataclass(frozen=True)
class Ensemble(Composite):
    """Reward models that differ in seed, data or path, and one number of theirs (Coste et al. 2023, arXiv 2310.02743).

    Their scores are shifted and scaled to mean 0 and deviation 1 each (``ModelReward.normalize``), so that they can be
    compared; models by path are taken as they are.

    Attributes:
        model: what all members are like. With ``model.pairs`` each learns from pairs of its own draw.
        count: members, whose seeds are ``model.seed`` and those after it; 2 at least.
        paths: models of your own instead.
        how: ``mean``; ``min``, the paper's worst case; ``lower``: the mean less ``deviations`` standard deviations of
            the members, the paper's uncertainty-weighted form with a deviation in place of its variance.
        deviations: see ``how``.
        held: the members of a trial, as they were bound; no setting.
    """

    model: ModelReward = field(default_factory=ModelReward)
    count: int = 3
    paths: tuple[str, ...] = ()
    how: Literal["mean", "min", "lower"] = "lower"
    deviations: Annotated[float, Ge(0)] = 1.0
    held: dict[str, ModelReward] = field(default_factory=dict)

    def members(self) -> Mapping[str, Reward]:
        """The models, by number: those that the trial bound, else those that its settings make."""
        if self.held:
            return self.held
        paths = [replace(self.model, path=path) for path in self.paths]
        seeds = [replace(self.model, seed=self.model.seed + i) for i in range(self.count)]
        return {f"{number}": member for number, member in enumerate(paths or seeds)}

    def rebuilt(self, members: Mapping[str, Reward]) -> Ensemble:
        """Of other models."""
        return replace(self, held=dict(members))

    def problems(self, task: Task) -> list[UserError]:
        """Every member's, and that there are several."""
        many = len(self.paths) if self.paths else self.count
        if many < 2:
            key = "reward.paths" if self.paths else "reward.count"
            return [UserError("an ensemble has two members at least", key=key, value=many, fix="or reward=model")]
        found = super().problems(task)
        if self.model.path is not None and not self.held:
            fix = f"reward.paths=[{self.model.path}, ...], each another, or reward.model.path=null"
            rule = "every member would be this one model"
            found.append(UserError(rule, key="reward.model.path", value=self.model.path, fix=fix))
        if len(set(self.paths)) < len(self.paths):
            rule = "names a model twice, which agrees with itself"
            found.append(UserError(rule, key="reward.paths", value=list(self.paths), fix="name each once"))
        return found

    def combined(self, scores: Mapping[str, Sequence[float]], completions: Sequence[str]) -> list[float]:
        """One number of all members' for each completion, as ``how`` says."""
        found = []
        for values in zip(*scores.values(), strict=True):
            if self.how == "min":
                found.append(min(values))
            else:
                away = self.deviations * statistics.pstdev(values) if self.how == "lower" else 0.0
                found.append(statistics.fmean(values) - away)
        return found

    def means(self, scores: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
        """How far the members lie apart."""
        apart = [statistics.pstdev(values) for values in zip(*scores.values(), strict=True)]
        return {"reward_disagreement": statistics.fmean(apart)} if apart else {}
