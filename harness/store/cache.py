"""A content-addressed store for stages: built once, by one process, put in place atomically, and held to its checksums.

A base with a few hundred flipped bytes trains as well as a whole one and gives other numbers, so a hit is checked.
What that costs: files of up to 64 MiB are hashed once per process (SHA-256; the embedded models are far smaller). A
larger file is hashed only where its size, inode or a time of change differs from when it was last hashed, so a base of
many GB costs its hash once and not per trial; damage below the file system goes unseen there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError

MARK = "entry.json"
DAMAGED = ".damaged-"
HELD_OUT = "held-out-"
"""Begins the names of stages that hold what a model says of held-out rows before it is trained."""
MARGINS = "margins"
"""The stage that holds what a model says of training pairs before it learns from them (``task.curate``)."""
SMALL = 64 * 2**20
"""Bytes up to which a file is hashed anew by every process."""
_hashed: dict[tuple[str, tuple[int, ...]], str] = {}
"""(path, size, inode and times of change) -> digest, of what this process has hashed."""


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


def cache_dir(plain: Mapping[str, Any]) -> Path:
    """The stage cache of a configuration."""
    chosen = (plain.get("cache") or {}).get("dir")
    return Path(chosen).expanduser().resolve() if chosen else default_dir()


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
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{final}.lock")
            lock.acquire()
        except OSError as error:
            raise _not_writable(self.root, stage, error) from error
        try:
            if (found := self._sound(final)) is not None:
                return self._hit(final, found, "another process built it meanwhile")
            why = self._why_miss(final.parent, inputs)
            if (final / MARK).exists():
                why = f"{self._damage(final)}; set aside as {self._set_aside(final).name}, built again"
            started = time.perf_counter()
            draft = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=final.parent))
            try:
                note = build(draft)
                seconds = time.perf_counter() - started
                files = {str(f.relative_to(draft)): _fingerprint(f) for f in _files(draft)}
                told = {"seconds": seconds, "inputs": inputs, "note": dict(note or {}), "made": time.time()}
                _write_mark(draft, _sealed(told, files))
                shutil.rmtree(final, ignore_errors=True)
                os.replace(draft, final)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            return Entry(final, hit=False, why=why, seconds=seconds)
        finally:
            lock.release()

    def find(self, stage: str, key: str) -> Entry | None:
        """The entry of ``key`` where it is there already, and sound."""
        path = self.root / stage / key
        mark = self._sound(path)
        return None if mark is None else self._hit(path, mark, "same inputs")

    def note(self, entry: Entry) -> dict[str, Any]:
        """What the builder of an entry returned."""
        return (_read_mark(entry.path) or {}).get("note") or {}

    def entries(self) -> list[dict[str, Any]]:
        """Stage, key, bytes, last use and state of all that is kept, largest first.

        The state is ``whole``; ``damaged`` of what was set aside; ``building`` of a draft whose builder lives, and
        ``abandoned`` of one whose builder was killed.
        """
        found = []
        for folder in sorted(p for p in self.root.glob("*/*") if p.is_dir()):
            state = self._state(folder)
            if state is None:
                continue
            used = _quietly(lambda mark=(folder / MARK if state == "whole" else folder): mark.stat().st_mtime, 0.0)
            size = sum(_quietly(lambda f=f: f.stat().st_size, 0) for f in _files(folder, own=True))
            key = folder.name if state == "whole" else folder.name[1:]
            found.append(
                {"stage": folder.parent.name, "key": key, "bytes": size, "used": used, "state": state, "path": folder}
            )
        return sorted(found, key=lambda e: -e["bytes"])

    def prune(self, keep_bytes: int) -> list[dict[str, Any]]:
        """Delete what nobody can use, then the least recently used, until at most ``keep_bytes`` are left.

        Returns:
            what went.
        """
        entries = sorted(self.entries(), key=lambda e: (e["state"] == "whole", e["used"]))
        total = sum(e["bytes"] for e in entries)
        gone = []
        for entry in entries:
            useless = entry["state"] in ("damaged", "abandoned")
            if entry["state"] == "building" or not (useless or total > keep_bytes):
                continue
            shutil.rmtree(entry["path"], ignore_errors=True)
            total -= entry["bytes"]
            gone.append(entry)
        return gone

    @staticmethod
    def _state(folder: Path) -> str | None:
        if not folder.name.startswith("."):
            return "whole" if (folder / MARK).is_file() else None
        if DAMAGED in folder.name:
            return "damaged"
        from filelock import FileLock, Timeout

        key = folder.name[1:].rpartition("-")[0]  # mkdtemp's random part holds no dash
        try:
            with FileLock(folder.parent / f"{key}.lock", timeout=0):  # its builder holds this for as long as it lives
                return "abandoned"
        except (Timeout, OSError):
            return "building"

    def _sound(self, path: Path) -> dict[str, Any] | None:
        """The mark of an entry that is there and holds what was put into it; None else."""
        mark = _read_mark(path)
        return mark if mark is not None and _differing(path, mark) is None else None

    def _damage(self, path: Path) -> str:
        """What is wrong with an entry, in words."""
        mark = _read_mark(path)
        return f"the entry was damaged ({MARK if mark is None else _differing(path, mark)} is not what was written)"

    def _set_aside(self, path: Path) -> Path:
        """Move a damaged entry out of the way, where it can be looked at until it is pruned."""
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}{DAMAGED}", dir=path.parent))
        os.replace(path, aside)
        return aside

    @staticmethod
    def _hit(path: Path, mark: Mapping[str, Any], why: str) -> Entry:
        with suppress(OSError):  # a cache that can only be read knows no last use
            os.utime(path / MARK)
        return Entry(path, hit=True, why=why, seconds=float(mark["seconds"]))

    @staticmethod
    def _why_miss(folder: Path, inputs: Mapping[str, Any]) -> str:
        """Which inputs differ from the newest entry of the same stage."""
        marks = [(p.parent, _quietly(lambda p=p: p.stat().st_mtime, 0.0)) for p in folder.glob(f"[!.]*/{MARK}")]
        known = [mark for path, _ in sorted(marks, key=lambda m: -m[1]) if (mark := _read_mark(path)) is not None]
        if not known:
            return "first use"
        before = known[0]["inputs"]
        now = json.loads(json.dumps(inputs, default=str))
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        return f"changed since the newest entry: {', '.join(changed)}" if changed else "not built yet"


def _read_mark(folder: Path) -> dict[str, Any] | None:
    """``entry.json`` of an entry; None where it is absent, torn, or not one."""
    try:
        mark = json.loads((folder / MARK).read_bytes())
        float(mark["seconds"])
        sound = isinstance(mark["inputs"], dict) and isinstance(mark.get("files", {}), dict)
        sound = sound and all(isinstance(f, dict) for f in mark.get("files", {}).values())
        return mark if sound and mark.get("seal") in (None, _seal(mark)) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sealed(told: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """A mark with the digest of what it tells, which is a prediction's or a baseline's whole content."""
    mark = json.loads(json.dumps({**told, "files": files}, default=str))
    return {**mark, "seal": _seal(mark)}


def _seal(mark: Mapping[str, Any]) -> str:
    told = {k: mark.get(k) for k in ("seconds", "inputs", "note", "made")}
    told["files"] = {name: file.get("sha256") for name, file in mark.get("files", {}).items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _write_mark(folder: Path, mark: Mapping[str, Any]) -> None:
    draft = folder / f".{MARK}.{os.getpid()}"
    draft.write_text(json.dumps(mark, default=str))
    os.replace(draft, folder / MARK)


def _files(folder: Path, *, own: bool = False) -> list[Path]:
    """The files of an entry; with ``own`` those that the cache keeps about it too."""
    return sorted(f for f in folder.rglob("*") if f.is_file() and (own or MARK not in f.name))


def _differing(folder: Path, mark: Mapping[str, Any]) -> str | None:
    """The first file that is not what was written, or is missing; of an entry without checksums nothing is known."""
    renewed = {}
    for name, written in mark.get("files", {}).items():
        file = folder / name
        try:
            stamp, size = _stamp(file), file.stat().st_size
            if size != written.get("bytes"):
                return name
            if size > SMALL and list(stamp) == written.get("stamp"):
                continue
            if _digest(file, stamp) != written.get("sha256"):
                return name
        except OSError:
            return name
        if size > SMALL:
            renewed[name] = {**written, "stamp": list(stamp)}
    if renewed:
        with suppress(OSError):  # then it is hashed again next time
            _write_mark(folder, {**mark, "files": {**mark["files"], **renewed}})
    return None


def _fingerprint(file: Path) -> dict[str, Any]:
    stamp = _stamp(file)
    return {"bytes": file.stat().st_size, "sha256": _digest(file, stamp), "stamp": list(stamp)}


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes with a file's content: the time of its last change of state cannot be set back."""
    status = file.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _digest(file: Path, stamp: tuple[int, ...]) -> str:
    if (known := _hashed.get((str(file), stamp))) is None:
        with file.open("rb") as opened:
            known = _hashed[str(file), stamp] = hashlib.file_digest(opened, "sha256").hexdigest()
    return known


def _quietly(ask: Callable[[], Any], otherwise: Any) -> Any:
    """What ``ask`` returns; ``otherwise`` where the file went away meanwhile."""
    try:
        return ask()
    except OSError:
        return otherwise


def _not_writable(root: Path, stage: str, error: OSError) -> UserError:
    return UserError(
        f"lacks an entry of {stage} and cannot be written ({error.strerror})",
        key="cache.dir",
        value=str(root),
        fix="name a folder that can be written: cache.dir=... or $HARNESS_CACHE",
    )
