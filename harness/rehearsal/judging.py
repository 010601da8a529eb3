"""The heaviest batches of evaluation, rehearsed: held-out rows scored, completions sampled. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from harness.evaluators.base import EvalContext
from harness.evaluators.scoring import batches, completion_log_probs
from harness.evaluators.surfaces import prompts_at_once
from harness.models.added import added
from harness.models.generation import own_distribution, rows_within_cache, sampling_config
from harness.models.precision import Place, computing
from harness.rehearsal import standins
from harness.rehearsal.alike import known
from harness.tasks.base import TaskData
from harness.tasks.conversation import encode_sides, prompt_ids
from harness.trial.assemble import Setup
from harness.trial.context import context_of

Rows = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


def sequences(setup: Setup, data: TaskData, tokenizer: Any, rows: Rows, *, fill: bool) -> tuple[list[Any], list[Any]]:
    """Held-out (prompt, completion) ids, longest first, and prompts' ids, longest first, a batch of each at most.

    Without evaluators there are none. Samples are scored too, by evaluators of drift; they count as rows here. Where
    an evaluator's own file has a heavier batch of prompts, that is sampled.
    """
    settings, split = setup.eval, setup.eval.split
    if not settings.active:
        return [], []
    pairs = encode_sides(tokenizer, rows(data.eval_pairs.get(split, ())))
    prompts = prompt_ids(tokenizer, [row["prompt"] for row in rows(data.eval_prompts.get(split, ()))])
    scored = pairs + [(ids, [tokenizer.eos_token_id] * settings.max_completion_length) for ids in prompts]
    if fill:
        room = max(1, settings.max_length - settings.max_completion_length)
        prompts = [(ids * room)[:room] for ids in prompts]
        scored = [(p, (c * settings.max_length)[: max(1, settings.max_length - len(p))]) for p, c in scored]
    scored.sort(key=lambda s: -sum(map(len, s)))
    prompts.sort(key=len, reverse=True)
    prompts = prompts[: settings.batch_size]

    def cost(batch: Sequence[Any]) -> int:
        return len(batch) * (len(batch[0]) + settings.max_completion_length) if batch else 0

    return scored[: settings.batch_size], max([prompts, *_of_files(setup, tokenizer, rows)], key=cost)


def _of_files(setup: Setup, tokenizer: Any, rows: Rows) -> Iterator[list[list[int]]]:
    """Of each evaluator with prompts of its own the batch of the longest that the model's context has room for."""
    settings, context = setup.eval, setup.model.context_length()

    def tokens(prompt: Any) -> int:
        return len(prompt_ids(tokenizer, [row["prompt"] for row in rows([{"prompt": prompt}])])[0])

    for evaluator in settings.active.values():
        lengths = evaluator.lengths_of_own(tokens)
        fit = [n for n in lengths if context is None or n + settings.max_completion_length <= context]
        if fit:
            yield [[0] * max(fit)] * prompts_at_once(settings.batch_size, max(fit) + settings.max_completion_length)


def judge(
    model: Any,
    setup: Setup,
    tokenizer: Any,
    rows: Rows,
    scored: list[Any],
    prompts: list[Any],
    *,
    place: Place,
    fake: bool,
    fill: bool = False,
    layers: int | None = None,
) -> None:
    """Score one batch and sample one batch with ``model``, as the evaluators do; ``layers`` are the whole model's."""
    settings = setup.eval
    if scored:
        context = context_of(setup, model, tokenizer, TaskData(), rows, place)
        taken = heaviest(context, scored)
        with known([(p + c)[: context.max_length] for p, c in taken], fill=fill):
            completion_log_probs(context, taken)
    if prompts:
        width = max(map(len, prompts))
        longest, wide = width + settings.max_completion_length, place.precision != "bf16"
        fits = rows_within_cache(model.config, longest, len(prompts), wide=wide, layers=layers)
        prompts = prompts[:fits]
        ids = torch.ones((len(prompts), width), dtype=torch.long, device=place.device)
        length = {"max_new_tokens": settings.max_completion_length}
        if not fake:
            length["min_new_tokens"] = settings.max_completion_length
        how = sampling_config(tokenizer, model, temperature=1.0, **length)
        ends = standins.ends_of_sampling(model) if fake else nullcontext()
        arithmetic = computing(place.device, place.precision)
        with torch.no_grad(), arithmetic, own_distribution(model, tokenizer), added(model, layers=layers), ends:
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)


def heaviest(context: EvalContext, scored: Sequence[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
    """Of the batches in which sequences are scored the one of most tokens; that of the longest may have few rows."""
    lengths = [min(len(prompt) + len(completion), context.max_length) for prompt, completion in scored]
    chosen = max(batches(context, lengths), key=lambda batch: len(batch) * lengths[batch[-1]])
    return [scored[i] for i in chosen]


def score(setup: Setup, reward: Any, scene: Any, tracker: Any) -> None:
    """Open an evaluator's own judge and let it score a batch of the longest prompts with completions of full length."""
    from dataclasses import replace

    from harness.rewards.base import Desk
    from harness.rewards.learned import LearnedReward

    settings = setup.eval
    place = scene.place
    rows_of, longest = scene.bare or scene.rows, settings.max_completion_length
    desk = Desk(None, scene.tokenizer, rows_of, {}, place.device, place.frozen, place.precision, longest=longest)
    judge = reward.without_weights() if scene.fake or not isinstance(reward, LearnedReward) else reward
    if isinstance(judge, LearnedReward):
        judge = replace(judge, score_batch_size=settings.batch_size)
    asked = judge.open(desk)
    tracker.own(desk.roles.get("reward", ()), "reward")
    rows = sorted(scene.data.eval_prompts.get(settings.split, ()), key=lambda row: -len(str(row["prompt"])))
    rows = rows[: settings.batch_size]
    said = scene.tokenizer.decode([scene.tokenizer.eos_token_id + 2] * settings.max_completion_length)
    asked(rows, [said] * len(rows), [True] * len(rows))


def can_merge(setup: Setup) -> bool:
    """Whether what is trained can be added to a base's weights."""
    return setup.adapter.peft_config() is not None and setup.adapter.cannot_merge is None


def merges(setup: Setup) -> bool:
    """Whether the trained adapter is merged into its base when all is judged."""
    return setup.train.save == "full" and can_merge(setup) and not setup.adapter.quantized
