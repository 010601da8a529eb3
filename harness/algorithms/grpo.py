"""GRPO: groups of sampled completions, scored and compared within their group, by TRL's GRPOTrainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from harness.algorithms.base import Algorithm, Rollout, Training, TrainJob
from harness.base.errors import UserError
from harness.config.train import Train


@dataclass(frozen=True)
class GRPO(Algorithm):
    """Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300, eq. 3).

    The advantage of a completion is its reward less the group's mean, divided by the group's *sample* standard
    deviation (n - 1) plus 1e-4, as TRL computes it; the paper writes the population's.

    Attributes:
        beta: weight of the KL penalty; 0 keeps no reference at all (TRL's own default).
        num_generations: completions per prompt (the group).
        num_iterations: optimization passes over one rollout (mu).
        rollout_batches: optimizer steps that one rollout feeds.
        epsilon: clip range of the importance ratio.
        temperature: sampling temperature of rollouts.
        scale_rewards: divide by the standard deviation of the group, of the batch, or not at all.
        loss: how token losses are averaged (TRL's ``loss_type``).
    """

    name: ClassVar[str] = "grpo"
    family: ClassVar[Literal["offline", "online", "none"]] = "online"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "prompts"

    beta: Annotated[float, Ge(0)] | None = 0.04
    num_generations: Annotated[int, Gt(0)] = 8
    num_iterations: Annotated[int, Gt(0)] = 1
    rollout_batches: Annotated[int, Gt(0)] = 1
    epsilon: Annotated[float, Gt(0)] = 0.2
    temperature: Annotated[float, Gt(0)] = 1.0
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"

    @property
    def uses_reference(self) -> bool:
        """Only with a KL penalty."""
        return bool(self.beta)

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Groups of at least two that fill the batch evenly; the reward is checked by the trial."""
        found = super().problems(task, data, train)
        if self.num_generations < 2:
            found.append(
                UserError(
                    "grpo compares completions within a group, so a group needs at least 2",
                    key="algo.num_generations",
                    value=self.num_generations,
                    fix="algo.num_generations=8",
                )
            )
        elif train.batch_size and train.batch_size % self.num_generations:
            found.append(
                UserError(
                    f"must be a multiple of algo.num_generations ({self.num_generations}), so that groups stay whole",
                    key="train.batch_size",
                    value=train.batch_size,
                    fix=f"train.batch_size={(train.batch_size // self.num_generations + 1) * self.num_generations}",
                )
            )
        return found

    def rollout(self, train: Train) -> Rollout:
        """Groups of completions."""
        assert train.batch_size
        groups = train.batch_size * self.rollout_batches // self.num_generations
        return Rollout(steps=self.num_iterations * self.rollout_batches, prompts=groups)

    def with_rollouts(self, factor: int) -> GRPO:
        """More batches in a rollout."""
        return replace(self, rollout_batches=self.rollout_batches * factor)

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer, with rollouts clocked as a phase of their own."""
        from harness.algorithms.online import OnlineTrainer, online_config, online_options

        trainer = OnlineTrainer(
            beta=self.beta or 0.0,
            **online_options(job),
            args=online_config(
                job,
                num_generations=self.num_generations,
                num_iterations=self.num_iterations,
                rollout_batches=self.rollout_batches,
                temperature=self.temperature,
                epsilon=self.epsilon,
                scale_rewards=self.scale_rewards,
                loss_type=self.loss,
            ),
        )
        return trainer.training(job.holds)
