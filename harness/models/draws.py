"""Sampling whose draws belong to the sample: its number and the seed decide, not the batch, chunk or process it is in.

``generate`` draws from one stream of random numbers, so that a sample depends on all that are sampled beside it. Here
every sample has a stream of its own, counted by its number, with one number for each token; the token is where the sum
of probabilities passes it. The distribution is the model's, as before. Imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from harness.base.replacing import replaced

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
    """

    def __init__(self, numbers: Tensor, temperature: float, width: int):
        """Keep them where the scores will be."""
        self.numbers, self.temperature, self.width = numbers, temperature, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """(B, V) logits in; out the same with all but one at minus infinity."""
        self.numbers = self.numbers.to(scores.device)
        sums = (scores.float() / self.temperature).softmax(-1).double().cumsum(-1)
        if not bool(sums[:, -1].isfinite().all()):
            raise RuntimeError(f"{NO_PROBABILITIES} what is no number")
        passed = self.numbers[:, input_ids.shape[1] - self.width, None] * sums[:, -1:]
        chosen = torch.searchsorted(sums, passed, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


@contextmanager
def drawing(model: Any, numbers: Tensor, temperature: float) -> Iterator[None]:
    """Within it ``model.generate`` samples the rows of one batch by ``numbers``, in their order."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = base.generate

    def drawn(input_ids: Tensor, generation_config: Any, **options: Any) -> Any:
        greedy = copy.deepcopy(generation_config)
        greedy.do_sample = False
        greedy.temperature = greedy.top_k = greedy.top_p = None
        draws = LogitsProcessorList([Draws(numbers, temperature, input_ids.shape[1])])
        return whole(input_ids=input_ids, generation_config=greedy, logits_processor=draws, **options)

    with replaced(base, "generate", drawn):
        yield
