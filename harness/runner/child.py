"""The hygiene of a trial's process, around ``worker.run``: logs, watchdog, limits, and errors as events."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from harness.base.errors import Diverged, Stopped, UserError, is_out_of_memory
from harness.config.theirs import blamed
from harness.sandbox.apart import on_parents_end
from harness.store.journal import Journal
from harness.trial.heap import hold_freed_memory
from harness.trial.job import Job


def main(job: Job) -> None:
    """Entry point of the process. Exits 0 after a finished trial and 1 after a journalled error."""
    journal = settle_in(job)
    leave(journal, 0 if told(job, journal) else 1)


def settle_in(job: Job) -> Journal:
    """Make the process one that the runner can end with all its children, and that ends with the runner."""
    folder = Path(job.folder)
    journal = Journal(folder / job.journal)
    journal.write("start", pid=os.getpid())
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to handle
    leave_signals_to_the_runner()
    watch_parent()
    _redirect_output(folder / "worker.log")
    os.environ.update(job.environment)
    return journal


def leave_signals_to_the_runner() -> None:
    """In a job of Slurm, which warns every process of it at once: the runner closes the books, and ends this one."""
    if "SLURM_JOB_ID" in os.environ:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def told(job: Job, journal: Journal, before: Callable[[Job], None] = lambda _: None) -> bool:
    """Run what the process is there for; False after an error, which is journalled. ``before`` comes last before it."""
    try:
        _limit_memory(job.memory_limit_mb)
        hold_freed_memory()
        _check_preload(journal)
        _set_threads(job.threads)
        before(job)
        tell_story(job, journal)
    except BaseException as error:
        traceback.print_exc()
        journal.write("error", **describe(error, job.plain))
        return False
    return True


def leave(journal: Journal, code: int) -> NoReturn:
    """End the process: atexit hooks of the libraries have nothing to add, and some hang."""
    journal.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tell_story(job: Job, journal: Journal) -> None:
    """What the process is there for: the trial, or the heaviest of its steps. Imports torch."""
    if job.mode == "preflight":
        from harness.rehearsal import heaviest

        heaviest.run(job, journal)
    else:
        from harness.trial import worker

        worker.run(job, journal)


def describe(error: BaseException, plain: Mapping[str, Any] | None = None) -> dict[str, object]:
    """An exception as an event: its class, one line, and whether memory ran out.

    Of one that a user's own class raised (of the configuration ``plain``) the line says which class, and where.
    """
    text = str(error).strip()
    said = isinstance(error, UserError | Diverged | Stopped) or is_out_of_memory(error)  # in words of its own
    theirs = None if said else blamed(error, plain or {})
    if theirs is not None:
        text = str(theirs)
    if theirs is not None or isinstance(error, UserError):  # what to do about it is part of it
        first = "; ".join(line.strip() for line in text.splitlines())
    else:
        first = text.splitlines()[0] if text else ""
    return {
        "error": type(error).__name__,
        "message": first[:900],
        "oom": is_out_of_memory(error),
        "user_error": isinstance(error, UserError),
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }


def watch_parent() -> None:
    """End this process group when the runner is gone: a second net below ``guard.py``, which may be killed itself.

    PR_SET_PDEATHSIG would watch the forkserver, which outlives the runner for as long as this process lives.
    """
    on_parents_end(partial(os.killpg, 0, signal.SIGKILL))


def _redirect_output(log: Path) -> None:
    """Everything that libraries print goes to ``worker.log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    print(f"--- attempt at {time.strftime('%Y-%m-%d %H:%M:%S')}, pid {os.getpid()}")
    warnings.simplefilter("default")


def _limit_memory(limit_mb: int | None) -> None:
    """Cap the address space at its present size plus the limit, so that a trial fails and not the machine."""
    if limit_mb is None:
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + limit_mb * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _check_preload(journal: Journal) -> None:
    """A failing preload import is swallowed by multiprocessing: say it, and import now."""
    from harness.runner import preload

    absent = preload.missing() if os.environ.get("HARNESS_PRELOAD") == "1" else []
    if absent:
        journal.write("note", message=f"not preloaded, imported now: {', '.join(absent)}")
    if not preload.cuda_is_clean():
        raise RuntimeError(
            "CUDA was asked in the forkserver (by what preload.py imports); its children cannot use the GPU"
        )


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    import torch

    torch.set_num_threads(min(threads, os.cpu_count() or threads))  # beyond its cores torch waits for itself
