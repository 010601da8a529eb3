"""RLOO: REINFORCE on whole completions, each held against the mean of the others of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from harness.algorithms.base import Training, TrainJob
from harness.algorithms.groups import Groups


@dataclass(frozen=True)
class RLOO(Groups):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740, eq. 6).

    Attributes:
        beta: weight of the KL penalty, which is part of the reward: r - beta * log(pi / ref) of the whole completion;
            0 keeps no reference at all.
        epsilon: clip range of a completion's ratio, once the policy has moved since it sampled.
    """

    name: ClassVar[str] = "rloo"

    beta: Annotated[float, Ge(0)] | None = 0.03
    num_generations: Annotated[int, Gt(0)] = 4
    epsilon: Annotated[float, Gt(0)] = 0.2

    def trainer(self, job: TrainJob) -> Training:
        """TRL's GRPO trainer samples; advantages and loss are ours."""
        from harness.algorithms.online import online_config, online_options
        from harness.algorithms.online_losses import RLOOTrainer

        trainer = RLOOTrainer(settings=self, **online_options(job), args=online_config(job, **self.sampling()))
        return trainer.training(job.holds)
