"""Memory of a process tree without a GPU: private resident bytes, read from ``/proc``.

A forkserver child shares hundreds of megabytes with its server (545 MB resident, 97 MB its own, right after
the start), so resident memory overstates what a trial costs; private bytes are the truth. Only
``smaps_rollup`` tells them, and it walks every page. Measured (Linux 6.18, 2 cores) on a forked child of 1.13
GB resident and 1,314 mappings with torch, transformers and trl loaded:

    /proc/PID/smaps_rollup     15.6 ms     20 a second = 31 % of one core
    /proc/PID/statm            9 us        20 a second = 0.02 %
    /proc/PID/task/*/children  13-22 us

The lens therefore reads resident bytes at every sample and subtracts the part shared with processes outside
the tree. That part changes slowly: it is measured once a second, less often where that would cost more than
0.5 % of one core (every 3 s for the process above). ``bench/sampler.py`` measures the whole at 20 Hz, with a
worker of 0.9 GB: 1.0-1.1 % of one core, of which 0.65 % is waking up 20 times a second with cold caches.

The kernel keeps resident counters per CPU: ``statm`` and ``VmHWM`` may lag by tens of pages per core.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

from harness.base.records import MemorySample

MB = 1e6
PRIVATE_LENS = "private"
_FIELD = re.compile(rb"^(\w+):\s+(\d+) kB$", re.MULTILINE)


class SampleMissed(Exception):
    """One reading failed; the next may succeed."""


@dataclass(frozen=True)
class Resident:
    """Resident memory of one process.

    Attributes:
        resident_bytes: all of it, huge pages of hugetlbfs excluded (the kernel does not count them as
            resident).
        private_bytes: what no other process maps, huge pages of hugetlbfs included.
    """

    resident_bytes: int
    private_bytes: int

    @property
    def shared_bytes(self) -> int:
        """What to subtract from resident bytes to get private ones."""
        return self.resident_bytes - self.private_bytes


class Pace:
    """Says when a costly measurement may be repeated.

    Args:
        least_s: never sooner than this.
        budget: never more than this share of one core, whatever one measurement costs.
    """

    def __init__(self, least_s: float = 1.0, budget: float = 0.005):
        """Start due."""
        self.least_s, self.budget = least_s, budget
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        """Whether the time has come; ``now`` in seconds of any one clock."""
        return now >= self._next

    def spent(self, now: float, cost_s: float) -> None:
        """Record a measurement that began at ``now`` and took ``cost_s`` of processor time."""
        self._next = now + max(self.least_s, cost_s / self.budget)


def resident(pid: int | str) -> Resident | None:
    """Resident and private bytes of one process; dear (see the module), None where it cannot be read."""
    text = _read(f"/proc/{pid}/smaps_rollup")
    fields = {name: int(kb) * 1024 for name, kb in _FIELD.findall(text or b"")}
    if b"Rss" not in fields:
        return None
    private = sum(fields.get(b"Private_" + kind, 0) for kind in (b"Clean", b"Dirty", b"Hugetlb"))
    return Resident(fields[b"Rss"], private)


def private_bytes(pid: int | str) -> int | None:
    """Private resident bytes of one process; None where it is gone, not ours to read, or not on Linux."""
    found = resident(pid)
    return None if found is None else found.private_bytes


def resident_bytes(pid: int | str) -> int | None:
    """Resident bytes of one process, shared pages included; cheap. None where it is gone (or a zombie)."""
    text = _read(f"/proc/{pid}/statm")
    pages = int(text.split()[1]) if text else 0
    return pages * os.sysconf("SC_PAGE_SIZE") or None


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where it is gone or a zombie.

    Together with the pid it names a process for good: pids are used again.
    """
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold spaces and parentheses
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet reaped; empty where it is gone."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found = (_read(f"/proc/{pid}/task/{thread}/children") or b"" for thread in threads)
    return [int(child) for text in found for child in text.split()]


def process_tree(pid: int) -> list[int]:
    """A process and its descendants, the process first; empty where it is gone."""
    tree = [pid] if start_ticks(pid) is not None else []
    for member in tree:  # grows while it is walked
        tree.extend(children(member))
    return tree


def reset_peak(pid: int | str = "self") -> bool:
    """Lower ``VmHWM`` of a process to what is resident now; False where not permitted or not Linux."""
    try:
        handle = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(handle, b"5")
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def peak_resident_bytes(pid: int | str = "self") -> int | None:
    """Highest resident bytes (``VmHWM``) since the start or ``reset_peak``; None where it cannot be read."""
    text = _read(f"/proc/{pid}/status") or b""
    at = text.find(b"\nVmHWM:")
    return None if at < 0 else int(text[at + 7 :].split(None, 1)[0]) * 1024


class SharedPart:
    """The bytes of one process that processes outside its tree map too.

    A process that forks makes its own pages look shared. The part shared with the outside hardly ever grows
    (copy on write and unmapping shrink it), so while there are children the smaller of the last two
    measurements holds; what parent and child share is then counted once, with the parent.
    """

    def __init__(self, pid: int | str):
        """Know nothing yet."""
        self.pid = pid
        self.shared_bytes: int | None = None

    def measure(self, *, alone: bool) -> None:
        """Measure again.

        Args:
            alone: whether the process has no children now.
        """
        found = resident(self.pid)
        if found is None:
            return
        if alone or self.shared_bytes is None:
            self.shared_bytes = found.shared_bytes
        else:
            self.shared_bytes = min(self.shared_bytes, found.shared_bytes)


class HostLens:
    """Private resident memory of a process and its descendants."""

    def __init__(self, pid: int):
        """Watch ``pid``; nothing is read before the first sample."""
        self._pid = pid
        self._parts: dict[int, SharedPart] = {}
        self._tree_pace, self._part_pace = Pace(), Pace()

    def sample(self, now: float, *, full: bool = True) -> MemorySample:
        """Read the memory in use.

        Args:
            now: seconds since the epoch, the sample's time.
            full: ignored; this lens has no readings of its own beside memory.

        Raises:
            SampleMissed: the process is gone, or its memory is not ours to read.
        """
        if self._tree_pace.due(now):
            self._follow_tree(now)
        used, seen = 0, False
        for pid, part in self._parts.items():
            resident_now = resident_bytes(pid)
            if resident_now is not None and part.shared_bytes is not None:
                # Pages unmapped since the last measurement may have been shared ones: never below zero.
                used, seen = used + max(0, resident_now - part.shared_bytes), True
        if not seen:
            self._tree_pace = Pace()
            raise SampleMissed(f"private memory of process {self._pid} cannot be read from /proc")
        return MemorySample(time=now, used_mb=used / MB, lens=PRIVATE_LENS)

    def energy_j(self) -> None:
        """Nothing here measures energy."""

    def use_gpu(self, *uuids: str) -> None:
        """No GPU is looked at through this lens."""

    def close(self) -> None:
        """Nothing is held open."""

    def _follow_tree(self, now: float) -> None:
        tree = process_tree(self._pid)
        self._parts = {pid: self._parts.get(pid) or SharedPart(pid) for pid in tree}
        self._tree_pace.spent(now, 0.0)
        all_due, before = self._part_pace.due(now), time.thread_time()
        for pid, part in self._parts.items():
            if all_due or part.shared_bytes is None:
                part.measure(alone=not children(pid))
        if all_due:
            self._part_pace.spent(now, time.thread_time() - before)


def _read(path: str) -> bytes | None:
    """Content of a file of ``/proc``, cheaper than ``open()``; None where the process is gone or not ours."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        chunks = []
        while chunk := os.read(handle, 16384):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError:  # it ended between opening and reading
        return None
    finally:
        os.close(handle)
