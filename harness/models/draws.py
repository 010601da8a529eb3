"""Sampling whose draws belong to the sample: its number and the seed decide, not the batch, chunk or process it is in.

``generate`` draws from one stream of random numbers, so that a sample depends on all that are sampled beside it. Here
every sample has a stream of its own, counted by its number, with one number for each token; the token is where the sum
of probabilities passes it. The distribution is the model's, as before. Imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from harness.base.replacing import replaced
from harness.models.rollouts import plainly_prepared, sampled

EVALUATION = 2**62
"""What evaluators add to the numbers of their samples: no rollout of the same seed comes so far."""
MOST_SUMS = 2**22
"""Of probabilities at once, in 64 bits: 32 MiB, whatever batch and vocabulary."""
NO_PROBABILITIES = "probability tensor contains"
"""Torch's words where it samples from what is no distribution begin so; ``evaluators.scoring`` knows them."""


def uniforms(seed: int, numbers: Sequence[int], tokens: int) -> Tensor:
    """Numbers in [0, 1) for each sample and token, (len(numbers), tokens), 64 bits: a Philox stream for each sample."""
    streams = (np.random.Generator(np.random.Philox(key=_key(seed, number))) for number in numbers)
    return torch.as_tensor(np.stack([stream.random(tokens) for stream in streams]))


def _key(seed: int, number: int) -> np.ndarray:
    return np.array([seed % 2**64, number], dtype=np.uint64)  # a plain list above 2**63 would become floats


class Draws(LogitsProcessor):
    """Leaves one token of each row: the one that its number falls on.

    Args:
        numbers: of each row and token to come (B, T), in [0, 1).
        temperature: divides the logits.
        width: tokens of the prompts.
        told: called with the number of each token.
    """

    def __init__(self, numbers: Tensor, temperature: float, width: int, told: Callable[[int], None] = lambda _: None):
        """Keep them where the scores will be."""
        self.numbers, self.temperature, self.width, self.told = numbers, temperature, width, told

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """(B, V) logits in; out the same with all but one at minus infinity."""
        self.numbers, number = self.numbers.to(scores.device), input_ids.shape[1] - self.width
        chosen = drawn(scores, self.numbers[:, number], self.temperature)
        self.told(number)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def drawn(scores: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """The token (B,) of each row of logits (B, V) on which its number (B,) falls; at temperature 0 the likeliest.

    Raises:
        RuntimeError: the logits are no numbers, in torch's words.
    """
    rows = max(1, MOST_SUMS // max(1, scores.shape[-1]))
    parts = zip(scores.split(rows), numbers.split(rows), strict=True)
    return torch.cat([_drawn(part, own, temperature) for part, own in parts])


def _drawn(scores: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    greedy = temperature == 0
    sums = scores if greedy else (scores.float() / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    if bool(sums.isnan().any() if greedy else not sums[:, -1].isfinite().all()):
        raise RuntimeError(f"{NO_PROBABILITIES} what is no number")
    if greedy:
        return scores.argmax(-1)
    return torch.searchsorted(sums, numbers[:, None] * sums[:, -1:], right=True)[:, 0]


@contextmanager
def drawing(
    model: Any,
    numbers: Tensor,
    temperature: float,
    chunk: int | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> Iterator[None]:
    """Within it ``model.generate`` samples the rows of one batch by ``numbers``, in their order.

    With a ``chunk`` they are sampled so many at a time, by ``rollouts.sampled``, which reads a prompt once. ``told`` is
    called with the number of each token. A model that goes on from a cache in a way of its own goes it, so many rows at
    once.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = base.generate

    def in_chunks(input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **more: Any) -> Tensor:
        if unknown := sorted(name for name, value in more.items() if value is not None):
            raise TypeError(f"sampling in chunks knows nothing of {', '.join(unknown)}")
        held = numbers.to(input_ids.device)
        ends = generation_config.eos_token_id

        def draw(logits: Tensor, rows: Tensor, number: int) -> Tensor:
            told(number)
            return drawn(logits, held[rows, number], temperature)

        found = sampled(
            base,
            input_ids,
            attention_mask,
            draw,
            tokens=generation_config.max_new_tokens,
            ends=[] if ends is None else [ends] if isinstance(ends, int) else ends,
            pad=generation_config.pad_token_id,
            chunk=chunk or 1,
            at_least=generation_config.min_new_tokens or 0,
        )
        return torch.cat([input_ids, found], dim=1)

    def in_its_own_way(input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **options: Any) -> Any:
        greedy = copy.deepcopy(generation_config)
        greedy.do_sample = False
        greedy.temperature = greedy.top_k = greedy.top_p = None
        options["generation_config"] = greedy
        parts = []
        for rows in torch.arange(len(input_ids)).split(chunk or max(1, len(input_ids))):
            draws = LogitsProcessorList([Draws(numbers[rows], temperature, input_ids.shape[1], told)])
            ids, mask = input_ids[rows], attention_mask[rows]
            parts.append(whole(input_ids=ids, attention_mask=mask, logits_processor=draws, **options))
        return parts[0] if len(parts) == 1 else _level(parts, generation_config.pad_token_id)

    with replaced(base, "generate", in_chunks if chunk is not None and plainly_prepared(base) else in_its_own_way):
        yield


def _level(parts: Sequence[Tensor], pad: int) -> Tensor:
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts])
