"""PPO: a policy, a critic, a reward and a frozen reference; the trainer is in ``trainer``."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from harness.algorithms.base import Algorithm, Rollout, Training, TrainJob
from harness.base.errors import UserError
from harness.config.train import Train


@dataclass(frozen=True)
class PPO(Algorithm):
    """Proximal policy optimization with a KL penalty in the reward (arXiv 1707.06347, 1909.08593, 2203.02155).

    ``train.batch_size`` completions make one optimizer step, and ``batch_size * minibatches`` one rollout, which
    ``train.steps`` counts ``epochs * minibatches`` times.

    Attributes:
        beta: coefficient of the per-token KL penalty in the reward; 0 keeps no reference at all.
        epochs: passes over one rollout.
        minibatches: optimizer steps per pass.
        gamma: discount per token.
        lam: of the generalized advantage estimate; 1 is unbiased, 0 trusts the critic alone.
        clip: range of the importance ratio.
        value_clip: how far a value may move from what it was in the rollout; null does not clip.
        critic_learning_rate: null takes the policy's.
        entropy_bonus: weight of the mean token entropy (nats).
        missing_eos_penalty: taken from the score of a completion that did not end by itself.
        reward_clip: scores are clipped to this size; null does not clip.
        whiten_rewards: divide the scores of a rollout by their standard deviation.
        whiten_advantages: to zero mean and unit variance over the tokens of a rollout.
        stop_at_kl: end the passes over a rollout when the policy has moved this far from it (nats per token, mean over
            an optimizer step); the next rollout takes the next prompts.
        kl_target: steer beta so that the KL to the reference per sequence (nats) holds this; null keeps it fixed.
        kl_horizon: completions over which beta may change by about a fifth for each unit of relative error.
        temperature: sampling temperature of rollouts.
    """

    name: ClassVar[str] = "ppo"
    family: ClassVar[Literal["offline", "online", "none"]] = "online"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "prompts"

    beta: Annotated[float, Ge(0)] | None = 0.05
    epochs: Annotated[int, Gt(0)] = 4
    minibatches: Annotated[int, Gt(0)] = 1
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    lam: Annotated[float, Ge(0), Le(1)] = 0.95
    clip: Annotated[float, Gt(0)] = 0.2
    value_clip: Annotated[float, Gt(0)] | None = 0.2
    critic_learning_rate: Annotated[float, Gt(0)] | None = None
    entropy_bonus: Annotated[float, Ge(0)] = 0.0
    missing_eos_penalty: Annotated[float, Ge(0)] = 0.0
    reward_clip: Annotated[float, Gt(0)] | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    stop_at_kl: Annotated[float, Gt(0)] | None = None
    kl_target: Annotated[float, Gt(0)] | None = None
    kl_horizon: Annotated[int, Gt(0)] = 10_000
    temperature: Annotated[float, Gt(0)] = 1.0

    @property
    def uses_reference(self) -> bool:
        """Only with a KL penalty."""
        return bool(self.beta)

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """A coefficient that is steered must start above zero."""
        found = super().problems(task, data, train)
        if self.kl_target is not None and not self.beta:
            found.append(
                UserError(
                    "a coefficient that starts at 0 stays there, so it cannot be steered",
                    key="algo.beta",
                    value=self.beta,
                    fix="beta=0.05, or algo.kl_target=null",
                )
            )
        return found

    def rollout(self, train: Train) -> Rollout:
        """One completion for each prompt."""
        assert train.batch_size
        return Rollout(steps=self.epochs * self.minibatches, prompts=train.batch_size * self.minibatches)

    def with_rollouts(self, factor: int) -> PPO:
        """More minibatches in a rollout."""
        return replace(self, minibatches=self.minibatches * factor)

    def _most_prompts(self, train: Train, rows: int) -> int | None:
        """Prompts after which training ends, where it is told in prompts or in passes over the data."""
        if train.steps or train.budget.named:
            return train.budget.prompts
        size = self.rollout(train).prompts
        return int((train.epochs or 0) * (rows // size)) * size

    def trainer(self, job: TrainJob) -> Training:
        """Our trainer, on TRL's."""
        from harness.algorithms.online import online_config, online_options
        from harness.algorithms.ppo.trainer import PPOTrainer

        assert job.train.learning_rate
        trainer = PPOTrainer(
            settings=self,
            critic_base=None if job.adapter.shares_base else copy.deepcopy(job.model),
            critic_rate=self.critic_learning_rate or job.train.learning_rate,
            most_prompts=self._most_prompts(job.train, len(job.data.train_prompts)),
            **online_options(job),
            args=online_config(
                job,
                num_generations=1,
                num_iterations=self.epochs,
                rollout_batches=self.minibatches,
                temperature=self.temperature,
            ),
        )
        return trainer.training(job.holds)
