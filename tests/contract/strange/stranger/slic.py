"""SLiC on transformers' own trainer: an algorithm without a reference, and without a trainer of TRL's."""

from dataclasses import dataclass
from typing import ClassVar

from harness.algorithms.base import Algorithm, Training, needs_positive_beta


@dataclass(frozen=True)
class SLiC(Algorithm):
    """Sequence likelihood calibration (Zhao et al. 2023, arXiv 2305.10425, eq. 1); beta is the paper's lambda.

    A hinge on the difference of log-probabilities, here per token, and the likelihood of the chosen side.
    """

    name: ClassVar[str] = "slic"
    family: ClassVar[str] = "offline"
    consumes: ClassVar[str] = "pairs"

    beta: float | None = 0.1

    @property
    def uses_reference(self):
        """The loss compares the policy with itself."""
        return False

    def problems(self, task, data, train):
        """Pairs, and beta above zero."""
        return [*super().problems(task, data, train), *needs_positive_beta(self)]

    def trainer(self, job):
        """A trainer of pairs."""
        import torch
        from peft import get_peft_model
        from torch.nn.functional import relu
        from transformers import Trainer, TrainingArguments

        from harness.algorithms.arguments import common_arguments, tokenized_pairs

        beta, pad, limit = self.beta, job.tokenizer.pad_token_id, job.train.max_length

        def batch_of(rows):
            """Chosen sequences, then rejected ones: (2 B, T)."""
            whole = [(r["prompt_ids"], r[side]) for side in ("chosen_ids", "rejected_ids") for r in rows]
            whole = [(p + c)[:limit] for p, c in whole], [([0] * len(p) + [1] * len(c))[:limit] for p, c in whole]
            width = max(map(len, whole[0]))
            ids, masks = (
                [row + [fill] * (width - len(row)) for row in part] for part, fill in zip(whole, (pad, 0), strict=True)
            )
            real = [[1] * len(row) + [0] * (width - len(row)) for row in whole[0]]
            return {
                "input_ids": torch.tensor(ids),
                "attention_mask": torch.tensor(real),
                "completion_mask": torch.tensor(masks),
            }

        class PairTrainer(Trainer):
            """The loss, and nothing else."""

            def compute_loss(self, model, inputs, return_outputs=False, **_):
                mask = inputs["completion_mask"][:, 1:]
                logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
                said = logits.float().log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
                mean = (said * mask).sum(1) / mask.sum(1).clamp(min=1)
                chosen, rejected = mean.chunk(2)
                loss = relu(1 - (chosen - rejected)).mean() - beta * chosen.mean()
                return (loss, None) if return_outputs else loss

        adapter = job.adapter.peft_config()
        trainer = PairTrainer(
            model=job.model if adapter is None else get_peft_model(job.model, adapter),
            args=TrainingArguments(**common_arguments(job), remove_unused_columns=False),
            train_dataset=tokenized_pairs(job),
            data_collator=batch_of,
            callbacks=job.callbacks,
        )
        return Training(trainer)
