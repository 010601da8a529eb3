"""KTO: single completions labelled desirable or not, by TRL's KTOTrainer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt

from harness.algorithms.base import Algorithm, Training, TrainJob, needs_positive_beta, shares_by_rule
from harness.base.errors import UserError
from harness.config.train import Train


@dataclass(frozen=True)
class KTO(Algorithm):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8).

    TRL estimates the KL term inside each micro-batch from completions rotated by one, and reads the data in
    order: unpaired rows are shuffled here, or the first half of training would see desirable rows alone.

    Attributes:
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
        share_reference: compute the reference log-probabilities of all rows, and of those that estimate the KL term,
            once and share them over trials of one seed and micro-batch; null does where training sees at least half
            of the rows.
    """

    name: ClassVar[str] = "kto"
    family: ClassVar[Literal["offline", "online", "none"]] = "offline"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "unpaired"

    beta: float | None = 0.1
    desirable_weight: Annotated[float, Gt(0)] = 1.0
    undesirable_weight: Annotated[float, Gt(0)] = 1.0
    share_reference: bool | None = None

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """Both labels, a micro-batch above one and beta > 0 are needed."""
        found = [*super().problems(task, data, train), *needs_positive_beta(self)]
        labels = {bool(row["label"]) for row in data.train_unpaired} or ({True, False} if data.train_pairs else set())
        if labels != {True, False}:
            only = "none" if not labels else "desirable only" if True in labels else "undesirable only"
            found.append(
                UserError(
                    "kto needs desirable and undesirable rows",
                    key="task",
                    value=f"labels: {only}",
                    fix="add rows with the other label, or use algo=sft for desirable rows alone",
                )
            )
        if train.micro_batch_size is not None and train.micro_batch_size < 2:
            found.append(
                UserError(
                    "kto estimates its KL term inside a micro-batch, so it must hold at least 2 rows",
                    key="train.micro_batch_size",
                    value=train.micro_batch_size,
                    fix="train.micro_batch_size=2 or more",
                )
            )
        return found

    @property
    def shares_micro_batch(self) -> bool:
        """Its KL term is estimated within one."""
        return True

    def rows_in(self, data: Any) -> int:
        """Unpaired rows; pairs give two each."""
        return len(data.train_unpaired) or 2 * len(data.train_pairs)

    def shares_reference(self, train: Train, data: Any) -> bool:
        """As asked; by itself where training sees at least half of the rows."""
        return shares_by_rule(self.share_reference, train, self.rows_in(data))

    def with_sharing(self, shared: bool) -> KTO:
        """As asked from now on."""
        return replace(self, share_reference=shared)

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer on shuffled rows."""
        from trl import KTOConfig, KTOTrainer

        from harness.algorithms import replay
        from harness.algorithms.arguments import common_arguments, tokenized_completions
        from harness.algorithms.trl_seam import PairTrainer, without_hashing
        from harness.stages.reference import scores

        class Trainer(PairTrainer, KTOTrainer):
            """Its references come from the stage, and its token ids from the one rendering of all."""

            reference_scores = staticmethod(scores if job.references is None else job.references.columns)
            replayed = replay.of(job)

            def rows(self, dataset: Any, arguments: Any) -> Any:
                together = arguments.per_device_train_batch_size * job.world.size
                mismatched = rotated(dataset["completion_ids"], together)
                return dataset.add_column("KL_completion_ids", mismatched)

        without_hashing()
        trainer = Trainer(
            model=job.model,
            ref_model=job.reference,
            args=KTOConfig(
                **common_arguments(job, joint=self.shares_micro_batch),
                beta=self.beta or 0.0,  # checked to be above zero
                desirable_weight=self.desirable_weight,
                undesirable_weight=self.undesirable_weight,
                max_length=job.train.max_length,
                precompute_ref_log_probs=job.holds == "shared",
            ),
            train_dataset=tokenized_completions(
                job, shuffled_rows(job.data.train_pairs, job.data.train_unpaired, job.seed)
            ),
            processing_class=job.tokenizer,
            peft_config=job.adapter.peft_config(),
            callbacks=job.callbacks,
        )
        return Training(trainer, job.holds)


def rotated(completions: Sequence[Any], size: int) -> list[Any]:
    """Each micro-batch of ``size`` completions moved on by one: mismatched to prompts, they estimate the KL term.

    A row that is left alone at the end takes the completion before it, since its own would be no mismatch.
    """
    moved: list[Any] = []
    for i in range(0, len(completions), size):
        chunk = completions[i : i + size]
        moved += (completions[i - 1] if len(chunk) == 1 else chunk[-1], *chunk[:-1])
    return moved


def shuffled_rows(
    pairs: Sequence[Mapping[str, Any]], unpaired: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Unpaired rows in an order drawn from ``seed``; pairs give a desirable and an undesirable row each."""
    rows = [dict(row) for row in unpaired]
    for pair in pairs if not unpaired else ():
        rows.append({"prompt": pair["prompt"], "completion": pair["chosen"], "label": True})
        rows.append({"prompt": pair["prompt"], "completion": pair["rejected"], "label": False})
    random.Random(f"kto-{seed}").shuffle(rows)
    return rows
