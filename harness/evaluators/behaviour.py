"""What became of the model's behaviour: drift from where training started, diversity, length, repetition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Gt

from harness.evaluators.base import EvalContext, Evaluation, Evaluator
from harness.tasks.base import Row, Task, TaskData, prompt_key, text_of

if TYPE_CHECKING:
    from harness.evaluators.scoring import Sample

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
TABLE_ROWS = 24
REPEATED = 4
"""Tokens of a phrase that counts as a repetition when it comes again in the same completion."""


@dataclass(frozen=True)
class Behaviour(Evaluator):
    """Completions sampled at temperature 1, looked at without any judgement of what they say.

    KL is a Monte-Carlo estimate on the model's own samples, mean of log pi(y|x) - log ref(y|x): unbiased, and possibly
    negative where the truth is near 0. Entropy is the mean of -log pi of the same tokens.

    Attributes:
        samples: completions per prompt; at least two, or nothing can be said of diversity.
        max_prompts: at most this many prompts of the split; null takes all that true_reward samples too, and where the
            task scores no completion 32 on a real model.
    """

    compares: ClassVar[bool] = True

    samples: Annotated[int, Gt(1)] = 4
    max_prompts: Annotated[int, Gt(0)] | None = None

    def not_applicable(self, task: Task, data: TaskData) -> str | None:
        """Held-out prompts are needed."""
        return None if any(data.eval_prompts.values()) else "the data has no held-out prompts"

    def evaluate(self, context: EvalContext) -> Evaluation:
        """Two forward passes over the samples, one of them through the model before training."""
        from harness.evaluators.scoring import (
            grouped,
            held_out_samples,
            ratio_with_stderr,
            sample_log_probs,
            task_scores,
            with_stderr,
        )

        k, limit = self.samples, self.max_prompts
        if limit is None and not context.task.has_reward:
            limit = context.sampled_prompts
        rows, drawn = held_out_samples(context, per_prompt=k, max_prompts=limit)
        if not drawn:
            return Evaluation({}, absent={"kl_per_sequence": f"no held-out prompts in split {context.split}"})
        own, counts = sample_log_probs(context, rows, drawn)
        per_prompt, tokens = grouped(own, k), grouped([float(n) for n in counts], k)
        groups = [[drawn[i * k + j].ids for j in range(k)] for i in range(len(rows))]
        columns: dict[str, Sequence[float]] = {
            "self_similarity": [self_similarity(group) for group in groups],
            "repetition": grouped([repetition(d.ids) for d in drawn], k),
        }
        metrics = {
            **ratio_with_stderr("entropy_per_token", [-v for v in per_prompt], tokens),
            **{f"distinct_{n}": distinct([d.ids for d in drawn], n) for n in (1, 2)},
            **{f"completion_tokens_{q}": value for q, value in quantiles([d.tokens for d in drawn]).items()},
        }
        absent: dict[str, str] = {}
        if context.before_training is None:
            absent["kl_per_sequence"] = "there is no other model to have drifted from"
        else:
            with context.before_training() as before:
                theirs, _ = sample_log_probs(before, rows, drawn)
            ratios = [a - b for a, b in zip(own, theirs, strict=True)]
            columns["kl_per_sequence"] = grouped(ratios, k)
            metrics |= ratio_with_stderr("kl_per_token", columns["kl_per_sequence"], tokens)
            if context.task.has_reward:
                rewards = [s.reward for s in task_scores(context, rows, drawn)]
                columns[f"best_of_{k}_true_reward"] = best_of(rewards, ratios, k)
        tables = {} if context.task.has_reward else {"samples": table_of(rows, drawn, k)}
        notes = []
        if len(rows) < (held := len(context.data.eval_prompts[context.split])):
            key = "eval.evaluators.behaviour.max_prompts"
            notes = [f"completions are sampled for {len(rows)} of {held:,} held-out prompts ({key})"]
        names = [prompt_key(row["prompt"]) for row in rows]
        for column, values in columns.items():
            metrics |= with_stderr(column, values, names)
        examples = {"behaviour": {"example": names, **columns}}
        return Evaluation(metrics, tables=tables, examples=examples, absent=absent, notes=notes)


def table_of(rows: Sequence[Row], drawn: Sequence[Sample], per_prompt: int) -> list[dict[str, Any]]:
    """The first completion of each of some prompts, to be read."""
    return [
        {"prompt": text_of(rows[d.row]["prompt"]), "completion": d.text, "tokens": d.tokens, "ended": d.ended}
        for d in drawn[::per_prompt][:TABLE_ROWS]
    ]


def best_of(rewards: Sequence[float], ranks: Sequence[float], k: int) -> list[float]:
    """Of each group of ``k`` the reward of the one that ranks highest; of equals the first."""
    return [rewards[max(range(i, i + k), key=lambda j: ranks[j])] for i in range(0, len(rewards), k)]


def self_similarity(texts: Sequence[Sequence[int]]) -> float:
    """Mean Jaccard overlap of the tokens and token pairs of any two texts; 1 where all say the same."""
    bags = [{*((t,) for t in ids), *itertools.pairwise(ids)} for ids in texts]
    overlaps = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in itertools.combinations(bags, 2)]
    return sum(overlaps) / len(overlaps)


def repetition(ids: Sequence[int]) -> float:
    """Share of the phrases of four tokens that came before in the same text; 0 for a text too short to have two."""
    phrases = [tuple(ids[i : i + REPEATED]) for i in range(len(ids) - REPEATED + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens over all n-grams (Li et al. 2016); falls as more text is looked at."""
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def quantiles(lengths: Sequence[int]) -> Mapping[str, float]:
    """Lengths that a tenth, half and nine tenths of the texts do not exceed."""
    ordered = sorted(lengths)
    return {name: float(ordered[max(0, math.ceil(q * len(ordered)) - 1)]) for name, q in QUANTILES.items()}
