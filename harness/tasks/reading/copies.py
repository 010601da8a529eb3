"""Texts that show one another: the same but for spacing, or by runs of words. Pure.

A held-out prompt has leaked where a training prompt is the same but for white space, case and Unicode form, or where
half of its runs of eight words occur in one training prompt. Short prompts have no such runs: sums that differ in a
digit are no copies. Nor do runs count that are boilerplate, such as those of a system prompt that all rows have.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RUN = 8
"""Words of a run; shorter ones occur by chance."""
SHARED = 0.5
"""Share of a prompt's runs that make it a copy."""
COMMON = 0.01
"""Share of the texts above which a run is boilerplate."""
FEW = 10
"""Texts that may share a run however few there are: 1 % of 300 would be three turns of one conversation."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def tight_key(words: str) -> str:
    """A text's identity without white space, case and Unicode form."""
    return "".join(unicodedata.normalize("NFKC", words).casefold().split())


def limit(count: int, common: float = COMMON) -> float:
    """Texts of ``count`` that may share a run before it is boilerplate."""
    return max(FEW, common * count)


def copies(held: Iterable[str], training: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Held-out texts that training prompts show -> how, the text itself, and the training prompt."""
    ours, theirs = list(dict.fromkeys(held)), list(dict.fromkeys(training))
    found: dict[str, tuple[str, str, str]] = {}
    best: dict[int, int] = {}
    for (h, t), (common, total) in near(ours, theirs).items():
        if common > best.get(h, 0):
            best[h] = common
            found[ours[h]] = (f"{common} of {total} runs of {RUN} words", ours[h], theirs[t])
    for h, t in same(ours, theirs):
        if not found.get(ours[h], ("",))[0].startswith("the same"):
            found[ours[h]] = ("the same but for spacing and case", ours[h], theirs[t])
    return found


def showing(held: Sequence[str], training: Sequence[str]) -> set[int]:
    """Places of the training texts that show a held-out one."""
    return {t for _, t in same(held, training)} | {t for _, t in near(held, training)}


def same(held: Sequence[str], training: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of a held-out text and a training text that are the same but for spacing, case and Unicode form."""
    places: dict[str, list[int]] = defaultdict(list)
    for h, words in enumerate(held):
        places[tight_key(words)].append(h)
    return [(h, t) for t, words in enumerate(training) for h in places.get(tight_key(words), ())]


def near(held: Sequence[str], training: Sequence[str]) -> dict[tuple[int, int], tuple[int, int]]:
    """Pairs of a held-out text and a training text that shows it -> runs in common, and runs of the held-out one.

    It does so with ``SHARED`` of the runs that are no boilerplate, or where it holds all of the held-out text.
    """
    found = runs([*held, *training], RUN)
    rare = found.rare
    keys, owners = found.keys[rare], found.owners[rare]
    ours = owners < len(held)
    total = np.bincount(owners[ours], minlength=len(held))
    common: dict[tuple[int, int], int] = defaultdict(int)
    for h, t in _pairs(keys, owners, keys[ours], owners[ours], len(held)):
        common[h, t] += 1
    shown = {(h, t): (n, int(total[h])) for (h, t), n in common.items() if n >= SHARED * total[h]}
    for h, t in _pairs(found.keys, found.owners, *_rarest(found, len(held)), len(held)):
        if (h, t) not in shown and tight_key(held[h]) in tight_key(training[t]):
            n = len(held[h].split()) - RUN + 1
            shown[h, t] = (n, n)
    return shown


def _pairs(
    keys: np.ndarray, owners: np.ndarray, wanted: np.ndarray, whose: np.ndarray, held: int
) -> Iterator[tuple[int, int]]:
    """(held-out text, training text) for each time that a training text has one of the ``wanted`` runs of ``whose``."""
    by_key: dict[int, list[int]] = defaultdict(list)
    for key, h in zip(wanted.tolist(), whose.tolist(), strict=True):
        by_key[key].append(h)
    theirs = (owners >= held) & np.isin(keys, wanted)
    for key, t in zip(keys[theirs].tolist(), owners[theirs].tolist(), strict=True):
        for h in by_key[key]:
            yield h, t - held


def _rarest(found: Runs, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each held-out text the run that fewest texts have, if these are few: who has all of the text has that one."""
    ours = np.flatnonzero((found.owners < held) & (found.texts_with <= found.limit))
    order = ours[np.lexsort((found.texts_with[ours], found.owners[ours]))]
    _, first = np.unique(found.owners[order], return_index=True)
    return found.keys[order[first]], found.owners[order[first]]


@dataclass(frozen=True)
class Runs:
    """The distinct runs of words of each of some texts; two texts share a run where a hash stands with both.

    Attributes:
        keys: 64-bit hashes, which hold within this call alone.
        owners: the text that each is of.
        texts_with: texts that have it.
        rare: whether it is no boilerplate: a run that more than ``limit`` texts have is, and so is every run that holds
            a word of one. The end of a system prompt and the first word of a question are no passage in common.
        limit: see there.
    """

    keys: np.ndarray
    owners: np.ndarray
    texts_with: np.ndarray
    rare: np.ndarray
    limit: float


def runs(texts: Sequence[str], length: int, *, common: float = COMMON) -> Runs:
    """The runs of ``length`` words; one that more than the share ``common`` of the texts have is boilerplate."""
    numbers: dict[str, int] = {}
    words: list[int] = []
    ends: list[int] = []
    for one in texts:
        words += [numbers.setdefault(w, len(numbers)) for w in unicodedata.normalize("NFKC", one).casefold().split()]
        ends.append(len(words))
    most, none = limit(len(texts), common), np.zeros(0, dtype=np.int64)
    owner = np.repeat(np.arange(len(texts)), np.diff([0, *ends]))
    last = max(0, len(words) - length + 1)
    at = np.flatnonzero(owner[:last] == owner[len(owner) - last :])  # within one text
    if not len(at):
        return Runs(none.astype(np.uint64), none, none, none.astype(bool), most)
    keys = _hashes(np.array(words, dtype=np.uint64), length)[at]
    order = np.argsort(keys, kind="stable")  # within a hash the texts stay in order
    at, keys = at[order], keys[order]
    fresh = np.concatenate([[True], keys[1:] != keys[:-1]])
    group = np.cumsum(fresh) - 1
    first = fresh | np.concatenate([[True], owner[at][1:] != owner[at][:-1]])  # of a hash in its text
    texts_with = np.bincount(group[first])[group]
    frequent = texts_with > most
    covered = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(covered, at[frequent], 1)
    np.add.at(covered, at[frequent] + length, -1)
    inside = np.concatenate([[0], np.cumsum(np.cumsum(covered)[:-1] > 0)])
    rare = inside[at + length] == inside[at]
    return Runs(keys[first], owner[at][first], texts_with[first], rare[first], most)


def _hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of every window of ``length`` words: their mixed numbers, each turned by its place, added up."""
    mixed = _mixed(ids)
    total = np.zeros(len(ids) - length + 1, dtype=np.uint64)
    for place in range(length):
        total = total * GOLDEN + mixed[place : place + len(total)]
    return _mixed(total)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): numbers that are close become numbers that are not."""
    z = values + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
