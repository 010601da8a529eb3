"""What a driver does while its trials run elsewhere: wait for all, start a lost one again, cancel when it must end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from hydra.core.utils import JobReturn, JobStatus

from harness.base.errors import UserError
from harness.base.formatting import count
from harness.runner.display import say

Handle = TypeVar("Handle")

CHANCES = 2
"""Times that a trial's job is started whose machine or runner was lost: the second goes on where the first was."""


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        lost: it was none of the trial's doing: its machine, its runner, or its scheduler ended it.
        why: in one line; None where it ran to its end.
    """

    lost: bool = False
    why: str | None = None


class Jobs(Protocol, Generic[Handle]):
    """Jobs of a scheduler."""

    def submit(self, overrides: Sequence[Sequence[str]], first: int) -> list[Handle]:
        """Start a job for each trial; ``first`` is the number of the first."""
        ...

    def ended(self, jobs: Sequence[Handle]) -> dict[int, Ended]:
        """Those that are over by now, by their place in ``jobs``; blocks for a second or so where none is."""
        ...

    def cancel(self, jobs: Sequence[Handle]) -> None:
        """End them, and wait until they are gone."""
        ...


def see_through(jobs: Jobs[Any], overrides: Sequence[Sequence[str]], first: int = 0) -> list[JobReturn]:
    """Run a job for each trial to its end, whatever becomes of one of them.

    Outcomes are in the trials' folders; a job returns nothing. One that was lost is started once more.

    Raises:
        KeyboardInterrupt: as it came, once all jobs are cancelled.
    """
    todo = list(enumerate(overrides, first))
    for chance in range(1, CHANCES + 1):
        lost = _round(jobs, [list(own) for _, own in todo], todo[0][0])
        if not lost:
            break
        for place, why in lost.items():
            again = "; it is started once more" if chance < CHANCES else ""
            say(f"warning: the job of {' '.join(todo[place][1])} was lost ({why}){again}")
        todo = [todo[place] for place in sorted(lost)]
    return [_returned(own, number) for number, own in enumerate(overrides, first)]


def _round(jobs: Jobs[Any], overrides: Sequence[Sequence[str]], first: int) -> dict[int, str]:
    """Start them and wait for all; those that were lost, by their place, with why."""
    handles = jobs.submit(overrides, first)
    waiting = dict(enumerate(handles))
    lost: dict[int, str] = {}
    try:
        while waiting:
            places = list(waiting)
            for found, end in jobs.ended([waiting[place] for place in places]).items():
                place = places[found]
                del waiting[place]
                if end.lost:
                    lost[place] = end.why or "it left nothing"
                elif end.why is not None:
                    say(f"error: {' '.join(overrides[place])}: {end.why}")
    except BaseException:
        if waiting:
            say(f"ending {count(len(waiting), 'job')} ...")
            jobs.cancel(list(waiting.values()))
        raise
    return lost


def _returned(overrides: Sequence[str], number: int) -> JobReturn:
    done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    done.return_value = None
    return done


def of_return(returned: JobReturn) -> Ended:
    """How a job ended that Hydra saw through."""
    if returned.status is not JobStatus.FAILED:
        return Ended()
    error = returned._return_value  # asked by its public name, Hydra would print it, and raise
    words = " ".join(str(error).split())
    return Ended(why=words if isinstance(error, UserError) else f"{type(error).__name__}: {words}")
