"""How many cores other work holds now: read from ``/proc``, so on Linux alone."""

from __future__ import annotations

import os
import time

from harness.telemetry.host import process_tree

LOOKED_S = 0.2
IDLE, IO, STEAL = 3, 4, 7
"""Columns of the first line of ``/proc/stat``; stolen time is another virtual machine's."""


def held_by_others(seconds: float = LOOKED_S) -> float | None:
    """Cores that were busy for somebody else, on average over ``seconds``; None where nothing tells.

    What this process and its children do is not counted.
    """
    before = _now()
    if before is None:
        return None
    time.sleep(seconds)
    after = _now()
    if after is None:
        return None
    (busy, total, own), (busy_then, total_then, own_then) = after, before
    passed = (total - total_then) / cores()
    if passed <= 0:
        return None
    return max(0.0, (busy - busy_then - max(0, own - own_then)) / passed)


def cores() -> int:
    """Of the machine, whichever of them this process may use."""
    return os.cpu_count() or 1


def _now() -> tuple[int, int, int] | None:
    """Ticks that all cores were busy, that have passed on all of them, and that this process tree has taken."""
    try:
        with open("/proc/stat") as file:
            columns = [int(value) for value in file.readline().split()[1 : 2 + STEAL]]
    except (OSError, ValueError):
        return None
    total = sum(columns)
    return total - columns[IDLE] - columns[IO], total, sum(map(_ticks, process_tree(os.getpid())))


def _ticks(pid: int) -> int:
    """User and system time of a process; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
