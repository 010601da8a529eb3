"""Append to and read the journals of a trial: one JSON object per line, flushed, never rewritten.

A torn last line (a writer was killed) is ignored by readers; a writer that reopens starts a new line.
NaN and infinity are recorded as text, since JSON has no word for them; half of a surrogate pair as its visible code,
since UTF-8 has none. A line that is no event is passed over and counted: a damaged line costs itself alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import without_login
from harness.base.records import Event

DEEPEST = 60
"""Containers within containers that an event may hold; JSON's reader gives up at about a thousand."""
LATEST = 1e11
"""Seconds since the epoch beyond which a time is a damaged one: the year 5138."""
NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "artifact": {"path": str},
    "device": {"device": str, "precision": str},
    "error": {"error": str, "message": str},
    "gpus": {"mask": str},
    "memory": {"lens": str},
    "metrics": {"values": Mapping},
    "note": {"message": str},
    "outcome": {"outcome": str},
    "phase": {"name": (str, type(None))},
    "progress": {"what": str, "step": (int, float), "total": (int, float, type(None))},
    "rank_sample": {"t": (int, float), "used_mb": (int, float), "phase": str, "lens": str, "n": int, "rank": int},
    "sample": {"t": (int, float), "used_mb": (int, float), "phase": str, "lens": str, "n": int},
    "point": {"values": Mapping, "share": (int, float), "step": int},
    "series": {"values": Mapping},
    "stage": {"stage": str, "key": str, "hit": bool, "seconds": (int, float)},
    "table": {"name": str, "rows": list},
}
"""Fields without which a line of a kind is none: what reads events may rely on them."""
WITH_VALUES = ("metrics", "series", "point")
"""Kinds of events whose ``values`` are figures by name."""
_HALF = re.compile("[\ud800-\udfff]")


class Journal:
    """The one writer of a journal file. Safe to call from several threads of its process."""

    def __init__(self, path: Path):
        """Open for appending; a torn last line is ended first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._torn = path.exists() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
        self._file = path.open("ab", buffering=0)
        if self._torn:
            self._append(b"")

    def write(self, kind: str, /, **data: Any) -> Event:
        """Append one event and hand it to the operating system before returning."""
        event = Event(time=time.time(), kind=kind, data=data)
        line = json.dumps({"time": round(event.time, 4), "kind": kind, **_plain(data)}, ensure_ascii=False)
        with self._lock:
            if not self._file.closed:
                self._append(line.encode() + b"\n")
        return event

    def _append(self, line: bytes) -> None:
        """Write all of ``line``: a disk that fills up takes the half of it, and the next one must not continue it."""
        whole = b"\n" + line if self._torn else line
        written = 0
        try:
            while written < len(whole):
                written += self._file.write(whole[written:]) or 0
        finally:
            self._torn = written < len(whole) and (self._torn or written > 0)

    def close(self) -> None:
        """Flush to disk and close."""
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()


class Tail:
    """Reads the events that were appended since the last call; keeps a torn last line for the next.

    Attributes:
        skipped: lines so far that are no events.
    """

    def __init__(self, path: Path, offset: int = 0):
        """Start at byte ``offset``."""
        self.path, self.offset = path, offset
        self.skipped = 0

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
        found = [event_of(line) for line in chunk[:end].split(b"\n") if line.strip()]
        events = [event for event in found if event is not None]
        self.skipped += len(found) - len(events)
        return events


def read(path: Path) -> list[Event]:
    """Every complete event of a journal, in order; an absent file is an empty journal."""
    return Tail(path).read()


def skipped(path: Path) -> int:
    """Complete lines of a journal that are no events, those that a killed writer left torn among them."""
    tail = Tail(path)
    tail.read()
    return tail.skipped


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


def event_of(line: bytes) -> Event | None:
    """The event of a line; None where it is torn, is no object, or lacks what its kind cannot do without."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    moment, kind = number(record.pop("time", None)), record.pop("kind", None)
    if moment is None or not 0 <= moment < LATEST or not isinstance(kind, str):
        return None
    needed = NEEDED.get(kind, {})
    if not all(name in record and isinstance(record[name], wanted) for name, wanted in needed.items()):
        return None
    if b"\\ud" in line.lower():
        record = _plain(record)
    return Event(time=moment, kind=kind, data=record)


def visible(text: str) -> str:
    """``text`` with halves of surrogate pairs as their codes, so that it can be encoded wherever it goes."""
    return _HALF.sub(lambda half: f"\\u{ord(half.group()):04x}", text)


def visible_in(value: Any) -> Any:
    """``value`` with every text within containers as ``visible`` makes it."""
    if isinstance(value, Mapping):
        return {visible(k) if isinstance(k, str) else k: visible_in(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [visible_in(v) for v in value]
    return visible(value) if isinstance(value, str) else value


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON without surprises: non-finite floats become text, paths and numpy scalars plain values."""
    if depth > DEEPEST:
        return "… (nested too deep to be recorded)"
    if isinstance(value, Mapping):
        return {visible(str(k)): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v, depth + 1) for v in value]
    if isinstance(value, str):
        return without_login(visible(str(value)))
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "item"):
        return _plain(value.item(), depth + 1)
    return without_login(visible(str(value)))


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
