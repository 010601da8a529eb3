"""Held-out preference accuracy, pair by pair, so that no figure depends on how pairs were batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Task, TaskData


@dataclass(frozen=True)
class Preference(Evaluator):
    """Does the model rank the chosen completion above the rejected one?

    Three rankings: the implicit reward log(policy / reference) (trained models only; an untrained policy ties
    everywhere by construction), the length-normalised log-likelihood, and length alone, which a good figure
    must beat. Ties count one half.
    """

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """Held-out pairs are needed."""
        return None if any(data.eval_pairs.values()) else "the data has no held-out pairs"

    def evaluate(self, context: EvalContext) -> Evaluation:
        """One forward pass over both sides of every pair."""
        from harness.evaluators.scoring import pair_log_probs, with_stderr

        scores = pair_log_probs(context)
        if len(scores.chosen) == 0:
            return Evaluation({}, absent={"preference_accuracy": f"no held-out pairs in split {context.split}"})
        chosen_mean = (scores.chosen / scores.chosen_tokens.clamp(min=1)).tolist()
        rejected_mean = (scores.rejected / scores.rejected_tokens.clamp(min=1)).tolist()
        lengths = scores.chosen_tokens.tolist(), scores.rejected_tokens.tolist()
        metrics: dict[str, float] = {
            **with_stderr("likelihood_accuracy", wins(chosen_mean, rejected_mean)),
            **with_stderr("length_only_accuracy", wins(*lengths)),
            "preference_pairs": float(len(chosen_mean)),
            "preference_truncated": float(scores.truncated),
        }
        absent: dict[str, str] = {}
        if context.reference is None:
            absent["preference_accuracy"] = "an untrained policy equals its reference: 0.5 by construction"
        else:
            reference = context.reference
            chosen = (scores.chosen - reference.chosen).tolist()
            rejected = (scores.rejected - reference.rejected).tolist()
            margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
            metrics |= {
                **with_stderr("preference_accuracy", wins(chosen, rejected)),
                **with_stderr("logratio_margin", margins),
                **with_stderr("chosen_logratio", chosen),
                **with_stderr("rejected_logratio", rejected),
            }
            if context.beta:
                metrics |= with_stderr("preference_margin", [context.beta * m for m in margins])
            else:
                absent["preference_margin"] = "the algorithm has no beta to scale it by"
        return Evaluation(metrics, absent=absent)


def wins(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    """1 where chosen scores higher, 0 where lower, 0.5 for a tie."""
    return [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]
