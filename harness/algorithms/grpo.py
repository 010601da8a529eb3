"""GRPO and what came of it: sampled completions, scored and compared within their group, by TRL's GRPOTrainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from harness.algorithms.base import Training, TrainJob
from harness.algorithms.groups import Groups
from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.config.train import Train

Loss = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
CLIPPED = {"grpo", "bnpo", "dr_grpo", "dapo", "luspo"}
"""Losses of a ratio that is clipped on both sides; ``cispo`` has the upper bound alone."""


@dataclass(frozen=True)
class GRPO(Groups):
    """Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300, eq. 3).

    The advantage of a completion is its reward less the group's mean, divided by the group's *sample* standard
    deviation (n - 1) plus 1e-4, as TRL computes it; the paper writes the population's. docs/algorithms.md says what
    each loss averages, and the paper that it is from.

    Attributes:
        beta: weight of the KL penalty; 0 keeps no reference at all (TRL's own default).
        epsilon: clip range of the importance ratio.
        epsilon_high: of its upper side, where it is another one (DAPO, arXiv 2503.14476); for ``cispo`` the largest
            ratio.
        delta: largest ratio of completions with a negative advantage, whose ratio ``epsilon`` does not bound from
            above (INTELLECT-2, arXiv 2505.07291).
        scale_rewards: divide by the standard deviation of the group, of the batch, or not at all (Dr. GRPO,
            arXiv 2503.20783).
        importance: ratios of tokens, or one of the sequence: the geometric mean (GSPO, arXiv 2507.18071).
        loss: how token losses are averaged (TRL's ``loss_type``).
    """

    name: ClassVar[str] = "grpo"

    beta: Annotated[float, Ge(0)] | None = 0.04
    epsilon: Annotated[float, Gt(0)] = 0.2
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss: Loss = "dapo"
    epsilon_high: Annotated[float, Gt(0)] | None = unless_default(None)
    delta: Annotated[float, Gt(1)] | None = unless_default(None)
    importance: Literal["token", "sequence"] = unless_default("token")

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Each knob must belong to a loss that takes it."""
        return [*super().problems(task, data, train), *self._misfits()]

    def _misfits(self) -> list[UserError]:
        found = []

        def wrong(key: str, value: Any, words: str, fix: str) -> None:
            found.append(UserError(words, key=f"algo.{key}", value=value, fix=fix))

        if self.loss == "luspo" and self.importance == "token":
            words = "luspo weights sequences by their length, and is defined for ratios of sequences"
            wrong("importance", "token", words, "algo.importance=sequence")
        if self.loss == "vespo" and self.importance == "sequence":
            wrong("importance", "sequence", "vespo weighs sequences by a rule of its own", "algo.importance=token")
        if self.loss == "cispo" and (self.epsilon_high is None or self.epsilon_high <= 1):
            words = "is for cispo the largest ratio, so it must be above 1"
            wrong("epsilon_high", self.epsilon_high, words, "algo.epsilon_high=5")
        elif self.loss in CLIPPED and self.epsilon_high is not None and self.epsilon_high < self.epsilon:
            wrong("epsilon_high", self.epsilon_high, f"is below algo.epsilon ({self.epsilon:g})", "0.28, or null")
        elif self.loss in ("sapo", "vespo") and self.epsilon_high is not None:
            wrong("epsilon_high", self.epsilon_high, f"is not read by {self.loss}, which clips nothing", "null")
        if self.delta is not None and self.loss not in CLIPPED:
            wrong("delta", self.delta, f"is not read by {self.loss}", "algo.delta=null")
        elif self.delta is not None and self.delta <= 1 + (self.epsilon_high or self.epsilon):
            wrong("delta", self.delta, "must be above the upper clip (1 + epsilon)", "algo.delta=4")
        return found

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer, with rollouts clocked as a phase of their own."""
        from harness.algorithms.online import OnlineTrainer, online_config, online_options

        trainer = OnlineTrainer(
            beta=self.beta or 0.0,
            **online_options(job),
            args=online_config(
                job,
                **self.sampling(),
                epsilon=self.epsilon,
                epsilon_high=self.epsilon_high,
                delta=self.delta,
                scale_rewards=self.scale_rewards,
                importance_sampling_level=self.importance,
                loss_type=self.loss,
            ),
        )
        return trainer.training(job.holds)
