"""Where the processes of a trial are when its time is over: which of them the others wait for."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.base.world import World
from harness.store.journal import read
from harness.trial.job import Job

SIGNAL = signal.SIGUSR1
ANSWER_S = 2.0
WAITING = ("torch/distributed/", "torch/autograd/graph.py", "torch/nn/parallel/distributed.py")
"""Files in which a process is that waits for another one, innermost first: a collective, or a gradient's average."""
FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


def answer_when_asked(job: Job) -> None:
    """Write this process's stack beside its journal whenever it gets ``SIGNAL``, whatever the interpreter is at."""
    faulthandler.register(SIGNAL, file=_stack(job).open("w"), all_threads=False)


def who_is_late(job: Job, began: float) -> str | None:
    """The processes that do not answer, or are elsewhere than where one waits for others; None where that is none.

    Args:
        job: the trial's.
        began: when its processes were started; ids of earlier ones may be a stranger's by now.
    """
    ranks = {rank: replace(job, world=World(rank, job.world.size)) for rank in range(job.world.size)}
    pids = {rank: pid for rank, theirs in ranks.items() if (pid := _pid(theirs, began)) is not None}
    for rank, pid in pids.items():
        _stack(ranks[rank]).write_text("")
        try:
            os.kill(pid, SIGNAL)
        except ProcessLookupError:
            continue  # it is the one that does not answer
    end, places = time.monotonic() + ANSWER_S, {}
    while time.monotonic() < end and len(places) < len(ranks):
        time.sleep(0.05)
        places = {rank: place for rank, theirs in ranks.items() if (place := _place(_stack(theirs))) is not None}
    return _told(places, job.world.size)


def _told(places: Mapping[int, str], size: int) -> str | None:
    silent = [rank for rank in range(size) if rank not in places]
    if silent:
        return f"{_named(silent, size)} {'does' if len(silent) == 1 else 'do'} not answer"
    busy = [rank for rank, place in places.items() if place]
    if not busy or len(busy) == size:
        return None
    return f"{_named(busy, size)} {'is' if len(busy) == 1 else 'are'} at {places[busy[0]]}, and the others wait"


def _named(ranks: list[int], size: int) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {size}"


def _place(stack: Path) -> str | None:
    """The innermost frame of a stack, empty where it waits for another process; None where there is no stack."""
    frames = FRAME.findall(stack.read_text()) if stack.exists() else []
    if not frames:
        return None
    file, line, function = frames[0]
    return "" if any(part in file for part in WAITING) else f"{Path(file).name}:{line} ({function})"


def _pid(job: Job, began: float) -> int | None:
    events = read(Path(job.folder) / job.journal)
    said = [e.data["pid"] for e in events if e.kind == "rank" and e.time >= began]
    return said[-1] if said else None


def _stack(job: Job) -> Path:
    return Path(job.folder) / f"stack.{job.world.rank}.txt"
