"""Every durable operation of a runner and its projection, counted, and a fault before the n-th of them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from harness.runner import books
from harness.store import journal, result

WRITES = ("create_run", "log_batch", "log_inputs", "log_metric", "log_dict", "log_artifact", "set_tag", "delete_run",
          "update_run", "set_terminated")  # fmt: skip
KINDS = ("kill", "torn", "full", "lost")
"""Killed before it; killed when half is written; no room from it on; done, but the answer never arrives."""


@dataclass
class Fault:
    """A fault at one operation; with ``at`` 0 operations are only counted.

    Attributes:
        done: names of the operations so far.
    """

    kind: str = "kill"
    at: int = 0
    done: list[str] = field(default_factory=list)

    def before(self, name: str) -> bool:
        """Count an operation; whether the fault is to happen at it."""
        self.done.append(name)
        here = len(self.done) == self.at
        if self.kind == "full" and self.at and len(self.done) >= self.at:
            return True
        if here and self.kind == "kill":
            die()
        return here and self.kind in ("torn", "lost")

    def installed(self) -> Any:
        """A context in which the operations of this process pass through here."""
        from contextlib import ExitStack

        from mlflow.tracking import MlflowClient

        stack = ExitStack()
        append, replace = journal.Journal._append, result.replace_text

        def journalled(book: Any, line: bytes) -> None:
            if self.before(f"journal {book.path.name}"):
                append(book, line[: len(line) // 2])
                self._end_of_file_write()
            append(book, line)

        def replaced(path: Any, text: str) -> None:
            if self.before(f"file {path.name}"):
                path.with_name(f".{path.name}.{os.getpid()}").write_text(text[: len(text) // 2])
                self._end_of_file_write()
            replace(path, text)

        def asked(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if self.before(f"store {name}"):
                    if self.kind == "full":
                        raise RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: ...]")
                    method(*arguments, **options)
                    die() if self.kind == "torn" else _lose()
                return method(*arguments, **options)

            return call

        stack.enter_context(patch.object(journal.Journal, "_append", journalled))
        for module in (result, books):
            stack.enter_context(patch.object(module, "replace_text", replaced))
        for name in WRITES:
            stack.enter_context(patch.object(MlflowClient, name, asked(name, getattr(MlflowClient, name))))
        return stack

    def _end_of_file_write(self) -> None:
        if self.kind == "torn":
            die()
        raise OSError(errno.ENOSPC if self.kind == "full" else errno.EIO, os.strerror(errno.ENOSPC))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _lose() -> None:
    raise ConnectionError("the answer got lost")
