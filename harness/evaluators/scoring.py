"""Log-probabilities and samples, in batches built by length. Imports torch; used by the evaluators."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from harness.base.calibration import clustered_error, share
from harness.base.errors import Diverged
from harness.evaluators.base import EvalContext
from harness.models import prefixes
from harness.models.added import added
from harness.models.draws import EVALUATION, NO_PROBABILITIES, drawing, uniforms
from harness.models.generation import (
    keeps_logits,
    own_distribution,
    rows_within_cache,
    sampling_config,
    stop_ids,
    text_of,
)
from harness.models.virtual_tokens import has_virtual_tokens
from harness.tasks.base import Row, Score
from harness.tasks.conversation import encode_sides, prompt_ids

PAIRS, TRAINING, SAMPLES = ("pairs",), ("training pairs",), "samples"
"""Keys of what evaluators share (``Memo``); that of samples goes on with how they were drawn."""
MOST_LOGITS = 2**28
"""In one forward pass of scoring: half a GB in bf16, and a GB for each of two copies in 32 bits. At a vocabulary of
128,000 and 1,024 tokens that is two rows; a batch of 64 would take 84 GB."""


@dataclass(frozen=True)
class PairLogProbs:
    """Sums of token log-probabilities of the completions of pairs, in nats, in row order.

    Attributes:
        chosen, rejected: log p(completion | prompt), float64, shape (pairs,).
        chosen_tokens, rejected_tokens: scored tokens, end-of-sequence included, shape (pairs,).
        truncated: pairs of which a side was cut at the length limit.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    truncated: int

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> PairLogProbs:
        """From what ``numbers`` gave."""
        wide = {name: torch.tensor(numbers[name], dtype=torch.float64) for name in ("chosen", "rejected")}
        counts = {name: torch.tensor(numbers[name], dtype=torch.long) for name in ("chosen_tokens", "rejected_tokens")}
        return cls(**wide, **counts, truncated=numbers["truncated"])

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it without tensors; no bit is lost."""
        return {
            name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(self).items()
        }


def pair_log_probs(context: EvalContext) -> PairLogProbs:
    """Score both sides of every held-out pair of the context's split under its model; once for all evaluators."""
    return context.memo.once(PAIRS, lambda: _score_pairs(context))


def _score_pairs(context: EvalContext) -> PairLogProbs:
    return score_pairs(context, context.data.eval_pairs[context.split])


def score_pairs(context: EvalContext, rows: Sequence[Row]) -> PairLogProbs:
    """Score both sides of pairs under the context's model.

    Raises:
        Diverged: a sum is not finite.
    """
    pairs = context.rows(rows)
    sides = encode_sides(context.tokenizer, pairs)
    truncated = sum(len(p) + len(c) > context.max_length for p, c in sides)
    sums, counts = _finite(context, *completion_log_probs(context, sides))
    n = len(pairs)
    return PairLogProbs(sums[:n], sums[n:], counts[:n], counts[n:], truncated)


@torch.no_grad()
def completion_log_probs(
    context: EvalContext, sequences: Sequence[tuple[list[int], list[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of log p(token | before) over each completion, and the number of its tokens.

    Batches hold sequences of similar length; padding is on the right, where causal attention cannot see it, so
    a value does not depend on what shares its batch. A model that reads rows that begin alike as one
    (``models.prefixes``) has completions of one prompt in one batch.

    Args:
        context: model, device, batch size and length limit.
        sequences: (prompt ids, completion ids).

    Returns:
        Sums in nats, float64, and counts, each of shape (len(sequences),).
    """
    sums = torch.zeros(len(sequences), dtype=torch.float64)
    counts = torch.zeros(len(sequences), dtype=torch.long)
    done = 0
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    shared = prefixes.of(context.model)
    prompts = None if shared is None or shared.why else [prompt for prompt, _ in sequences]
    for chosen in batches(context, lengths, prompts):
        rows = [(sequences[i][0] + sequences[i][1])[: context.max_length] for i in chosen]
        starts = [max(len(sequences[i][0]), 1) for i in chosen]
        first = min(starts)
        picked = _token_log_probs(context, rows, first)
        for row, (index, start) in enumerate(zip(chosen, starts, strict=True)):
            sums[index] = picked[row, start - first : len(rows[row]) - first].double().sum().cpu()
            counts[index] = max(0, len(rows[row]) - start)
        context.tell("scoring", done := done + len(chosen), len(sequences))
    return sums, counts


def _token_log_probs(context: EvalContext, rows: Sequence[list[int]], first: int) -> torch.Tensor:
    """Log-probabilities of the tokens from ``first`` on, (rows, longest - first); the logits live in here alone."""
    pad, width = context.tokenizer.pad_token_id, max(map(len, rows))
    kept = max(0, width - first) + 1
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows], device=context.device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=context.device)
    less = {"logits_to_keep": kept} if keeps_logits(context.model) else {}
    with context.computing(), prefixes.together(context.model):
        found = context.model(input_ids=ids, attention_mask=mask, use_cache=False, **less).logits
    logits = found[:, -kept:-1].float()  # an adapter may put virtual tokens before the real ones
    del found
    return torch.gather(logits, 2, ids[:, width - kept + 1 :, None]).squeeze(2) - torch.logsumexp(logits, 2)


def _finite(context: EvalContext, sums: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, if all are numbers."""
    if bad := int((~sums.isfinite()).sum()):
        raise Diverged(f"{bad} of {len(sums)} judged sequences have no finite log-probability{_whose(context)}")
    return sums, counts


def _whose(context: EvalContext) -> str:
    return " under the model before training" if context.on_baseline else ""


def rows_at_once(context: EvalContext, width: int) -> int:
    """Rows of ``width`` tokens in one forward pass: the batch size, or fewer where their logits would be too many."""
    vocabulary = context.model.config.get_text_config().vocab_size
    return max(1, min(context.batch_size, MOST_LOGITS // (width * vocabulary)))


def batches(
    context: EvalContext, lengths: Sequence[int], prompts: Sequence[list[int]] | None = None
) -> Iterator[list[int]]:
    """Indices of sequences, shortest first, in batches whose logits are not too many.

    With ``prompts`` those of one prompt follow one another, at the place of the longest of them.
    """
    places: Sequence[Any] = lengths
    if prompts is not None:
        longest: dict[tuple[int, ...], int] = {}
        for prompt, length in zip(prompts, lengths, strict=True):
            longest[tuple(prompt)] = max(length, longest.get(tuple(prompt), 0))
        places = [(longest[tuple(p)], p, length) for p, length in zip(prompts, lengths, strict=True)]
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=places.__getitem__):
        width = max(width, min(lengths[index], context.max_length))
        if batch and len(batch) >= rows_at_once(context, width):
            yield batch
            batch, width = [], min(lengths[index], context.max_length)
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class Sample:
    """One sampled completion.

    Attributes:
        row: index of the prompt.
        text: without special tokens.
        ids: sampled tokens, end-of-sequence included.
        ended: whether it ended by itself before the limit.
    """

    row: int
    text: str
    ids: tuple[int, ...]
    ended: bool

    @property
    def tokens(self) -> int:
        """Their number."""
        return len(self.ids)


def held_out_samples(
    context: EvalContext, *, per_prompt: int, temperature: float = 1.0, max_prompts: int | None = None
) -> tuple[Sequence[Row], list[Sample]]:
    """The held-out prompts of the split with completions sampled for them; once for all evaluators that ask alike.

    Returns:
        Rows, and ``per_prompt`` samples of each, row by row.
    """
    rows = context.data.eval_prompts[context.split][:max_prompts]

    def drawn() -> list[Sample]:
        prompts = [row["prompt"] for row in context.rows(rows)]
        return sample(context, prompts, per_prompt=per_prompt, temperature=temperature)

    return rows, context.memo.once((SAMPLES, per_prompt, temperature, len(rows)), drawn)


def task_scores(context: EvalContext, rows: Sequence[Row], drawn: Sequence[Sample]) -> list[Score]:
    """What the task thinks of each sample."""
    return context.task.scores([rows[d.row] for d in drawn], [d.text for d in drawn])


def sample_log_probs(
    context: EvalContext, rows: Sequence[Row], samples: Sequence[Sample]
) -> tuple[list[float], list[int]]:
    """Log-probability (nats) of each sample under the context's model, and the tokens that were scored."""
    encoded = prompt_ids(context.tokenizer, [row["prompt"] for row in context.rows(rows)])
    scored = completion_log_probs(context, [(encoded[s.row], list(s.ids)) for s in samples])
    sums, counts = _finite(context, *scored)
    return sums.tolist(), counts.tolist()


@torch.no_grad()
def sample(context: EvalContext, prompts: Sequence[Any], *, per_prompt: int, temperature: float) -> list[Sample]:
    """Completions of ``prompts``, in their order, by draws that belong to each of them (``models.draws``).

    So the same seed gives the same draws for every model, whatever is sampled beside them. They come from the model's
    own distribution, whatever its generation configuration asks for (``generation``). Temperature 0 is greedy. A prompt
    is read once for its samples where the model shares prefixes, and a plain LoRA is added to its base meanwhile.
    """
    encoded = prompt_ids(context.tokenizer, prompts)
    jobs = [i for i in range(len(prompts)) for _ in range(per_prompt)]
    order = sorted(range(len(jobs)), key=lambda j: (len(encoded[jobs[j]]), j))
    found: dict[int, Sample] = {}
    model: Any = context.model
    tokenizer, pad, room = context.tokenizer, context.tokenizer.pad_token_id, context.max_completion_length
    ends, together = set(stop_ids(tokenizer, model)), prefixes.can(model)
    how = sampling_config(tokenizer, model, max_new_tokens=room, temperature=temperature)
    with ExitStack() as held:
        held.enter_context(own_distribution(model, tokenizer))
        with context.computing():
            held.enter_context(added(model))
        for chosen in _sampled_at_once(context, order, [len(encoded[i]) for i in jobs]):
            rows = [encoded[jobs[j]] for j in chosen]
            width = max(len(r) for r in rows)
            ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=context.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=context.device)
            numbers = uniforms(context.seed, [EVALUATION + j for j in chosen], room)
            at_once = len(chosen) if together else None
            with (
                context.computing(),
                drawing(model, numbers, temperature, at_once, _ticks(context, len(found), len(chosen), len(jobs))),
                sampling_from_numbers(lambda: f"the probabilities to sample from are not finite{_whose(context)}"),
            ):
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)
            out = out[:, width:].tolist()
            for j, tokens in zip(chosen, out, strict=True):
                end = next((k for k, t in enumerate(tokens) if t in ends), None)
                kept = tokens if end is None else tokens[: end + 1]
                text = text_of(tokenizer, kept, ended=end is not None)
                found[j] = Sample(jobs[j], text, tuple(kept), ended=end is not None)
            context.tell("sampling", len(found), len(jobs))
    return [found[j] for j in range(len(jobs))]


def _ticks(context: EvalContext, done: int, size: int, total: int) -> Callable[[int], None]:
    """Tells the context of every token of a batch of ``size``."""

    def told(number: int) -> None:
        share = min(1.0, (number + 1) / context.max_completion_length)
        context.tell("sampling", min(total - 1, done + int(size * share)), total)

    return told


@contextmanager
def sampling_from_numbers(said: Callable[[], str]) -> Iterator[None]:
    """Torch's complaint about probabilities that are none, as ``Diverged`` in the words of ``said``."""
    try:
        yield
    except RuntimeError as error:
        if NO_PROBABILITIES not in str(error):
            raise
        raise Diverged(said()) from error


def grouped(values: Sequence[float], size: int) -> list[float]:
    """Means of consecutive groups: a value per sample becomes one per prompt, the unit of its error."""
    return [math.fsum(values[i : i + size]) / size for i in range(0, len(values), size)]


def with_stderr(name: str, values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Mapping[str, float]:
    """``{name: mean, name_stderr: ...}``, values of one cluster (a prompt) counted as one; nothing for no values."""
    if not values:
        return {}
    error = clustered_error(values, clusters)
    mean = math.fsum(values) / len(values)
    return {name: mean} if error is None else {name: mean, f"{name}_stderr": error}


def share_with_bounds(
    name: str, values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, draws: int = 1
) -> Mapping[str, float]:
    """The same of values between 0 and 1, with ``name_low`` and ``name_high`` within them (``calibration.share``).

    ``draws`` is how many independent draws each value is the mean of.
    """
    if not values:
        return {}
    found = share(values, clusters, draws=draws)
    bounds = {f"{name}_low": found.low, f"{name}_high": found.high}
    return {**with_stderr(name, values, clusters), **{n: v for n, v in bounds.items() if v is not None}}


def ratio_with_stderr(name: str, above: Sequence[float], below: Sequence[float]) -> Mapping[str, float]:
    """Sum over sum, such as nats per token, with the standard error of a ratio (linearised, groups as units)."""
    n, total = len(above), math.fsum(below)
    if n == 0 or total == 0:
        return {}
    ratio = math.fsum(above) / total
    if n < 2:
        return {name: ratio}
    spread = math.fsum((a - ratio * b) ** 2 for a, b in zip(above, below, strict=True)) / (n - 1)
    return {name: ratio, f"{name}_stderr": math.sqrt(n * spread) / total}


def _sampled_at_once(context: EvalContext, order: Sequence[int], lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Places of completions, in ``order`` (shortest prompts first), as many together as the cache may hold."""
    wide, start = context.precision != "bf16", 0
    alone = has_virtual_tokens(context.model)
    while start < len(order):
        chosen = order[start : start + context.batch_size]
        if alone:  # padding between its tokens and the prompt's would count in a window of attention
            chosen = [j for j in chosen if lengths[j] == lengths[chosen[0]]]
        while True:
            width = lengths[chosen[-1]] + context.max_completion_length
            fits = rows_within_cache(getattr(context.model, "config", None), width, len(chosen), wide=wide)
            if fits >= len(chosen):
                break
            chosen = chosen[:fits]
        yield chosen
        start += len(chosen)
