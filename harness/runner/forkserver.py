"""The server that trials are forked from: heavy modules imported once, no CUDA context.

Measured on 2 cores: a spawned child spends 10-11 s importing, a forked one is ready in 0.05 s.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.base.formatting import count
from harness.telemetry.cores import cores
from harness.telemetry.waiting import PRESENT

LOST = 255
"""Exit code of a process whose server was killed: multiprocessing knows no more of it, and it may live."""
GUARD = Path(__file__).with_name("guard.py")
_guard: subprocess.Popen[str] | None = None


def context() -> Any:
    """The forkserver context, with the preload module set."""
    # joblib's loky workers have replaced the start method; without this a child looks for a context it does not have.
    multiprocessing.set_start_method("forkserver", force=True)
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["harness.runner.preload"])
    return forkserver


def warm_up() -> None:
    """Start the server, whose imports take seconds, and come back at once."""
    from multiprocessing import forkserver

    context()
    _tell_guard()
    with _server_environment():
        forkserver.ensure_running()
    _tell_guard()


def settle(threads: int | None) -> str | None:
    """Before a trial: choose how its threads wait, by what others do now (``waiting``); what to say of it, if anything.

    The server that trials are forked from is another one where the choice is.
    """
    before = PRESENT.environment
    held = PRESENT.look(threads)
    if PRESENT.environment != before:
        stop()
    if held is None:
        return None
    return f"other work holds {held:.1f} of {count(cores(), 'core')}: threads wait asleep, and steps take longer"


def start(target: Callable[..., None], *args: Any, name: str) -> Any:
    """Fork a process that runs ``target(*args)``; returns the started ``Process``.

    A server that was killed is noticed when it is asked: then a new one is.
    """
    forkserver = context()
    for last in (False, False, True):
        process = forkserver.Process(target=target, args=args, name=name, daemon=False)
        try:
            with _server_environment(), _without_main(target):
                process.start()
            break
        except (EOFError, ConnectionError):
            if last:
                raise
            stop()  # a large process takes a moment to die, and until then is taken for a living one
    _tell_guard()
    return process


class Ended(Exception):
    """A process ended without an answer, with ``code``."""

    def __init__(self, code: int | None):
        """Keep the exit code."""
        super().__init__(f"its process ended with code {code}")
        self.code = code


def asked(target: Callable[..., None], *args: Any, name: str, tries: int = 1) -> Any:
    """What a process that runs ``target(sender, *args)`` sends; waits for it.

    Raises:
        Ended: none of ``tries`` processes sent anything; of the last one.
    """
    for _ in range(tries - 1):
        with suppress(Ended):
            return asked(target, *args, name=name)
    receiver, sender = context().Pipe(duplex=False)
    process = start(target, sender, *args, name=name)
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise Ended(process.exitcode) from None
    finally:
        receiver.close()
        process.join()


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
        _tell_guard()


def _tell_guard() -> None:
    """Let the guard (``guard.py``), started on first use, know the present server."""
    global _guard
    from multiprocessing import forkserver

    if _guard is None or _guard.poll() is not None:
        _guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        atexit.register(_dismiss, _guard)
    server: Any = forkserver._forkserver
    assert _guard.stdin is not None
    pid = server._forkserver_pid
    try:
        _guard.stdin.write("forget\n" if pid is None else f"watch {pid}\n")
        _guard.stdin.flush()
    except BrokenPipeError:
        return  # somebody killed it; the next start brings up another, and trials watch by themselves too


def _dismiss(guard: subprocess.Popen[str]) -> None:
    """Let a guard end with the process that it belongs to, which then leaves no open pipe."""
    assert guard.stdin is not None
    with suppress(BrokenPipeError):
        guard.stdin.close()
    guard.wait()


@contextmanager
def _without_main(target: Callable[..., None]) -> Any:
    """The main program is not imported by a child that needs nothing of it.

    A user's script may call the harness without ``if __name__ == "__main__"``, and would run once more in every child.
    """
    if target.__module__ == "__main__":
        yield
        return
    main: Any = sys.modules["__main__"]
    before = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    main.__spec__, main.__file__ = None, None
    try:
        yield
    finally:
        for name in ("__spec__", "__file__"):
            if name in before:
                setattr(main, name, before[name])
            else:
                delattr(main, name)


@contextmanager
def _server_environment() -> Any:
    """The variables that the server inherits, if this call is what starts it."""
    names = {
        "HARNESS_PRELOAD": "1",
        "HARNESS_RUNNER": str(os.getpid()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "BITSANDBYTES_NOWELCOME": "1",
        # Trials end by os._exit; the resource tracker cleans up after them and need not tell.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
        **PRESENT.environment,
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value for name, value in names.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
