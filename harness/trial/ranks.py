"""What several processes of one trial do otherwise than one: one of them builds what all of them read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.replacing import replaced
from harness.base.world import World, leader_first
from harness.store.cache import Cache, Entry

KNOWN_BY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
"""Variables by which libraries know that there are several processes."""

OF_TRAINER = ("reference",)
"""Stages that are computed with the trial's own trainer, and train nothing."""


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

        def by_itself(folder: Path) -> Mapping[str, Any] | None:
            with nullcontext() if stage in OF_TRAINER else alone(self.world):
                return build(folder)

        with leader_first(self.world):
            return super().fetch(stage, key, by_itself, inputs=inputs)


@contextmanager
def alone(world: World) -> Iterator[None]:
    """Within it new trainers take this process for the only one: what the leader trains for all, it trains alone."""
    if world.size == 1:
        yield
        return
    from accelerate.state import AcceleratorState, GradientState, PartialState

    hidden = {name: os.environ.pop(name) for name in KNOWN_BY if name in os.environ}
    try:
        with ExitStack() as stack:
            for state in (AcceleratorState, GradientState, PartialState):  # what has one already keeps it
                stack.enter_context(replaced(state, "_shared_state", {}))
            yield
    finally:
        os.environ.update(hidden)
