"""DPO and IPO: preference pairs against a frozen reference, by TRL's DPOTrainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from harness.algorithms.base import Algorithm, Training, TrainJob, needs_positive_beta, shares_by_rule
from harness.base.errors import UserError
from harness.config.train import Train


@dataclass(frozen=True)
class DPO(Algorithm):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    -log sigmoid(beta * ((log pi_w - log ref_w) - (log pi_l - log ref_l))), log-probabilities summed over tokens.

    Attributes:
        share_reference: compute the reference log-probabilities of all rows once and share them over trials, so that
            no reference is held while training; null does where training sees at least half of the rows.
    """

    name: ClassVar[str] = "dpo"
    family: ClassVar[Literal["offline", "online", "none"]] = "offline"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "pairs"
    loss_type: ClassVar[str] = "sigmoid"

    beta: float | None = 0.1
    share_reference: bool | None = None

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Pairs and beta > 0 are needed."""
        return [*super().problems(task, data, train), *needs_positive_beta(self)]

    def shares_reference(self, train: Train, data: Any) -> bool:
        """As asked; by itself where training sees at least half of the rows."""
        return shares_by_rule(self.share_reference, train, self.rows_in(data))

    def with_sharing(self, shared: bool) -> DPO:
        """As asked from now on."""
        return replace(self, share_reference=shared)

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer; with an adapter the reference is the base with the adapter off."""
        from trl import DPOConfig, DPOTrainer

        from harness.algorithms.arguments import common_arguments, tokenized_pairs
        from harness.algorithms.trl_seam import PairTrainer, without_hashing
        from harness.stages.reference import scores

        class Trainer(PairTrainer, DPOTrainer):
            """Its references come from the stage, and its token ids from the one rendering of all."""

            reference_scores = staticmethod(scores if job.references is None else job.references.columns)

        without_hashing()
        trainer = Trainer(
            model=job.model,
            ref_model=job.reference,
            args=DPOConfig(
                **common_arguments(job),
                beta=self.beta or 0.0,  # checked to be above zero
                loss_type=[self.loss_type],
                max_length=job.train.max_length,
                precompute_ref_log_probs=job.holds == "shared",
            ),
            train_dataset=tokenized_pairs(job),
            processing_class=job.tokenizer,
            peft_config=job.adapter.peft_config(),
            callbacks=job.callbacks,
        )
        return Training(trainer, job.holds)


@dataclass(frozen=True)
class IPO(DPO):
    """Identity preference optimization (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    (h - 1 / (2 beta))^2 with h the difference of log-ratios. TRL averages the log-probabilities over tokens
    here, as the authors recommended to it; beta is the paper's tau.
    """

    name: ClassVar[str] = "ipo"
    loss_type: ClassVar[str] = "ipo"
