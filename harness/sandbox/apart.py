"""Work of ours in a process of its own: what it holds is free with its end, and it ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from harness.base.errors import UserError
from harness.telemetry.waiting import PRESENT


class Killed(Exception):
    """The process ended without a word."""


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` gives, from a fresh process; all of it can be pickled.

    The process ends with this one, however that ends, and at once if this one is interrupted: a model that it holds on
    a GPU would be in the way of the next.

    Raises:
        Killed: it was killed, or ended by itself.
        Exception: what ``work`` raises.
    """
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_at_work, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        done, given = ours.recv()
    except (EOFError, ConnectionError):
        raise Killed from None
    finally:
        process.kill()  # it has nothing to add
        process.join()
        ours.close()
    if done:
        return given
    raise given


def on_parents_end(end: Callable[[], object]) -> None:
    """Have ``end`` called, in a thread, when the process that started this one is gone; nothing in one without any."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        end()

    threading.Thread(target=watch, name="watchdog", daemon=True).start()


def _at_work(channel: Connection, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The process."""
    on_parents_end(partial(os.kill, os.getpid(), signal.SIGKILL))
    PRESENT.settle()
    try:
        told = True, work(*arguments)
    except BaseException as error:
        if not isinstance(error, UserError):
            error.add_note(f"in its process:\n{traceback.format_exc()}")
        told = False, error
    try:
        channel.send(told)
    except Exception as error:  # what cannot be pickled is told in words
        channel.send((False, RuntimeError(f"{type(error).__name__}: {error}; of {told[1]!r}")))
