"""Held-out preference accuracy, pair by pair, so that no figure depends on how pairs were batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Task, TaskData, digest_of, prompt_key


@dataclass(frozen=True)
class Preference(Evaluator):
    """Does the model rank the chosen completion above the rejected one?

    Four rankings: the implicit reward log(policy / reference) (trained models only; an untrained policy ties
    everywhere by construction), the log-likelihood of the whole completion, the same per token, and length alone,
    which a good figure must beat. Ties count one half. Pairs of one prompt are one cluster, in every error.
    """

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """Held-out pairs are needed."""
        return None if any(data.eval_pairs.values()) else "the data has no held-out pairs"

    def evaluate(self, context: EvalContext) -> Evaluation:
        """One forward pass over both sides of every pair."""
        from harness.evaluators.scoring import pair_log_probs, share_with_bounds, with_stderr

        scores = pair_log_probs(context)
        if len(scores.chosen) == 0:
            return Evaluation({}, absent={"preference_accuracy": f"no held-out pairs in split {context.split}"})
        chosen, rejected = scores.chosen.tolist(), scores.rejected.tolist()
        chosen_mean = (scores.chosen / scores.chosen_tokens.clamp(min=1)).tolist()
        rejected_mean = (scores.rejected / scores.rejected_tokens.clamp(min=1)).tolist()
        columns: dict[str, Sequence[float]] = {
            "likelihood_accuracy": wins(chosen_mean, rejected_mean),
            "likelihood_margin": _gaps(chosen_mean, rejected_mean),
            "sequence_likelihood_accuracy": wins(chosen, rejected),
            "sequence_likelihood_margin": _gaps(chosen, rejected),
            "length_only_accuracy": wins(scores.chosen_tokens.tolist(), scores.rejected_tokens.tolist()),
        }
        absent: dict[str, str] = {}
        if context.reference is None:
            absent["preference_accuracy"] = "an untrained policy equals its reference: 0.5 by construction"
        else:
            chosen_gain = (scores.chosen - context.reference.chosen).tolist()
            rejected_gain = (scores.rejected - context.reference.rejected).tolist()
            margins = _gaps(chosen_gain, rejected_gain)
            columns |= {
                "preference_accuracy": wins(chosen_gain, rejected_gain),
                "logratio_margin": margins,
                "chosen_logratio": chosen_gain,
                "rejected_logratio": rejected_gain,
            }
            if context.beta:
                columns["preference_margin"] = [context.beta * m for m in margins]
            else:
                absent["preference_margin"] = "the algorithm has no beta to scale it by"
        pairs = context.data.eval_pairs[context.split]
        prompts = [prompt_key(pair["prompt"]) for pair in pairs]
        metrics: dict[str, float] = {}
        for name, values in columns.items():
            told = share_with_bounds if name.endswith("accuracy") else with_stderr
            metrics |= told(name, values, prompts)
        metrics |= {"preference_pairs": float(len(chosen)), "preference_truncated": float(scores.truncated)}
        names = [digest_of(dict(pair)) for pair in pairs]
        return Evaluation(metrics, examples={"pairs": {"example": names, "cluster": prompts, **columns}}, absent=absent)


def wins(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    """1 where chosen scores higher, 0 where lower, 0.5 for a tie."""
    return [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]


def _gaps(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    return [c - r for c, r in zip(chosen, rejected, strict=True)]
