"""ORPO: likelihood of the chosen completion, and its odds against the rejected one; no reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from harness.algorithms.base import ReferenceFree, Training, TrainJob
from harness.algorithms.pairs import free_training


@dataclass(frozen=True)
class ORPO(ReferenceFree):
    """Odds-ratio preference optimization (Hong et al. 2024, arXiv 2403.07691, eq. 6).

    The likelihood is the mean over a completion's tokens, then over pairs, as in the paper: TRL's trainer counts the
    prompt's tokens too.

    Attributes:
        beta: weight of the odds-ratio term (the paper's lambda).
    """

    name: ClassVar[str] = "orpo"

    beta: float | None = 0.1

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer of pairs with this loss."""
        from harness.algorithms import losses

        assert self.beta
        return free_training(job, self.beta, partial(losses.orpo, weight=self.beta), mean=True)
