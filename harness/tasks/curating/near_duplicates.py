"""Prompts that are nearly those of other rows: one of them is enough."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt, Le

from harness.tasks.base import Row, prompt_key, text_of
from harness.tasks.curating.base import RowRule, Sifted, split_by
from harness.tasks.reading.copies import runs, tight_key

ROUNDING = 1e-9
"""0.7 × 10 is a little more than 7 in floating point."""
SAME = "the prompt is another's but for spacing and case"


@dataclass(frozen=True)
class NearDuplicates(RowRule):
    """Leaves out the rows of prompts that are nearly a prompt that stays.

    Two prompts are near where the Jaccard index of their runs of ``words`` words reaches ``threshold``. Runs of words
    that belong to boilerplate count for nothing: questions under one system prompt are no duplicates. Prompts of fewer
    words are compared as a whole. Several rows of one prompt are no duplicates either (``cap`` with ``by: prompt``
    thins them out).

    Attributes:
        threshold: of the Jaccard index.
        words: of a run.
        boilerplate: share of the prompts (and ten of them at least) above which a run that they have is boilerplate.
        keep: which of the prompts that are near stays: the first, or the longest.
    """

    place: ClassVar[int] = 60

    threshold: Annotated[float, Gt(0), Le(1)] = 0.8
    words: Annotated[int, Gt(0)] = 3
    boilerplate: Annotated[float, Gt(0), Le(1)] = 0.05
    keep: Literal["first", "longest"] = "first"

    def sift(self, rows: Sequence[Row]) -> Sifted:
        """By distinct prompts, in the order in which they may stay."""
        keys = [prompt_key(row["prompt"]) for row in rows]
        prompts = {key: text_of(row["prompt"]) for key, row in reversed(list(zip(keys, rows, strict=True)))}
        prompts = {key: prompts[key] for key in dict.fromkeys(keys)}
        if self.keep == "longest":
            prompts = dict(sorted(prompts.items(), key=lambda item: -len(item[1])))  # stable: the first of a length
        why = dict(zip(prompts, self._reasons(list(prompts.values())), strict=True))
        return split_by(rows, [why[key] for key in keys])

    def _reasons(self, texts: Sequence[str]) -> list[str | None]:
        """For each text why it goes, given that those before it were asked first.

        Prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): in an order in which rare runs come first, two
        sets that are alike share one of their first ``n - ceil(threshold * n) + 1``. So a text meets few others, and
        what is found is exact.
        """
        near = f"{self.threshold:g} or more of the prompt's runs of {self.words} words are another's"
        own = _by_text(texts, self.words, self.boilerplate)
        seen: set[str] = set()
        index: dict[int, list[int]] = defaultdict(list)
        sets: dict[int, frozenset[int]] = {}

        def of(place: int) -> frozenset[int]:
            if place not in sets:
                sets[place] = frozenset(own[place].keys.tolist())
            return sets[place]

        reasons: list[str | None] = []
        for place, text in enumerate(texts):
            tight = tight_key(text)
            if tight in seen:
                reasons.append(SAME)
                continue
            seen.add(tight)
            keys, alone = own[place].keys, own[place].alone
            first = keys[alone : len(keys) - math.ceil(self.threshold * len(keys) - ROUNDING) + 1].tolist()
            met = {other for key in first for other in index.get(key, ())}
            if any(self._alike(of(place), of(o)) for o in met if self._sizes(len(keys), len(own[o].keys))):
                reasons.append(near)
                continue
            for key in first:
                index[key].append(place)
            reasons.append(None)
        return reasons

    def _sizes(self, one: int, other: int) -> bool:
        """Whether sets of these sizes can be alike."""
        return self.threshold * max(one, other) - ROUNDING <= min(one, other)

    def _alike(self, one: frozenset[int], other: frozenset[int]) -> bool:
        common = len(one & other)
        return common >= self.threshold * (len(one) + len(other) - common) - ROUNDING


@dataclass(frozen=True)
class Own:
    """The runs of a text that are no boilerplate.

    Attributes:
        keys: their hashes, those that fewest texts have first.
        alone: how many of them no other text has.
    """

    keys: np.ndarray
    alone: int


def _by_text(texts: Sequence[str], words: int, boilerplate: float) -> list[Own]:
    found = runs(texts, words, common=boilerplate)
    keys, owners, texts_with = (part[found.rare] for part in (found.keys, found.owners, found.texts_with))
    order = np.lexsort((keys, texts_with, owners))
    keys, owners, texts_with = keys[order], owners[order], texts_with[order]
    starts = np.searchsorted(owners, np.arange(len(texts) + 1))
    alone = np.concatenate([[0], np.cumsum(texts_with == 1)])
    return [Own(keys[a:b], int(alone[b] - alone[a])) for a, b in zip(starts[:-1], starts[1:], strict=True)]
