"""What was computed lately, and need not be computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, the first to come the first to go; several threads may ask, and two may compute the same."""

    def __init__(self, most: int, lasts: Callable[[V], bool]):
        """Keep so many; a value that does not ``lasts`` would perhaps be another the next time, and is not kept."""
        self.most, self.lasts = most, lasts
        self._known: OrderedDict[K, V] = OrderedDict()

    def once(self, key: K, compute: Callable[[], V]) -> V:
        """What is known under the key, or else what ``compute`` returns."""
        with suppress(KeyError):
            return self._known[key]
        found = compute()
        if self.lasts(found):
            self._known[key] = found
            while len(self._known) > self.most:
                with suppress(KeyError):  # another thread was first
                    self._known.popitem(last=False)
        return found
