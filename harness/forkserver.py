"""The server that trials are forked from: heavy modules imported once, no CUDA context.

Measured on 2 cores: a spawned child spends 10-11 s importing, a forked one is ready in 0.05 s.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any


def context() -> Any:
    """The forkserver context, with the preload module set."""
    # joblib's loky workers have replaced the start method; without this a child looks for a context it does not have.
    multiprocessing.set_start_method("forkserver", force=True)
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["harness.preload"])
    return forkserver


def warm_up() -> None:
    """Start the server, whose imports take seconds, and come back at once."""
    from multiprocessing import forkserver

    context()
    with _server_environment():
        forkserver.ensure_running()


def start(target: Callable[..., None], *args: Any, name: str) -> Any:
    """Fork a process that runs ``target(*args)``; returns the started ``Process``."""
    forkserver = context()
    process = forkserver.Process(target=target, args=args, name=name, daemon=False)
    with _server_environment():
        process.start()
    return process


def end_group(process: Any, *, grace_s: float = 0.0) -> None:
    """Kill a trial's process and its children, and wait for it."""
    for sig in (signal.SIGTERM, signal.SIGKILL) if grace_s else (signal.SIGKILL,):
        try:
            os.killpg(process.pid, sig)
        except (ProcessLookupError, PermissionError):
            # Not its own group leader yet (it is still starting), or gone already.
            if process.is_alive():
                process.kill()
        process.join(grace_s if sig == signal.SIGTERM else 5.0)
        if not process.is_alive():
            return


def stop() -> None:
    """End the server; the next start brings up a new one."""
    from multiprocessing import forkserver

    # multiprocessing offers no public way; it calls this itself in its own tests.
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)  # in the middle of its imports it would hear nothing else
        server._stop()


@contextmanager
def _server_environment() -> Any:
    """The variables that the server inherits, if this call is what starts it."""
    names = {
        "HARNESS_PRELOAD": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "BITSANDBYTES_NOWELCOME": "1",
        # Trials end by os._exit; the resource tracker cleans up after them and need not tell.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value for name, value in names.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
