"""CPO: DPO with a uniform reference, and the likelihood of the chosen completion; no reference is held."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from annotated_types import Ge

from harness.algorithms.base import ReferenceFree, Training, TrainJob
from harness.algorithms.pairs import free_training


@dataclass(frozen=True)
class CPO(ReferenceFree):
    """Contrastive preference optimization (Xu et al. 2024, arXiv 2401.08417, eq. 5).

    Attributes:
        beta: scale of the difference of log-probabilities.
        likelihood: weight of the chosen completion's likelihood, per token; 0 leaves it out.
    """

    name: ClassVar[str] = "cpo"

    beta: float | None = 0.1
    likelihood: Annotated[float, Ge(0)] = 1.0

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer of pairs with this loss."""
        from harness.algorithms import losses

        assert self.beta
        return free_training(job, self.beta, partial(losses.cpo, beta=self.beta, weight=self.likelihood), mean=False)
