"""A point of the curve: what a policy says of a few held-out rows while it is still in training. Import-light.

The rows, the seed and the sampling are the same for every point and every trial, so that points differ by the policy
alone. One completion is sampled per prompt: more prompts say more than more completions of the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from harness.base import best_of
from harness.evaluators.base import EvalContext, Evaluation
from harness.evaluators.preference import wins
from harness.tasks.base import Row, prompt_key

Paid = Callable[[Sequence[Row], Sequence[str], Sequence[bool]], Sequence[float]]
"""Prompt rows, completions and whether each ended by itself -> what training pays for each completion."""
NO_REFERENCE = "the model before training is not resident: full fine-tuning that trains without a copy of it"
UNPAID = "the algorithm learns from given rows and is paid nothing"


def measured(context: EvalContext, paid: Paid | None, *, trained: bool = True) -> Evaluation:
    """Preference accuracy on the context's pairs, and the rest on one completion of each of its prompts.

    KL is in nats per completion: the mean of log pi(y|x) - log ref(y|x) over the policy's own samples.

    Args:
        context: its data holds the rows of a point alone; ``before_training`` is None where no reference is resident.
        paid: the reward that training pays; None where it pays none.
        trained: whether the policy may differ from the model before training; if not, its KL is 0 and not measured.

    Raises:
        Diverged: the policy's probabilities are not finite.
    """
    pairs, prompts = _on_pairs(context), _on_prompts(context, paid, trained)
    return Evaluation({**pairs.metrics, **prompts.metrics}, absent={**pairs.absent, **prompts.absent})


def _on_pairs(context: EvalContext) -> Evaluation:
    from harness.evaluators.scoring import pair_log_probs, with_stderr

    rows, name = context.data.eval_pairs.get(context.split, ()), "preference_accuracy"
    if not rows:
        return Evaluation({}, absent={name: f"no held-out pairs in split {context.split}"})
    if context.reference is None:
        return Evaluation({}, absent={name: "an untrained policy equals its reference: 0.5 by construction"})
    scores, before = pair_log_probs(context), context.reference
    ranked = wins((scores.chosen - before.chosen).tolist(), (scores.rejected - before.rejected).tolist())
    return Evaluation(with_stderr(name, ranked, [prompt_key(row["prompt"]) for row in rows]))


def _on_prompts(context: EvalContext, paid: Paid | None, trained: bool) -> Evaluation:
    from harness.evaluators.scoring import held_out_samples, sample_log_probs, task_scores, with_stderr

    if not context.data.eval_prompts.get(context.split):
        names = ("true_reward", "proxy_reward", "kl_per_sequence", "completion_tokens", "ended_by_eos")
        return Evaluation({}, absent=dict.fromkeys(names, f"no held-out prompts in split {context.split}"))
    rows, drawn = held_out_samples(context, per_prompt=1)
    prompts = [prompt_key(row["prompt"]) for row in rows]
    columns: dict[str, Sequence[float]] = {}
    absent: dict[str, str] = {}
    if context.task.has_reward:
        columns["true_reward"] = [s.reward for s in task_scores(context, rows, drawn)]
    else:
        absent["true_reward"] = "the task has no rule that scores a completion"
    if paid is not None:
        columns["proxy_reward"] = list(
            paid([rows[d.row] for d in drawn], [d.text for d in drawn], [d.ended for d in drawn])
        )
    else:
        absent["proxy_reward"] = UNPAID
    if context.before_training is not None and not trained:
        columns["kl_per_sequence"] = [0.0] * len(drawn)
    elif context.before_training is not None:
        own, _ = sample_log_probs(context, rows, drawn)
        with context.before_training() as before:
            theirs, _ = sample_log_probs(before, rows, drawn)
        columns["kl_per_sequence"] = [a - b for a, b in zip(own, theirs, strict=True)]
    else:
        absent["kl_per_sequence"] = NO_REFERENCE
    metrics: dict[str, float] = {
        "completion_tokens": sum(d.tokens for d in drawn) / len(drawn),
        "ended_by_eos": sum(d.ended for d in drawn) / len(drawn),
    }
    for name, values in columns.items():
        metrics |= with_stderr(name, values, prompts)
    return Evaluation(metrics, absent=absent)


def best_of_n(context: EvalContext, paid: Paid, most: int) -> dict[int, dict[str, float]]:
    """What choosing the best paid of n samples gives, without any training: n -> figures, means over prompts.

    The policy's ``most`` samples of each prompt serve every n: a figure is the mean over all subsets of n of them.

    Args:
        context: its data holds the prompts.
        paid: the reward that chooses, called ``proxy_reward``.
        most: samples of each prompt.
    """
    from harness.evaluators.scoring import held_out_samples, task_scores, with_stderr

    rows, drawn = held_out_samples(context, per_prompt=most)
    prompts = [prompt_key(row["prompt"]) for row in rows]
    told = {"proxy_reward": paid([rows[d.row] for d in drawn], [d.text for d in drawn], [d.ended for d in drawn])}
    if context.task.has_reward:
        told["true_reward"] = [s.reward for s in task_scores(context, rows, drawn)]
    own: list[list[int]] = [[] for _ in rows]
    for place, one in enumerate(drawn):
        own[one.row].append(place)
    found = {}
    for n in numbers(most):
        found[n] = {"n": float(n), "kl_per_sequence": best_of.distance(n)}
        for name, values in told.items():
            chosen = [_choice(told["proxy_reward"], values, places, n) for places in own]
            found[n] |= with_stderr(name, chosen, prompts)
    return found


def _choice(scores: Sequence[float], values: Sequence[float], places: Sequence[int], n: int) -> float:
    return best_of.expected_choice([scores[i] for i in places], [values[i] for i in places], n)


def numbers(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, … up to ``most``: two for each doubling, even steps of the distance."""
    found = {most, *(base * 2**k for base in (1, 3) for k in range(most.bit_length()) if base * 2**k <= most)}
    return sorted(found)


def first_rows(rows: Mapping[str, Sequence[Row]], split: str, most: int) -> dict[str, Sequence[Row]]:
    """The first ``most`` rows of a split, as ``TaskData`` holds them."""
    return {split: rows.get(split, ())[:most]}
