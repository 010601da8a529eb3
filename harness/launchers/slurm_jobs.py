"""Trials as jobs of Slurm, by submitit: one job for each trial, one task for each job."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from harness.base.errors import UserError
from harness.base.replacing import replaced
from harness.launchers.waiting import Ended, of_return, see_through

LOOK_S = 2.0
ASK_S = 10.0
"""Between two questions to Slurm about its queue."""
UNKNOWN = "GONE"
OF_ITS_USERS_DOING = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "its time limit was over (hydra.launcher.timeout_min), and hydra.launcher.max_num_timeout too",
    "DEADLINE": "its deadline has passed",
}
"""States that say why a job left nothing: it is not started again."""
OVER = (
    *OF_ITS_USERS_DOING,
    UNKNOWN,
    "COMPLETED",
    "FAILED",
    "BOOT_FAIL",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
)
"""In which a job is not in the queue any more."""
GONE_S = 60.0
"""For which cancelled jobs are waited for: Slurm kills them after its KillWait (30 s)."""


class Slurm(SlurmLauncher):
    """The plugin's launcher, which waits for all jobs and cancels them when it is told to end."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One job for each trial.

        Raises:
            UserError: Slurm would not take them.
        """
        return see_through(_Jobs(super().launch), job_overrides, initial_job_idx)


class _Submitted:
    """Stands in for a job within the plugin's ``launch``, which would wait for one after the other."""

    def __init__(self, job: Any):
        self.job = job

    def results(self) -> list[Any]:
        return [self.job]


class _Jobs:
    """``waiting.Jobs`` of submitit."""

    def __init__(self, launch: Any):
        self._launch = launch
        self._asked = 0.0
        self._states: dict[str, list[str]] = {}

    def submit(self, overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        import submitit
        from submitit.core.utils import FailedJobError

        given = submitit.AutoExecutor.map_array

        def submitted(executor: Any, *arguments: Any) -> list[_Submitted]:
            return [_Submitted(job) for job in given(executor, *arguments)]

        try:
            with replaced(submitit.AutoExecutor, "map_array", submitted):
                return list(self._launch(overrides, first))
        except (FailedJobError, RuntimeError, OSError) as error:
            words = " ".join(str(error).split())
            fix = "see `sinfo`; partition, account and time limit are hydra.launcher.partition, .account, .timeout_min"
            raise UserError(f"Slurm took no job ({words})", key="hydra/launcher", value="slurm", fix=fix) from None

    def ended(self, jobs: Sequence[Any]) -> dict[int, Ended]:
        found = {place: self._result(job) for place, job in enumerate(jobs) if self._has_result(job)}
        if not found:
            self._ask(jobs)
            found = {place: end for place, job in enumerate(jobs) if (end := self._without_result(job)) is not None}
        if not found:
            time.sleep(LOOK_S)
        return found

    def cancel(self, jobs: Sequence[Any]) -> None:
        ids = [job.job_id for job in jobs]
        subprocess.run(["scancel", *ids], check=False, capture_output=True)
        until = time.monotonic() + GONE_S
        while time.monotonic() < until and any(s not in OVER for s in (states_of(ids) or {}).values()):
            time.sleep(0.5)

    def _ask(self, jobs: Sequence[Any]) -> None:
        """What Slurm says of them, every few seconds."""
        if time.monotonic() - self._asked < ASK_S:
            return
        self._asked = time.monotonic()
        known = states_of([job.job_id for job in jobs])
        if known is None:
            return  # no answer is no news
        for job in jobs:
            self._states.setdefault(job.job_id, []).append(known.get(job.job_id, UNKNOWN))

    def _over(self, job: Any) -> str | None:
        """The state in which it ended, said twice: its result may be a moment late; None while it is not over."""
        said = self._states.get(job.job_id, [])[-2:]
        return said[-1] if len(said) == 2 and all(state in OVER for state in said) else None

    def _without_result(self, job: Any) -> Ended | None:
        """How one ended that left nothing; None while it is not over."""
        state = self._over(job)
        if state is None or self._has_result(job):
            return None
        if state in OF_ITS_USERS_DOING:
            return Ended(why=f"job {job.job_id}: {OF_ITS_USERS_DOING[state]}")
        return Ended(lost=True, why=f"job {job.job_id}, {state}: {_last_words(job)}")

    @staticmethod
    def _has_result(job: Any) -> bool:
        return job.paths.result_pickle.exists()

    @staticmethod
    def _result(job: Any) -> Ended:
        try:
            return of_return(job.results()[0])
        except Exception as error:  # whatever a job raised, pickled by submitit with its trace
            return Ended(why=" ".join(str(error).split())[-300:])


def _last_words(job: Any) -> str:
    log = job.paths.stderr
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")


def states_of(ids: Sequence[str]) -> dict[str, str] | None:
    """The state of each of these jobs that Slurm still knows, ended ones for some minutes; None without an answer.

    Accounting (``sacct``) is not asked: many clusters have none.
    """
    arrays = ",".join(sorted({name.split("_")[0] for name in ids}))
    asked = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={arrays}", "--states=all"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode and "Invalid job id" not in told.stderr:
        return None
    lines = [line.split() for line in told.stdout.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in ids}
