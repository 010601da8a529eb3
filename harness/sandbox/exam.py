"""Programs against tests: each program in a sandbox of its own, each verdict by a process that it cannot reach."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from harness.base.recent import Recent
from harness.sandbox import jail
from harness.sandbox.inside import wire

STARTS_S = 30.0
"""Until both sandboxes are there, at most; no part of a program's time."""


@dataclass(frozen=True)
class Paper:
    """What a program is asked.

    Attributes:
        program: source text.
        tests: source text: assertions, or a function ``check(candidate)``.
        entry_point: the function that ``check`` is given.
    """

    program: str
    tests: str
    entry_point: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether all tests held, in words why not, whether that was for time, and whether it would be so again."""

    passed: bool
    why: str = ""
    expired: bool = False
    certain: bool = True


@dataclass(frozen=True)
class Hall:
    """Where programs are examined, several at once.

    Attributes:
        kind: of sandbox.
        seconds: that a program may take, tests included.
        memory_mb: that it may hold.
        workers: programs at once; 0: as many as there are cores.
    """

    kind: jail.Kind = "bubblewrap"
    seconds: float = 5.0
    memory_mb: int = 512
    workers: int = 0

    def examine(self, papers: Sequence[Paper]) -> list[Verdict]:
        """A verdict for each, in order; a paper that comes again, here or in the next call, is examined once."""
        distinct = list(dict.fromkeys(papers))
        if len(distinct) < 2:
            found = [_examined(self, paper) for paper in distinct]
        else:
            with ThreadPoolExecutor(self.workers or os.cpu_count() or 1) as pool:
                found = list(pool.map(partial(_examined, self), distinct))
        verdicts = dict(zip(distinct, found, strict=True))
        return [verdicts[paper] for paper in papers]

    def one(self, paper: Paper) -> Verdict:
        """Start a candidate and its examiner, wait for the verdict, and end both."""
        to_candidate, to_examiner = os.pipe(), os.pipe()
        verdict = os.pipe()
        limits = [int(self.seconds) + 1, self.memory_mb]
        open_now = [*to_candidate, *to_examiner, *verdict]
        running: list[subprocess.Popen[bytes]] = []
        try:
            ends = [to_candidate[0], to_examiner[1]]
            running.append(jail.started("candidate.py", [*ends, *limits], kind=self.kind, handed=ends))
            ends = [to_examiner[0], to_candidate[1], verdict[1]]
            examiner = jail.started("examiner.py", [*ends, *limits], kind=self.kind, handed=ends, stdin=subprocess.PIPE)
            running.append(examiner)
            for handle in (to_candidate[0], *to_examiner, verdict[1]):
                os.close(handle)
                open_now.remove(handle)
            return self._awaited(paper, examiner, to_candidate[1], verdict[0])
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started, where nothing else ends it
            for process in running:
                if process.stdin is not None:
                    process.stdin.close()
                process.wait()
            for handle in open_now:
                os.close(handle)

    def _awaited(self, paper: Paper, examiner: subprocess.Popen[bytes], asks: int, verdict: int) -> Verdict:
        """Hand the papers out; what the examiner says, or that time is up."""
        assert examiner.stdin is not None
        try:
            with os.fdopen(os.dup(asks), "wb") as pipe:
                wire.send(pipe, {"program": paper.program})
            wire.send(examiner.stdin, {"tests": paper.tests, "entry_point": paper.entry_point})
            with os.fdopen(os.dup(verdict), "rb", buffering=0) as told:
                for limit in (STARTS_S, self.seconds):
                    ready, _, _ = select.select([told], [], [], limit)
                    if not ready:
                        return Verdict(
                            False, f"it took more than {limit:g} s", expired=limit == self.seconds, certain=False
                        )
                    found = wire.receive(told)
        except (OSError, EOFError, ValueError):
            return Verdict(False, "its examiner gave no verdict", certain=False)
        return Verdict(found["passed"] is True, str(found["why"]))


_kept: Recent[tuple[Hall, Paper], Verdict] = Recent(8192, lambda verdict: verdict.certain)


def _examined(hall: Hall, paper: Paper) -> Verdict:
    """What a reward, the true reward and evaluators ask of one sample; what a busy machine decided is not kept."""
    return _kept.once((hall, paper), lambda: hall.one(paper))


def _in_keys() -> object:
    """Never called: names to ``config.closure`` what runs by its path, so that its code counts in keys."""
    from harness.sandbox.inside import candidate, examiner

    return candidate, examiner
