"""Prompts that belong together: copies, and conversations that begin alike. Pure.

A split by prompt would put the second turn of a conversation into training and its third into the test. So prompts are
joined into families, which are held out whole: by the words with which the user opens a conversation, and by runs of
``RUN`` words. What stands in more than 1 % of the prompts (a system prompt, a template's boilerplate) joins
nothing: in 2,077 rows of HH-RLHF runs of eight words put 6.7 % into one family, runs of five 81 %, and one system
prompt puts everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.tasks.base import Text, text_of
from harness.tasks.reading.copies import FEW, limit, runs, tight_key

RUN = 13
"""Words of a run that two prompts do not share by chance."""
FEWEST = 3
"""Families that a split needs: one each for training, validation and test."""
LARGEST = 0.1
"""Share of the prompts above which a family is taken apart: held out whole it would be all of a split."""


@dataclass(frozen=True)
class Families:
    """How prompts belong together.

    Attributes:
        of: number of the family of each prompt.
        cut: sizes of the families that were taken apart: each was more than ``LARGEST`` of all prompts, or there would
            have been fewer than ``FEWEST``.
    """

    of: Sequence[int]
    cut: Sequence[int] = ()

    @property
    def largest(self) -> int:
        """Prompts of the largest family."""
        return int(np.bincount(np.asarray(self.of, int)).max()) if len(self.of) else 0


def families(prompts: Sequence[Text]) -> Families:
    """Join prompts that share an opening or a run of words."""
    count = len(prompts)
    if count == 0:
        return Families([])
    found = runs([text_of(prompt) for prompt in prompts], RUN)
    edges = [_joined(found.keys[found.rare], found.owners[found.rare], limit(count))]
    opened = [(i, words) for i, prompt in enumerate(prompts) if (words := opening(prompt))]
    if opened:
        numbers: dict[str, int] = {}
        keys = np.array([numbers.setdefault(words, len(numbers)) for _, words in opened], dtype=np.uint64)
        edges.append(_joined(keys, np.array([i for i, _ in opened], dtype=np.int64), limit(count)))
    labels = _components(np.concatenate(edges), count)
    sizes = np.bincount(labels)
    wide = [int(label) for label in np.flatnonzero(sizes > max(FEW, LARGEST * count))]
    left = [label for label in np.argsort(-sizes, kind="stable").tolist() if label not in wide and sizes[label] > 1]
    while left and len(sizes) - len(wide) + sum(sizes[wide]) < FEWEST:
        wide.append(left.pop(0))
    fresh = int(labels.max()) + 1
    for label in wide:
        members = np.flatnonzero(labels == label)
        labels[members] = np.arange(fresh, fresh + len(members))
        fresh += len(members)
    return Families(labels.tolist(), [int(sizes[label]) for label in wide])


def opening(prompt: Text) -> str:
    """What the user says first in a conversation, without white space and case; empty for text."""
    if isinstance(prompt, str):
        return ""
    first = next((message["content"] for message in prompt if message["role"] == "user"), "")
    return tight_key(first)


def _joined(keys: np.ndarray, owners: np.ndarray, most: float) -> np.ndarray:
    """Pairs (N, 2) of neighbours that share a key, of keys that at most ``most`` owners have."""
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= most
    keys, owners = keys[rare], owners[rare]
    same = keys[1:] == keys[:-1]
    return np.stack([owners[:-1][same], owners[1:][same]], axis=1)


def _components(edges: np.ndarray, count: int) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(edges), dtype=np.int8)
    graph: Any = coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
