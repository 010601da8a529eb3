"""A content-addressed store for stages: built once, by one process, and put in place atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "entry.json"


@dataclass(frozen=True)
class Entry:
    """One stage in the cache.

    Attributes:
        path: its folder.
        hit: whether it was there already.
        why: why it was not (``first use``), or who had built it meanwhile.
        seconds: what building it took, this time or then.
    """

    path: Path
    hit: bool
    why: str
    seconds: float


def default_dir() -> Path:
    """``$HARNESS_CACHE``, else the user's cache folder."""
    if os.environ.get("HARNESS_CACHE"):
        return Path(os.environ["HARNESS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


@dataclass(frozen=True)
class Cache:
    """Stages under ``root/<stage>/<key>/``."""

    root: Path

    def fetch(
        self,
        stage: str,
        key: str,
        build: Callable[[Path], Mapping[str, Any] | None],
        *,
        inputs: Mapping[str, Any],
    ) -> Entry:
        """The entry of ``key``, built by ``build(folder)`` if it is not there.

        Two processes that need the same entry at once: one builds, the other waits. A build that fails or is
        killed leaves nothing behind that could be mistaken for an entry.

        Args:
            stage: kind of entry (``sft``).
            key: digest of everything that can change the value.
            build: fills the folder it is given; what it returns is kept in the entry's note.
            inputs: what the key was computed from, kept beside the entry so that a miss can be explained.
        """
        from filelock import FileLock

        final = self.root / stage / key
        if (found := self.find(stage, key)) is not None:
            return found
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{final}.lock"):
            if (final / MARK).is_file():
                return self._hit(final, "another process built it meanwhile")
            why = self._why_miss(final.parent, inputs)
            started = time.perf_counter()
            draft = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=final.parent))
            try:
                note = build(draft)
                seconds = time.perf_counter() - started
                (draft / MARK).write_text(
                    json.dumps(
                        {"seconds": seconds, "inputs": inputs, "note": dict(note or {}), "made": time.time()},
                        default=str,
                    )
                )
                shutil.rmtree(final, ignore_errors=True)
                os.replace(draft, final)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            return Entry(final, hit=False, why=why, seconds=seconds)

    def find(self, stage: str, key: str) -> Entry | None:
        """The entry of ``key`` where it is there already."""
        path = self.root / stage / key
        return self._hit(path, "same inputs") if (path / MARK).is_file() else None

    def note(self, entry: Entry) -> dict[str, Any]:
        """What the builder of an entry returned."""
        return json.loads((entry.path / MARK).read_text())["note"]

    def entries(self) -> list[dict[str, Any]]:
        """Stage, key, bytes and last use of every entry, largest first."""
        found = []
        for mark in self.root.glob(f"*/*/{MARK}"):
            folder = mark.parent
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            found.append({"stage": folder.parent.name, "key": folder.name, "bytes": size, "used": mark.stat().st_mtime})
        return sorted(found, key=lambda e: -e["bytes"])

    def prune(self, keep_bytes: int) -> list[dict[str, Any]]:
        """Delete the least recently used entries until at most ``keep_bytes`` are left; returns what went."""
        entries = sorted(self.entries(), key=lambda e: e["used"])
        total = sum(e["bytes"] for e in entries)
        gone = []
        while entries and total > keep_bytes:
            entry = entries.pop(0)
            shutil.rmtree(self.root / entry["stage"] / entry["key"], ignore_errors=True)
            total -= entry["bytes"]
            gone.append(entry)
        return gone

    def _hit(self, path: Path, why: str) -> Entry:
        mark = path / MARK
        os.utime(mark)
        return Entry(path, hit=True, why=why, seconds=float(json.loads(mark.read_text())["seconds"]))

    @staticmethod
    def _why_miss(folder: Path, inputs: Mapping[str, Any]) -> str:
        """Which inputs differ from the newest entry of the same stage."""
        marks = sorted(folder.glob(f"*/{MARK}"), key=lambda p: p.stat().st_mtime)
        if not marks:
            return "first use"
        before = json.loads(marks[-1].read_text())["inputs"]
        now = json.loads(json.dumps(inputs, default=str))
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        return f"changed since the newest entry: {', '.join(changed)}" if changed else "not built yet"
