"""A trial that runs in another process than its sweep's driver, or on another machine: where it is, what it shares.

Paths are meant against the folder that the sweep was started from. Outputs must be shared; the cache, and locks on
files, should be: what is found missing is told at the end of the sweep.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from harness.base.errors import Preempted, UserError
from harness.store.result import write_json

PROBE = ".probe"
HOSTS = ".hosts"
TO_CLOSE_S = 15.0
KILL_WAIT_S = 30.0
"""Between Slurm's SIGTERM and its SIGKILL, by default."""
FROM = "HARNESS_STARTED_FROM"
"""Environment variable of a job: the folder that the sweep was started from, against which paths are meant."""


@contextmanager
def probes(folder: Path, cache: Path) -> Iterator[None]:
    """Leave in the sweep's folder and in the cache what its jobs look for, and hold a lock that they must not get."""
    from filelock import FileLock, Timeout

    token = uuid.uuid4().hex[:12]
    mark = cache / f"{PROBE}-{token}"
    cache.mkdir(parents=True, exist_ok=True)
    mark.write_text(socket.gethostname())
    held = FileLock(folder / f"{PROBE}.lock")
    with suppress(Timeout):  # another driver of this sweep has it
        held.acquire(timeout=0)
    for told in (folder / HOSTS).glob("*.json"):
        told.unlink()
    write_json(folder / PROBE, {"token": token, "host": socket.gethostname(), "cache": str(cache)})
    try:
        yield
    finally:
        held.release()
        mark.unlink(missing_ok=True)


def arrive(config: Any) -> None:
    """Go to the folder that a sweep was started from, on whichever machine this is.

    Raises:
        UserError: it, or the sweep's folder, is not there.
    """
    here, start = socket.gethostname(), os.environ.get(FROM)
    if start is not None:
        if not Path(start).is_dir():
            rule = f"is not there on {here}: jobs need the folder that the sweep was started from"
            raise UserError(rule, key="the working directory", value=start, fix="start it from a shared file system")
        os.chdir(start)
    folder = Path(str(config.outputs)) / str(config.sweep)
    if not (folder / "sweep.json").is_file():
        rule = f"is not shared with {here}, which runs a trial of it"
        raise UserError(rule, key="outputs", value=str(folder), fix="outputs=/a/folder/that/all/machines/see")
    _heed_scheduler()


def quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("'", "\\'") + "'"


@contextmanager
def given_back() -> Iterator[None]:
    """Around a job: one whose machine is taken away goes back into its scheduler's queue, once all is closed."""
    try:
        yield
    except Preempted as told:
        told.then()
        raise


def _grace_s() -> float:
    """Seconds between a scheduler's warning and the end, less some to close the books in."""
    from hydra.core.hydra_config import HydraConfig

    launcher = HydraConfig.get().launcher if HydraConfig.initialized() else {}
    return max(0.0, float(launcher.get("signal_delay_s", 0)) - TO_CLOSE_S)


def _heed_scheduler() -> None:
    """What ends a job closes the trial's books, and comes to nothing a second time."""
    if threading.current_thread() is not threading.main_thread():
        return
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: puts the job back into the queue, and leaves

    def once(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        if number == signal.SIGUSR2 and callable(requeue):
            raise Preempted(_grace_s(), partial(requeue, number, frame))
        if "SLURM_JOB_ID" in os.environ:  # preempted or cancelled: killed half a minute later
            raise Preempted(KILL_WAIT_S - TO_CLOSE_S, lambda: None)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, once)
    if callable(requeue):
        signal.signal(signal.SIGUSR2, once)


def look_around(folder: Path, cache: Path) -> None:
    """Leave word in the sweep's folder of what this machine does not share with its driver."""
    from filelock import FileLock, Timeout

    try:
        probe = json.loads((folder / PROBE).read_text())
    except (OSError, ValueError):
        return  # a sweep that leaves none
    here, lacks = socket.gethostname(), []
    if here == probe["host"]:
        return
    if not (cache / f"{PROBE}-{probe['token']}").is_file():
        lacks.append(f"does not share the cache ({cache}): it builds for itself what other machines have built")
    try:
        with FileLock(folder / f"{PROBE}.lock", timeout=0):
            lacks.append("does not see locks on files of other machines: of two sweeps with one name both would train")
    except Timeout:
        pass  # as it should be
    except OSError as error:
        lacks.append(f"cannot lock files in {folder} ({error.strerror}): of two sweeps with one name both would train")
    write_json(folder / HOSTS / f"{here}.json", {"lacks": lacks})


def what_hosts_lack(folder: Path) -> list[str]:
    """A line for each thing that a machine did not share."""
    found = []
    for path in sorted((folder / HOSTS).glob("*.json")):
        found += [f"{path.stem} {lack}" for lack in json.loads(path.read_text())["lacks"]]
    return found
