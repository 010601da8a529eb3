"""What algorithms that learn from pairs share. Import-light; the trainers come with TRL when they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.algorithms.base import Training, TrainJob

if TYPE_CHECKING:
    from torch import Tensor

    from harness.algorithms.losses import Said


def pair_training(job: TrainJob, trainer: Any, **options: Any) -> Training:
    """TRL's trainer of pairs, or one derived from it, ready to train.

    Args:
        job: what to train.
        trainer: the class, this training's own.
        options: of TRL's ``DPOConfig``, beside those that all algorithms share.
    """
    from trl import DPOConfig

    from harness.algorithms import replay
    from harness.algorithms.arguments import common_arguments, tokenized_pairs
    from harness.algorithms.trl_seam import without_hashing

    without_hashing()
    trainer.replayed = replay.of(job)
    made = trainer(
        model=job.model,
        ref_model=job.reference,
        args=DPOConfig(**common_arguments(job), max_length=job.train.max_length, **options),
        train_dataset=tokenized_pairs(job),
        processing_class=job.tokenizer,
        peft_config=job.adapter.peft_config(),
        callbacks=job.callbacks,
    )
    return Training(made, job.holds)


def free_training(job: TrainJob, beta: float, losses: Callable[[Said, Said], Tensor], *, mean: bool) -> Training:
    """Training on pairs by a loss that knows the policy alone: no reference is held, scored or reported.

    Args:
        job: what to train.
        beta: scale of the series ``rewards/``.
        losses: chosen, rejected -> the loss of each pair, (B,).
        mean: whether the loss ranks completions by log-probability per token, or by that of the whole.
    """
    from harness.algorithms.trl_seam import FreePairTrainer

    class Trainer(FreePairTrainer):
        """With this loss."""

        scale, by_mean = beta, mean

        def losses(self, chosen: Said, rejected: Said) -> Tensor:
            return losses(chosen, rejected)

    # TRL loads no reference where one is to be scored beforehand, and there is nothing to score.
    return pair_training(job, Trainer, precompute_ref_log_probs=True)
