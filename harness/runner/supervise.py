"""One process from its start to its end: sampled, its journal followed, ended when its time is over."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base.errors import Preempted
from harness.base.records import Event, Outcome
from harness.runner.display import Display
from harness.runner.forkserver import LOST
from harness.runner.rank_samplers import RankSamplers
from harness.runner.start import end, start
from harness.runner.whereabouts import who_is_late
from harness.store.journal import Journal, Tail
from harness.store.memory_metrics import OF_RANK, OfRank
from harness.store.result import decide
from harness.telemetry.sampler import MemorySampler, MemorySummary
from harness.trial.job import Job

POLL_S = 0.2


@dataclass(frozen=True)
class Attended:
    """What became of a process.

    Attributes:
        events: its own; of several processes, the leader's.
        summary: of its memory; of several processes, of all together.
        ranks: each of several processes, by its number.
        raised: what ended the watch early (Ctrl-C, or a fault of ours), to be raised again.
    """

    outcome: Outcome
    reason: str | None
    events: list[Event]
    summary: MemorySummary
    raised: BaseException | None = None
    ranks: Mapping[int, OfRank] = field(default_factory=dict)


def attend(
    job: Job,
    display: Display,
    *,
    name: str,
    tail: Tail,
    book: Journal | None,
    began: float,
    timeout_s: float | None,
    hz: float,
    levels: Any,
) -> Attended:
    """Run ``job`` in processes of its own (``start``) until they end.

    Args:
        job: what to run.
        display: shows its progress.
        name: of the process.
        tail: of its journal.
        book: takes memory samples and the time that starting took; None drops them.
        began: when it was decided to start, in seconds since the epoch; the time limit counts from here.
        timeout_s: after which it is ended.
        hz: memory samples per second.
        levels: GPU memory in use before (``inventory.device_levels``).
    """
    kills_before = _kernel_kills()
    process = start(job, name=name)
    watch = _Watch(book, tail, display, began)
    interrupted = timed_out = False
    late: str | None = None
    raised: BaseException | None = None

    def note(kind: str, row: Mapping[str, Any]) -> None:
        if book is not None:
            book.write(kind, **row)

    options = {"env": {**os.environ, **job.environment}, "hz": hz, "levels": levels}
    sampler = MemorySampler(process.pid, emit=lambda row: note("sample", row), **options)
    ranks = RankSamplers(job, lambda row: note(OF_RANK, row), began, **options)
    try:
        with sampler, ranks:
            while process.is_alive():
                process.join(POLL_S)
                ranks.look()
                watch.look(sampler, ranks.uuids)
                if timeout_s is not None and time.time() - began > timeout_s:
                    timed_out = True
                    late = who_is_late(job, began) if job.world.size > 1 else None
                    end(process)
    except Preempted as told:
        raised, interrupted = told, True
        watch.look(sampler, ranks.uuids)  # where it is by now
        if job.mode == "train" and job.world.size == 1 and watch.phase == "train":
            _keep(job, process, told.grace_s)
        end(process)
    except BaseException as error:  # Ctrl-C, SIGTERM, or a fault of ours: the books are closed all the same
        raised, interrupted = error, True
        end(process)
    watch.look(sampler, ranks.uuids)
    if process.is_alive() or process.exitcode == LOST:
        end(process)
    outcome, reason = decide(
        process.exitcode,
        watch.events,
        timed_out=timed_out,
        interrupted=interrupted,
        killed_for_memory=_kernel_kills() > kills_before,
    )
    if outcome is Outcome.TIMEOUT:
        reason = f"{reason}={timeout_s:g}, {watch.where}" + ("" if late is None else f": {late}")
    if isinstance(raised, Preempted) and outcome is Outcome.INTERRUPTED:
        reason = "its scheduler took the machine away"
    if raised is not None and not isinstance(raised, KeyboardInterrupt) and outcome is Outcome.INTERRUPTED:
        reason = f"the runner failed: {type(raised).__name__}: {raised}"
    return Attended(outcome, reason, watch.events, sampler.summary(), raised, ranks.seen())


def _keep(job: Job, process: Any, seconds: float) -> None:
    """Have the trial write a checkpoint, and wait for it as long as there is time."""
    try:
        job.wish.touch()
    except OSError:  # the disk is full: there is no room for a checkpoint either
        return
    until = time.monotonic() + seconds
    while process.is_alive() and job.wish.exists() and time.monotonic() < until:
        process.join(POLL_S)
    job.wish.unlink(missing_ok=True)


class _Watch:
    """Follows the worker's journal: phases to the sampler, progress to the display."""

    def __init__(self, book: Journal | None, tail: Tail, display: Display, decided_at: float):
        self.book, self.tail, self.display, self.decided_at = book, tail, display, decided_at
        self.events: list[Event] = []
        self.phase, self.what = "prepare", ""
        self.step: int | None = None
        self.total: int | None = None
        self.uuids: set[str] = set()
        self.told: set[str] = set()

    @property
    def where(self) -> str:
        """How far it got, in words."""
        step = "" if self.step is None or not self.total else f" at step {self.step} of {self.total}"
        return f"in phase {self.phase}{step}"

    def look(self, sampler: MemorySampler, uuids: Collection[str]) -> None:
        """Read on; ``uuids`` are GPUs that other processes of the trial named."""
        for event in self.tail.read():
            self.events.append(event)
            if event.kind == "start" and self.book is not None:
                self.book.write("metrics", values={"time/start_s": event.time - self.decided_at})
            elif event.kind == "phase":
                sampler.enter(event.data["name"], event.time)
                if event.data["name"] not in (None, "rollout", self.phase):
                    self.phase = event.data["name"]
                    self.step = self.total = None
                    self.what = ""
            elif event.kind == "device" and event.data.get("uuid"):
                self.uuids.add(event.data["uuid"])
            elif event.kind == "progress":
                self.step, self.total = event.data["step"], event.data["total"]
                self.what = event.data["what"] if event.data["what"] != self.phase else ""
            elif event.kind == "note" and "absent" not in event.data:
                self.display.say(f"{self.display.label} · note: {event.data['message']}")
        self.uuids.update(uuids)
        if self.uuids != self.told:
            self.told = set(self.uuids)
            sampler.use_gpu(*self.told)
        self.display.update(self.phase, self.step, self.total, sampler.latest_mb, self.what)


def _kernel_kills() -> int:
    """Out-of-memory kills that the kernel counts, for this control group where it can be read."""
    for path, key in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        try:
            for line in Path(path).read_text().splitlines():
                if line.split()[0] == key:
                    return int(line.split()[1])
        except (OSError, ValueError, IndexError):
            continue  # not this kernel's way of counting
    return 0
