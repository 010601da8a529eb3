"""A driver waits for all of its jobs, starts a lost one once more, and takes back what it has submitted."""

from __future__ import annotations

import pytest
from hydra.core.utils import JobReturn, JobStatus

from harness.base.errors import UserError
from harness.launchers.waiting import Ended, of_return, see_through


class Jobs:
    """A scheduler whose jobs end as they are told, one at each look."""

    def __init__(self, *rounds: list[Ended], breaks_at: int | None = None):
        self.rounds, self.breaks_at = list(rounds), breaks_at
        self.submitted: list[list[list[str]]] = []
        self.cancelled: list[int] = []
        self.looks = 0

    def submit(self, overrides, first):
        self.submitted.append([list(own) for own in overrides])
        self.ends = self.rounds.pop(0)
        return list(range(len(overrides)))

    def ended(self, jobs):
        self.looks += 1
        if self.looks == self.breaks_at:
            raise KeyboardInterrupt
        return {len(jobs) - 1: self.ends[jobs[-1]]}  # the last comes first

    def cancel(self, jobs):
        self.cancelled = list(jobs)


THREE = [["algo=dpo"], ["algo=ipo"], ["algo=kto"]]


def test_one_that_fails_does_not_keep_the_driver_from_the_others(capsys):
    jobs = Jobs([Ended(), Ended(why="outputs: is not shared"), Ended()])
    done = see_through(jobs, THREE)
    assert [r.status for r in done] == [JobStatus.COMPLETED] * 3 and [r.return_value for r in done] == [None] * 3
    assert jobs.submitted == [THREE]
    assert "error: algo=ipo: outputs: is not shared" in capsys.readouterr().err


def test_a_lost_job_is_started_once_more_and_no_other(capsys):
    lost = Ended(lost=True, why="its node is gone")
    jobs = Jobs([Ended(), lost, lost], [Ended(), lost])
    assert len(see_through(jobs, THREE)) == 3
    assert jobs.submitted == [THREE, THREE[1:]], "and a second loss ends it"
    said = capsys.readouterr().err
    assert said.count("started once more") == 2 and said.count("was lost (its node is gone)") == 3


def test_a_driver_that_is_interrupted_cancels_what_still_runs():
    jobs = Jobs([Ended(), Ended(), Ended()], breaks_at=2)
    with pytest.raises(KeyboardInterrupt):
        see_through(jobs, THREE)
    assert jobs.cancelled == [0, 1], "the third was over"


def test_what_a_job_raised_is_told_and_not_raised():
    broken = JobReturn(status=JobStatus.FAILED)
    broken.return_value = UserError("is not shared", key="outputs", value="x", fix="y")
    assert of_return(broken) == Ended(why="outputs=x: is not shared fix: y")
    broken.return_value = OSError("no space")
    assert of_return(broken) == Ended(why="OSError: no space")
    fine = JobReturn(status=JobStatus.COMPLETED)
    fine.return_value = None
    assert of_return(fine) == Ended()
