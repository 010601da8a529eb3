"""A trial of several processes: torch's elastic agent in the trial's process, and a rank in each child of it.

The agent trains nothing. It starts the ranks on this machine, and where one of them fails it ends the others; the first
failure is the trial's. No rank is started again: a trial continues from its checkpoint, as one of a single process
does. Torch is imported in the trial's own processes alone.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.world import World
from harness.runner import child
from harness.runner.whereabouts import answer_when_asked
from harness.store.journal import Journal, read
from harness.store.result import LOST_RANK
from harness.trial.job import Job

HERE = "127.0.0.1"
LOOK_S = 0.02
PATIENCE = timedelta(days=7)
"""For which a rank waits for others, which may build a stage; ``runner.timeout_s`` ends a trial that hangs."""


def main(job: Job) -> None:
    """Entry point of the agent. Exits 0 after a finished trial and 1 after a journalled error."""
    child.settle_in(job).close()  # the leader's rank goes on with it
    try:
        error = _lead(job)
    except BaseException as own:
        traceback.print_exc()
        error = child.describe(own)
    journal = Journal(Path(job.folder) / job.journal)
    if error is not None:
        journal.write("error", **error)
    child.leave(journal, 0 if error is None else 1)


def _lead(job: Job) -> dict[str, Any] | None:
    """Start the ranks and wait for their end; the error that ended them, if one did."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    began, deaths = time.time(), Deaths()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.world.size,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{HERE}:0",
        local_addr=HERE,
        max_restarts=0,
        start_method="fork",
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, rank)(job)
    except ChildFailedError as failed:
        reported, failure = failed.get_first_failure()
        return _told_by(job, began, deaths.first, (reported, failure.exitcode))
    finally:
        deaths.over.set()
    return None


def _told_by(job: Job, began: float, dead: tuple[int, int] | None, reported: tuple[int, int]) -> dict[str, Any]:
    """The error of the rank that failed first, which is the trial's; its neighbours only noticed.

    Args:
        job: the trial's.
        began: when its ranks were started.
        dead: process id and exit code of the first that ended badly, if that was seen.
        reported: rank and exit code of the one that the agent noticed first.
    """
    journals = [
        [e for e in read(Path(job.folder) / replace(job, world=World(k, job.world.size)).journal) if e.time >= began]
        for k in range(job.world.size)
    ]
    ranks = {e.data["pid"]: k for k, events in enumerate(journals) for e in events if e.kind == "rank"}
    first, code = (ranks[dead[0]], dead[1]) if dead is not None and dead[0] in ranks else reported
    who = f"rank {first} of {job.world.size}"
    said = next((e.data for e in reversed(journals[first]) if e.kind == "error"), None)
    if said is not None:
        return {**said, "message": f"{said['message']} (in {who})"}
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    return {"error": LOST_RANK, "message": f"{who} {how}", "oom": False, "user_error": False, "traceback": ""}


class Deaths:
    """Sees the children of this process end, before anybody waits for them: the agent does not tell which was first.

    Attributes:
        first: process id and exit code (minus a signal's number) of the first that ended badly.
        over: set it to look no longer.
    """

    def __init__(self) -> None:
        """Look from now on, until ``over`` is set."""
        self.first: tuple[int, int] | None = None
        self.over = threading.Event()
        threading.Thread(target=self._watch, name="deaths", daemon=True).start()

    def _watch(self) -> None:
        me = os.getpid()
        while self.first is None and not self.over.wait(LOOK_S):
            children = [p for task in Path(f"/proc/{me}/task").glob("*/children") for p in task.read_text().split()]
            ended = [code for pid in children if (code := _exit_code(int(pid)))]
            if ended:
                self.first = min(ended, key=lambda one: one[1])  # of two at once the one that was killed


def _exit_code(pid: int) -> tuple[int, int] | None:
    """Of a child that has ended badly; it can still be waited for."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if found is None or not found.si_status:
        return None
    return pid, found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def rank(job: Job) -> None:
    """One of the trial's processes, from its start to its end."""
    job = replace(job, world=World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
    journal = Journal(Path(job.folder) / job.journal)
    journal.write("rank", pid=os.getpid())
    child.watch_parent()
    answer_when_asked(job)
    if not child.told(job, journal, _meet):
        child.leave(journal, 1)
    journal.close()  # the agent waits for what this function returns


def _meet(job: Job) -> None:
    """Join the others."""
    import torch
    import torch.distributed as dist

    there = 0 if job.device == "cpu" else torch.cuda.device_count()  # asked of the driver: CUDA is not yet started
    if there:
        if there < job.world.size:
            words = f"needs a GPU for each process, and there are {there}"
            fix = f"parallel.processes={there}, or runner.device=cpu"
            raise UserError(words, key="parallel.processes", value=job.world.size, fix=fix)
        # Each sees its own alone: what the leader does by itself would else be spread over all of them.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(job.world.rank, os.environ.get("CUDA_VISIBLE_DEVICES"))
        torch.cuda.set_device(0)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if there else "gloo", timeout=PATIENCE)


def gpu_of(rank: int, mask: str | None) -> str:
    """The entry of CUDA_VISIBLE_DEVICES that is a rank's own."""
    return str(rank) if mask is None else mask.split(",")[rank].strip()
