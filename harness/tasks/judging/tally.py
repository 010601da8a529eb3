"""How many texts have been judged under a limit of time, and how many took longer: a share that a trial reports."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_judged = [0, 0]


def count(expired: bool) -> None:
    """One text was judged; ``expired``: its time was up, and it counts as one that does not pass."""
    with _lock:
        _judged[0] += 1
        _judged[1] += expired


def take() -> tuple[int, int]:
    """How many texts were judged since the last call, and how many of them for too long."""
    with _lock:
        taken = _judged[0], _judged[1]
        _judged[:] = [0, 0]
    return taken
