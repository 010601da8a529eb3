"""What two models differ by, and how fast one samples. Imports torch; used by the evaluator ``merge``."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.evaluators.base import EvalContext
from harness.evaluators.scoring import batches, held_out_samples
from harness.models.generation import own_distribution, rows_within_cache, sampling_options
from harness.tasks.base import prompt_key
from harness.tasks.conversation import encode_sides, prompt_ids

Sequences = Sequence[tuple[list[int], list[int]]]
"""(prompt ids, completion ids) of each."""
SECOND = "second"
"""Name of the adapter's copy while there are two on one base."""
REPEATS = 3
"""Of each measurement of speed; the median counts."""


def completions(context: EvalContext) -> tuple[Sequences, list[str]]:
    """Held-out prompts with completions, and the key of each prompt.

    Both sides of the held-out pairs; where the data has none, a completion that the policy samples for each prompt.
    """
    pairs = context.data.eval_pairs.get(context.split, ())
    if pairs:
        keys = [prompt_key(pair["prompt"]) for pair in pairs]
        return encode_sides(context.tokenizer, context.rows(pairs)), [*keys, *keys]
    rows, samples = held_out_samples(context, per_prompt=1)
    encoded = prompt_ids(context.tokenizer, [row["prompt"] for row in context.rows(rows)])
    return [(encoded[s.row], list(s.ids)) for s in samples], [prompt_key(rows[s.row]["prompt"]) for s in samples]


@torch.no_grad()
def divergences(context: EvalContext, other: EvalContext, sequences: Sequences) -> tuple[list[float], list[int]]:
    """KL of ``context``'s model to ``other``'s at each token of the completions, summed; and the number of tokens.

    The sum over the whole vocabulary of p log(p / q), in nats. It is taken as p (d + exp(-d) - 1) with d = log(p / q),
    which is the same, since p and q sum to one, and loses nothing where they are nearly alike.

    Args:
        context: its model is p.
        other: its model is q; the rest is ``context``'s.
        sequences: see ``completions``; cut at the context's ``max_length``.

    Returns:
        Nats and tokens of each sequence.
    """
    sums, counts = [0.0] * len(sequences), [0] * len(sequences)
    done = 0
    for chosen in batches(context, [len(prompt) + len(completion) for prompt, completion in sequences]):
        rows = [(sequences[i][0] + sequences[i][1])[: context.max_length] for i in chosen]
        ours, theirs = _logits(context, rows), _logits(other, rows)
        for row, index in enumerate(chosen):
            start = max(len(sequences[index][0]), 1)
            place = slice(start - 1, len(rows[row]) - 1)
            ahead = ours[row, place].float().log_softmax(-1)
            gap = ahead - theirs[row, place].float().log_softmax(-1)
            sums[index] = (ahead.exp() * (gap + torch.expm1(-gap))).double().sum().item()
            counts[index] = max(0, len(rows[row]) - start)
        done += len(chosen)
        context.tell("comparing with the merged policy", done, len(sequences))
    return sums, counts


def _logits(context: EvalContext, rows: Sequence[list[int]]) -> torch.Tensor:
    """Of shape (rows, longest, vocabulary); padding is on the right."""
    pad, width = context.tokenizer.pad_token_id, max(map(len, rows))
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows], device=context.device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=context.device)
    with context.computing():
        return context.model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def tokens_per_second(context: EvalContext, tokens: int, names: Sequence[str] | None = None) -> float | None:
    """Tokens that the model samples in a second, in one batch of held-out prompts, ``tokens`` for each.

    No row ends before the others, so that the figure does not depend on what the model says. The median of three, after
    one that does not count. None where there is no held-out prompt.

    Args:
        context: its model samples; the batch is ``batch_size``, or fewer where the cache would be too large.
        tokens: of each completion.
        names: of adapters, given to the rows in turn.
    """
    rows = context.data.eval_prompts.get(context.split, ())[: context.batch_size]
    encoded = sorted(prompt_ids(context.tokenizer, [row["prompt"] for row in context.rows(rows)]), key=len)
    if not encoded:
        return None
    width, pad = len(encoded[-1]), context.tokenizer.pad_token_id
    wide = context.precision != "bf16"
    encoded = encoded[-rows_within_cache(context.model.config, width + tokens, len(encoded), wide=wide) :]
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in encoded], device=context.device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in encoded], device=context.device)
    options = sampling_options(max_new_tokens=tokens, temperature=1.0) | {"min_new_tokens": tokens}
    if names is not None:
        options["adapter_names"] = [names[i % len(names)] for i in range(len(encoded))]
    generator: Any = context.model
    taken = []
    with torch.no_grad(), own_distribution(context.model, context.tokenizer):
        for repeat in range(1 + REPEATS):
            _settle(context.device)
            began = time.perf_counter()
            with context.computing():
                generator.generate(input_ids=ids, attention_mask=mask, **options)
            _settle(context.device)
            taken.append(time.perf_counter() - began)
            context.tell("timing samples", repeat, REPEATS)
    return len(encoded) * tokens / statistics.median(taken[1:])


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def one_for_all(policy: Any) -> str | None:
    """Why peft does not switch the adapter of ``policy`` by request; None where it does.

    Asked beforehand: other kinds take the names and ignore them, and an error within ``generate`` leaves peft's hooks.
    """
    (own,) = policy.active_adapters
    config = policy.peft_config[own]
    if config.peft_type != "LORA" or config.use_dora:
        return "peft switches plain LoRA by request, and no other adapter"
    return None


@contextmanager
def two_adapters(policy: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Within it, the peft model ``policy`` has a copy of its adapter beside it; afterwards it is as it was.

    Gives the names of both.
    """
    (own,) = policy.active_adapters
    trained = [(p, p.requires_grad) for p in policy.parameters()]
    try:
        policy.load_adapter(str(folder), SECOND, is_trainable=False)
        yield own, SECOND
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another adapter is active from now on, which it was before
            if SECOND in policy.peft_config:
                policy.delete_adapter(SECOND)
            policy.set_adapter(own)
        for parameter, was in trained:
            parameter.requires_grad_(was)
        policy.eval()
