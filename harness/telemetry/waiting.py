"""How the threads of a trial wait for one another: by spinning, or asleep where other work holds cores.

A thread that spins while it waits keeps its core from the one that it waits for, as soon as there are more that want to
run than cores. Measured on 2 cores, steps of the embedded model a second (``bench/neighbours.py``), as libgomp has it,
with a spin of at most 10,000 rounds, of 3,000, and asleep at once; below, seconds in which 135 M weights sample:

    alone                  21.6    21.6    19.2    10.6
    beside one process      6.4     5.8     7.2    10.6
    135 M, alone            6.4     6.8     8.1

So a spin is no longer than it takes to lose nothing alone, and where others are at work when a trial starts there is
none. No number depends on it. OpenMP reads these variables when torch is imported: in the server that trials are forked
from, and in each process that computes by itself (``settle``).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from harness.telemetry import cores

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""The user's, where one of them is set."""
SHORT, ASLEEP = {"GOMP_SPINCOUNT": "10000"}, {"OMP_WAIT_POLICY": "passive"}
HELD = 0.5
"""Cores of others from which on they count."""
CALM = 2
"""Looks one after the other that find nobody, until threads spin again: another server costs seconds."""


class Waiting:
    """How threads wait at present."""

    def __init__(self, held: Callable[[], float | None] = cores.held_by_others):
        """Nobody has looked yet."""
        self._held = held
        self.asleep, self._calm = False, 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that computes; none where the user has set one."""
        if any(name in os.environ for name in NAMES):
            return {}
        return ASLEEP if self.asleep else SHORT

    def look(self, threads: int | None) -> float | None:
        """Look who is at work, and choose; cores that others hold where that matters, else None.

        Args:
            threads: of a trial; None: one for each core.
        """
        count = cores.cores()
        wanted = min(threads or count, count)
        if wanted < 2 or not self.environment:
            return None
        held = self._held()
        disturbed = held is not None and held >= HELD and held + wanted > count
        self._calm = 0 if disturbed else self._calm + 1
        self.asleep = disturbed or (self.asleep and self._calm < CALM)
        return held if disturbed else None

    def settle(self) -> None:
        """Look, and have it so in this process; before torch is imported, since nothing is read later."""
        self.look(None)
        os.environ.update(self.environment)


PRESENT = Waiting()
