"""Append to and read the journals of a trial: one JSON object per line, flushed, never rewritten.

A torn last line (a writer was killed) is ignored by readers; a writer that reopens starts a new line.
NaN and infinity are recorded as text, since JSON has no word for them.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.records import Event


class Journal:
    """The one writer of a journal file. Safe to call from several threads of its process."""

    def __init__(self, path: Path):
        """Open for appending; a torn last line is ended first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        torn = path.exists() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
        self._file = path.open("ab", buffering=0)
        if torn:
            self._file.write(b"\n")

    def write(self, kind: str, /, **data: Any) -> Event:
        """Append one event and hand it to the operating system before returning."""
        event = Event(time=time.time(), kind=kind, data=data)
        line = json.dumps({"time": round(event.time, 4), "kind": kind, **_plain(data)}, ensure_ascii=False)
        with self._lock:
            if not self._file.closed:
                self._file.write(line.encode() + b"\n")
        return event

    def close(self) -> None:
        """Flush to disk and close."""
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()


class Tail:
    """Reads the events that were appended since the last call; keeps a torn last line for the next."""

    def __init__(self, path: Path, offset: int = 0):
        """Start at byte ``offset``."""
        self.path, self.offset = path, offset

    def read(self) -> list[Event]:
        """All complete new lines, as events."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        end = chunk.rfind(b"\n") + 1
        self.offset += end
        return list(_events(chunk[:end]))


def read(path: Path) -> list[Event]:
    """Every complete event of a journal, in order; an absent file is an empty journal."""
    return Tail(path).read()


def latest_attempt(events: Sequence[Event]) -> list[Event]:
    """The events of the newest attempt, with those of earlier ones that it continues.

    An ``attempt`` event opens an attempt; ``continues=True`` says that it builds on the one before (it resumed
    from a checkpoint, or only evaluates).
    """
    start = 0
    for index in range(len(events) - 1, -1, -1):
        if events[index].kind == "attempt" and not events[index].data.get("continues"):
            start = index
            break
    return list(events[start:])


def number(value: Any) -> float | None:
    """A recorded number; texts such as ``"nan"`` and ``"inf"`` and anything else are None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _events(chunk: bytes) -> Iterator[Event]:
    for line in chunk.split(b"\n"):
        try:
            record = json.loads(line)
            yield Event(time=record.pop("time"), kind=record.pop("kind"), data=record)
        except (ValueError, KeyError, AttributeError):
            continue  # a torn line: its writer was killed in the middle of it


def _plain(value: Any) -> Any:
    """JSON without surprises: non-finite floats become text, paths and numpy scalars plain values."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
