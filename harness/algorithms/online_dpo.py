"""Online DPO: the best against the worst of k completions of the present policy, under the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from harness.algorithms.base import Training, TrainJob, needs_positive_beta
from harness.algorithms.groups import Groups
from harness.base.errors import UserError
from harness.config.train import Train


@dataclass(frozen=True)
class OnlineDPO(Groups):
    """Direct preference optimization on pairs that the policy samples (Guo et al. 2024, arXiv 2402.04792, alg. 1).

    The paper has a model judge two samples. Here the reward ranks k of them, the best and the worst are the pair, and
    the others are left out; where all k score alike, the pair is one completion against itself and moves nothing.

    Attributes:
        beta: as in DPO.
        num_generations: k.
    """

    name: ClassVar[str] = "online_dpo"

    beta: Annotated[float, Ge(0)] | None = 0.1
    num_generations: Annotated[int, Gt(0)] = 4

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Beta > 0, and micro-batches of whole groups, since a pair comes of each."""
        found = [*super().problems(task, data, train), *needs_positive_beta(self)]
        size, micro = self.num_generations, train.micro_batch_size
        if not found and micro is not None and micro % size:
            found.append(
                UserError(
                    f"must be a multiple of algo.num_generations ({size}): a group gives one pair",
                    key="train.micro_batch_size",
                    value=micro,
                    fix=f"train.micro_batch_size={max(1, micro // size) * size}",
                )
            )
        return found

    def trainer(self, job: TrainJob) -> Training:
        """TRL's GRPO trainer samples; pairs and loss are ours."""
        from harness.algorithms.online import online_config, online_options
        from harness.algorithms.online_losses import OnlineDPOTrainer

        trainer = OnlineDPOTrainer(settings=self, **online_options(job), args=online_config(job, **self.sampling()))
        return trainer.training(job.holds)
