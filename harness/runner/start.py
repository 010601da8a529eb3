"""How a trial's processes begin and end: the one place that knows how many there are and what starts them.

A trial is one child of the forkserver. That of several ranks trains nothing itself: it is the agent of its children
(``ranks``). Nobody else asks how many processes there are.
"""

from __future__ import annotations

from typing import Protocol

from harness.runner import forkserver
from harness.trial.job import Job


class Started(Protocol):
    """The processes of a trial, as the parent sees them.

    Attributes:
        pid: of the process at the root of all others, which leads their process group.
        exitcode: None while it runs; 0 where all ended well; ``forkserver.LOST`` where it cannot be known.
    """

    pid: int
    exitcode: int | None

    def is_alive(self) -> bool:
        """Whether any of them runs."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for their end."""


def start(job: Job, *, name: str) -> Started:
    """Begin a trial's processes."""
    if job.world.size > 1:
        from harness.runner.ranks import main
    else:
        from harness.runner.child import main

    return forkserver.start(main, job, name=name)


def end(processes: Started) -> None:
    """Kill all of them with their children, and wait for that."""
    forkserver.end_group(processes)
