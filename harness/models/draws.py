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
from harness.models.rollouts import sampled

EVALUATION = 2**62
"""What evaluators add to the numbers of their samples: no rollout of the same seed comes so far."""
NO_PROBABILITIES = "probability tensor contains"
"""Torch's words where it samples from what is no distribution begin so; ``evaluators.scoring`` knows them."""


def uniforms(seed: int, numbers: Sequence[int], tokens: int) -> Tensor:
    """Numbers in [0, 1) for each sample and token, (len(numbers), tokens), 64 bits: a Philox stream for each sample."""
    streams = (np.random.Generator(np.random.Philox(key=[seed, number])) for number in numbers)
    return torch.as_tensor(np.stack([stream.random(tokens) for stream in streams]))


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
    greedy = temperature == 0
    sums = scores if greedy else (scores.float() / temperature).softmax(-1).double().cumsum(-1)
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
    called with the number of each token.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = base.generate

    def in_chunks(input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **_: Any) -> Tensor:
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

    def one_by_one(input_ids: Tensor, generation_config: Any, **options: Any) -> Any:
        greedy = copy.deepcopy(generation_config)
        greedy.do_sample = False
        greedy.temperature = greedy.top_k = greedy.top_p = None
        draws = LogitsProcessorList([Draws(numbers, temperature, input_ids.shape[1], told)])
        return whole(input_ids=input_ids, generation_config=greedy, logits_processor=draws, **options)

    with replaced(base, "generate", one_by_one if chunk is None else in_chunks):
        yield
