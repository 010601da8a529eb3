"""Does the model know how sure it may be? Preference probabilities against clean labels, declining against need."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Task, TaskData, prompt_key


@dataclass(frozen=True)
class Calibration(Evaluator):
    """Of sigma(beta-scaled margin) as the probability that the chosen side is better: Brier score, calibration error.

    The model is taken at its word, for the side that it prefers: its confidence lies between 1/2 and 1, and it is right
    where that side is the chosen one. Where the data has unanswerable prompts, also how often it declines.

    Attributes:
        bins: of equal width over confidence 1/2 to 1.
        samples: completions per prompt, for declining.
    """

    bins: Annotated[int, Gt(0)] = 10
    samples: Annotated[int, Gt(0)] = 4

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """Held-out pairs, or prompts of a task that can tell a refusal."""
        if any(data.eval_pairs.values()) or (task.knows_declining and any(data.eval_prompts.values())):
            return None
        return "the data has no held-out pairs, and the task cannot tell declining from answering"

    def evaluate(self, context: EvalContext) -> Evaluation:
        """From the scores and samples that other evaluators need too."""
        pairs, declining = self._pairs(context), self._declining(context)
        return Evaluation(
            metrics={**pairs.metrics, **declining.metrics},
            tables=pairs.tables,
            absent={**pairs.absent, **declining.absent},
        )

    def _pairs(self, context: EvalContext) -> Evaluation:
        from harness.base import calibration
        from harness.evaluators.scoring import pair_log_probs, with_stderr

        why = None
        if not context.data.eval_pairs.get(context.split):
            why = f"no held-out pairs in split {context.split}"
        elif context.reference is None:
            why = "an untrained policy equals its reference and has no preference"
        elif not context.beta:
            why = "the algorithm has no beta to scale margins by"
        if why is not None or context.reference is None or context.beta is None:
            return Evaluation({}, absent=dict.fromkeys(("preference_brier", "preference_ece"), str(why)))
        scores, reference = pair_log_probs(context), context.reference
        margins = ((scores.chosen - reference.chosen) - (scores.rejected - reference.rejected)).tolist()
        chosen = [_sigmoid(context.beta * margin) for margin in margins]
        sure, right = map(np.array, calibration.confidence(chosen))

        def bins(places: np.ndarray | slice) -> list[calibration.Bin]:
            return calibration.reliability(sure[places], right[places], bins=self.bins, span=(0.5, 1.0))

        def ece(places: np.ndarray | slice) -> float:
            return calibration.expected_calibration_error(bins(places))

        prompts = [prompt_key(pair["prompt"]) for pair in context.data.eval_pairs[context.split]]
        metrics = dict(with_stderr("preference_brier", [(1 - p) ** 2 for p in chosen], prompts))
        metrics["preference_ece"] = ece(slice(None))
        if (error := calibration.bootstrap_error(ece, len(chosen), prompts)) is not None:
            metrics["preference_ece_stderr"] = error
        return Evaluation(
            metrics,
            tables={"reliability": [asdict(b) for b in bins(slice(None))]},
        )

    def _declining(self, context: EvalContext) -> Evaluation:
        from harness.evaluators.scoring import grouped, held_out_samples, share_with_bounds

        if not context.task.knows_declining or not context.data.eval_prompts.get(context.split):
            return Evaluation({})
        rows, drawn = held_out_samples(context, per_prompt=self.samples)
        declined = grouped([float(context.task.declines(d.text)) for d in drawn], self.samples)
        metrics: dict[str, float] = {}
        for name, answerable in (("declined_answerable", True), ("declined_unanswerable", False)):
            kept = [
                (row, d) for row, d in zip(rows, declined, strict=True) if context.task.answerable(row) is answerable
            ]
            prompts = [prompt_key(row["prompt"]) for row, _ in kept]
            metrics |= share_with_bounds(name, [d for _, d in kept], prompts, draws=self.samples)
        return Evaluation(metrics)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
