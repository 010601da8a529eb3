"""Standard output and error of a command line, whoever reads them: a reader that goes away ends no training.

``harness … | head -1`` closes the pipe after a line. What was to be shown is lost then, and nothing else: trials are on
disk, and the exit code still says how the command ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from harness.base.errors import without_password


class Lossy:
    """A text stream that drops what cannot be written, and shows no password that is in use.

    Args:
        stream: the real one; None where the command was started without it.
    """

    def __init__(self, stream: TextIO | None):
        """Write to ``stream`` for as long as it takes anything."""
        self._stream = stream

    def write(self, text: str) -> int:
        """All of it is taken, whether it can be shown or not."""
        self._try("write", without_password(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As ``write``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As far as that goes."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether a person looks on."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real stream's."""
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _try(self, what: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, what)(*arguments)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._try(what, *(a.encode(encoding, "backslashreplace").decode(encoding) for a in arguments))
        except (OSError, ValueError):  # a closed pipe, a terminal that hung up, a full disk; or the stream is closed
            self._give_up()

    def _give_up(self) -> None:
        """Let the descriptor lead nowhere, so that what is left in buffers does no harm at the end of the process."""
        stream, self._stream = self._stream, None
        try:
            number = stream.fileno() if stream is not None else -1
        except (OSError, ValueError):
            return  # of no descriptor: there is nothing that a later flush could fail at
        silence(number)


def silence(*numbers: int) -> None:
    """Let descriptors lead nowhere: what is printed there is dropped, by whichever stream a library got hold of."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(sink, number)
    os.close(sink)


@contextmanager
def quiet(*numbers: int) -> Iterator[None]:
    """What is written to these file descriptors meanwhile is dropped, by libraries in C too."""
    _flush()
    saved = [os.dup(number) for number in numbers]
    try:
        silence(*numbers)
        yield
    finally:
        _flush()
        for number, copy in zip(numbers, saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # nobody listens, or it is closed
                stream.flush()


@contextmanager
def unbreakable() -> Iterator[None]:
    """Standard output and error for a while as ``Lossy`` streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Lossy(before[0]), Lossy(before[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def occupy_closed() -> None:
    """Descriptors 0 to 2 lead somewhere: a file that is opened next would take a free one, and get what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
