"""SimPO: mean log-probabilities that are to be a margin apart; no reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from annotated_types import Ge

from harness.algorithms.base import ReferenceFree, Training, TrainJob
from harness.algorithms.pairs import free_training


@dataclass(frozen=True)
class SimPO(ReferenceFree):
    """Simple preference optimization (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Attributes:
        beta: scale of the difference of mean log-probabilities; far larger than DPO's, since a mean is far smaller
            than a sum.
        gamma: the margin that a pair's scaled difference is to exceed. The paper's tables give gamma / beta.
    """

    name: ClassVar[str] = "simpo"

    beta: float | None = 2.0
    gamma: Annotated[float, Ge(0)] = 1.0

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer of pairs with this loss."""
        from harness.algorithms import losses

        assert self.beta
        return free_training(job, self.beta, partial(losses.simpo, beta=self.beta, margin=self.gamma), mean=True)
