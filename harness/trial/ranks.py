"""What several processes of one trial do otherwise than one: one of them builds what all of them read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.world import World, leader_first
from harness.store.cache import Cache, Entry


@dataclass(frozen=True)
class CacheOfRanks(Cache):
    """A cache that all processes of a trial ask for the same entries in the same order.

    The leader builds what is not there while the others wait, and not for a lock: what is built may be torch's doing,
    and a process that waits for a lock takes no part in what processes do together.
    """

    world: World = World()

    def fetch(
        self,
        stage: str,
        key: str,
        build: Callable[[Path], Mapping[str, Any] | None],
        *,
        inputs: Mapping[str, Any],
    ) -> Entry:
        """The entry of ``key``, built by the leader where it is not there."""
        with leader_first(self.world):
            return super().fetch(stage, key, build, inputs=inputs)
