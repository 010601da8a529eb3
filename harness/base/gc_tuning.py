"""The search for cycles, kept rare where nearly all that is made stays alive: imports, and tables of many runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

SELDOM = 50_000
"""Objects made between two searches of a command line's process; Python's own 700 made a fifth of a report's time."""


def seldom() -> None:
    """For the process of a command line, whose trials are processes of their own: search less often, from now on."""
    gc.set_threshold(SELDOM, 20, 20)


def over() -> None:
    """For a process that has done its work: the search that Python makes at the end has nothing to look at."""
    gc.freeze()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No search meanwhile: it took two thirds of the time of reading ten thousand runs, and a fifth of importing torch.

    MLflow makes a hundred objects a run, all of them alive, and the collector looks through them again and again.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
