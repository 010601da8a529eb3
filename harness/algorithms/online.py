"""What online algorithms share: a GRPO trainer that clocks its rollouts, and rewards that fail loudly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from harness.algorithms.arguments import common_arguments
from harness.algorithms.base import TrainJob
from harness.errors import UserError


def online_config(
    job: TrainJob, *, num_generations: int, num_iterations: int, rollout_batches: int, **options: Any
) -> GRPOConfig:
    """TRL's configuration; beta stays 0 here, since the reference is handed over by ``GRPOTrainerWithPhases``."""
    common = common_arguments(job)
    return GRPOConfig(
        **common,
        beta=0.0,
        num_generations=num_generations,
        num_iterations=num_iterations,
        steps_per_generation=common["gradient_accumulation_steps"] * rollout_batches,
        max_completion_length=job.train.max_completion_length,
        **options,
    )


class GRPOTrainerWithPhases(GRPOTrainer):
    """TRL's GRPO with two changes: rollouts are a phase of the clock, and the reference is given.

    TRL would load the reference for full fine-tuning from the policy's path once more; a model with random
    weights has no path, and a copy in memory is the same weights to the bit.
    """

    def __init__(self, *, clock: Any, reference: Any, beta: float, **options: Any):
        """Construct with beta 0 (no reference is loaded), then set both."""
        super().__init__(**options)
        self._clock = clock
        self.beta = beta
        if reference is not None and beta:
            from trl.trainer.utils import add_fused_lm_head

            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.rollout_tokens = 0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self._clock.phase("rollout"):
            batch = super()._generate_and_score_completions(inputs)
        self.rollout_tokens += int(batch["completion_mask"].sum())
        return batch


def reward_function(job: TrainJob) -> Callable[..., list[float]]:
    """The trial's reward as TRL calls it: one finite number per completion, or an error that names the row."""
    reward, prompts = job.reward, job.data.train_prompts
    assert reward is not None

    def score(completions: Sequence[Any], row: Sequence[int], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return checked_rewards(reward, [prompts[i] for i in row], texts)

    score.__name__ = type(reward).__name__.lower()
    return score


def checked_rewards(reward: Any, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[float]:
    """Call ``reward`` and insist on one finite number per completion."""
    name = f"{type(reward).__module__}.{type(reward).__qualname__}"
    try:
        values = list(reward(rows, completions))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the reward {name} raised {type(error).__name__}: {error}",
            key="reward",
            fix=f"first row of the batch: {dict(rows[0])!r}, completion {completions[0]!r}",
        ) from error
    if len(values) != len(completions):
        raise UserError(
            f"the reward {name} returned {len(values)} numbers for {len(completions)} completions",
            key="reward",
            fix="return exactly one number per completion, in order",
        )
    values = [v.item() if hasattr(v, "item") else v for v in values]  # numbers of NumPy and torch
    for value, row, completion in zip(values, rows, completions, strict=True):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(
                f"the reward {name} must give a finite number",
                key="reward",
                value=value,
                fix=f"row {dict(row)!r}, completion {completion!r}",
            )
    return [float(v) for v in values]
