"""Steps of a completion: where they end, what a model that grades them reads, and what their scores come to. Pure."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Aggregate = Literal["min", "product", "mean", "last"]


@dataclass(frozen=True)
class Step:
    """A part of a completion.

    Attributes:
        text: its words, without what parts it from the next one.
        end: characters of the completion up to its end, the separator included.
        closed: whether a separator follows.
    """

    text: str
    end: int
    closed: bool


def steps_of(completion: str, separator: str) -> list[Step]:
    """The steps, in order; blank ones are none, and neither is the nothing after a last separator."""
    found, end = [], 0
    parts = completion.split(separator)
    for number, part in enumerate(parts, start=1):
        closed = number < len(parts)
        end += len(part) + (len(separator) if closed else 0)
        if part.strip():
            found.append(Step(part, end, closed))
    return found


def aggregated(scores: Sequence[float], how: Aggregate) -> float:
    """One number of the scores of a completion's steps, of which there is one at least."""
    if how == "min":
        return min(scores)
    if how == "product":
        return math.prod(scores)
    return math.fsum(scores) / len(scores) if how == "mean" else scores[-1]


def shares(scores: Sequence[float], how: Aggregate) -> list[float]:
    """What each step is paid, so that all of them together are paid what ``aggregated`` says.

    By ``mean`` a step is paid its score over the number of steps. By the others it is paid what it changes: the
    aggregate of the steps up to it, less that of those before it (0 of none), so that a wrong step is charged where it
    stands. By ``last`` this is the last step's score alone.
    """
    if how == "mean":
        return [score / len(scores) for score in scores]
    if how == "last":
        return [*[0.0] * (len(scores) - 1), scores[-1]]
    so_far = [aggregated(scores[: n + 1], how) for n in range(len(scores))]
    return [now - before for before, now in itertools.pairwise([0.0, *so_far])]


def ending_tokens(tokenizer: Any, ids: Sequence[int], text: str, ends: Sequence[int]) -> list[int]:
    """The token with which each of the first ``ends`` characters of a completion is complete, as an index into ``ids``.

    Where a step ends within a token, as in BPE's, that token completes it. Tokens are read as they were sampled:
    encoding the text again may give others. What is never complete (a tokenizer whose parts do not add up) is so at
    the end.

    Args:
        tokenizer: whose tokens they are.
        ids: of the completion, at least one, its end included.
        text: what they say, without special tokens.
        ends: ascending.
    """
    found, first = [], 0
    for end in ends:

        def complete(k: int, wanted: str = text[:end]) -> bool:
            return tokenizer.decode(list(ids[: k + 1]), skip_special_tokens=True).startswith(wanted)

        first = bisect.bisect_left(range(len(ids) - 1), True, lo=first, key=complete)
        found.append(first)
    return found


def read_as(
    tokenizer: Any, prompts: Sequence[list[int]], completions: Sequence[Sequence[str]], longest: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    """What a model that grades steps reads: the prompt, then each step, encoded by itself.

    It is read at the last token of each. So tokens of two steps never merge, whatever the tokenizer, in training as in
    scoring (as TRL's PRM trainer had it).

    Args:
        tokenizer: the model's.
        prompts: token ids.
        completions: of each its steps, each with the separator behind it where there is one.
        longest: tokens that are kept, from the end; None keeps all.

    Returns:
        token ids, and per sequence the index of each step's last token; below 0 of a step that was cut away.
    """
    parts = [part for steps in completions for part in steps]
    encoded = iter(tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else [])
    sequences, places = [], []
    for prompt, steps in zip(prompts, completions, strict=True):
        ids, ends = list(prompt), []
        for _ in steps:
            ids += next(encoded)
            ends.append(len(ids) - 1)
        cut = 0 if longest is None else max(0, len(ids) - longest)
        sequences.append(ids[cut:])
        places.append([end - cut for end in ends])
    return sequences, places
