"""An evaluator."""

from dataclasses import dataclass

from harness.evaluators.base import Evaluation, Evaluator
from harness.evaluators.scoring import held_out_samples


@dataclass(frozen=True)
class Count(Evaluator):
    """Characters per completion."""

    def evaluate(self, context):
        """One completion for each prompt."""
        rows, samples = held_out_samples(context, per_prompt=1)
        return Evaluation(metrics={"characters": sum(len(s.text) for s in samples) / len(rows)})
