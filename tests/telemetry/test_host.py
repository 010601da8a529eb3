"""Memory of a process tree, seen through ``/proc``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.telemetry import host
from harness.telemetry.host import HostLens, Pace, Resident, SampleMissed, SharedPart

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

TOUCH = """
import os, sys
def touched(mb):
    memory = bytearray(mb * 10**6)
    memory[::4096] = bytes([1]) * len(memory[::4096])
    return memory
def ready(*words):
    print(*words, flush=True)
"""


@contextmanager
def running(script: str) -> Iterator[list[int]]:
    """A Python process that has run ``script`` and waits; yields the numbers it printed last."""
    command = [sys.executable, "-S", "-c", f"{TOUCH}\n{script}\nsys.stdin.read()\nos._exit(0)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield [process.pid, *map(int, process.stdout.readline().split())]
        finally:
            process.stdin.close()


def test_touched_memory_is_seen_within_ten_percent():
    with running("own = touched(200); ready()") as (pid,):
        assert host.private_bytes(pid) == pytest.approx(200e6, rel=0.1)
        sample = HostLens(pid).sample(now=0.0)
    assert sample.used_mb == pytest.approx(200, rel=0.1)
    assert sample.lens == "private"


def test_memory_allocated_but_never_touched_is_not_counted():
    with running("import mmap; own = mmap.mmap(-1, 200 * 10**6); ready()") as (pid,):
        assert HostLens(pid).sample(now=0.0).used_mb < 20


def test_pages_shared_with_the_server_are_not_a_childs():
    forked = """
preloaded = touched(200)
child = os.fork()
if child == 0:
    own = touched(50)
    ready(os.getpid())
"""
    with running(forked) as (_, child):
        assert host.resident_bytes(child) > 240e6
        assert HostLens(child).sample(now=0.0).used_mb == pytest.approx(50, rel=0.1)


def test_what_a_worker_shares_with_its_own_child_is_counted_once():
    forking = """
own = touched(100)
ready()
sys.stdin.readline()
child = os.fork()
if child == 0:
    more = touched(60)
    ready(os.getpid())
"""
    command = [sys.executable, "-S", "-c", f"{TOUCH}\n{forking}\nsys.stdin.read()\nos._exit(0)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        lens = HostLens(process.pid)
        alone = lens.sample(now=0.0)
        process.stdin.write("fork\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        tree = host.process_tree(process.pid)
        together = lens.sample(now=10.0)
        process.stdin.close()
    assert tree == [process.pid, child]
    assert alone.used_mb == pytest.approx(100, rel=0.1)
    assert together.used_mb == pytest.approx(160, rel=0.1)


def test_memory_between_two_measurements_of_the_shared_part_is_followed(monkeypatch):
    monkeypatch.setattr(host, "process_tree", lambda pid: [pid])
    monkeypatch.setattr(host, "children", lambda pid: [])
    monkeypatch.setattr(host, "resident", lambda pid: Resident(resident_bytes=500, private_bytes=100))
    levels = iter([500, 700, 300])
    monkeypatch.setattr(host, "resident_bytes", lambda pid: next(levels))
    lens = HostLens(1)
    used = [round(lens.sample(now=now).used_mb * 1e6) for now in (0.0, 0.05, 0.10)]
    assert used == [100, 300, 0]


def test_the_shared_part_never_grows_while_there_are_children(monkeypatch):
    part = SharedPart(1)
    seen = []
    for shared, alone in ((400, True), (900, False), (300, False), (350, True)):
        monkeypatch.setattr(host, "resident", lambda pid, shared=shared: Resident(1000, 1000 - shared))
        part.measure(alone=alone)
        seen.append(part.shared_bytes)
    assert seen == [400, 400, 300, 350]


def test_huge_pages_count_as_private_though_not_as_resident(monkeypatch):
    rollup = b"""400000-7ffc1000 ---p 00000000 00:00 0    [rollup]
Rss:                1000 kB
Private_Clean:       100 kB
Private_Dirty:       300 kB
Private_Hugetlb:    2048 kB
"""
    monkeypatch.setattr(host, "_read", lambda path: rollup)
    assert host.resident(1) == Resident(1000 * 1024, 2448 * 1024)
    assert host.private_bytes(1) == 2448 * 1024


def test_a_vanished_process_has_no_memory():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    gone = process.pid
    assert (host.private_bytes(gone), host.resident_bytes(gone), host.start_ticks(gone)) == (None, None, None)
    assert host.peak_resident_bytes(gone) is None
    assert host.reset_peak(gone) is False
    assert host.process_tree(gone) == []
    with pytest.raises(SampleMissed, match=str(gone)):
        HostLens(gone).sample(now=0.0)


def test_a_zombie_counts_as_gone():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()  # returns when the process has closed its output, that is, on its way out
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert host.start_ticks(process.pid) is None
    assert host.private_bytes(process.pid) is None
    process.stdout.close()
    process.wait()


def test_the_peak_can_be_forgotten():
    script = """
own = touched(100)
del own
ready()
"""
    with running(script) as (pid,):
        before = host.peak_resident_bytes(pid)
        assert host.reset_peak(pid)
        after = host.peak_resident_bytes(pid)
    assert before > 100e6
    assert after < 40e6


def test_a_costly_measurement_is_spaced_by_its_price():
    pace = Pace(least_s=1.0, budget=0.01)
    assert pace.due(0.0)
    pace.spent(0.0, cost_s=0.001)
    assert (pace.due(0.99), pace.due(1.0)) == (False, True)
    pace.spent(1.0, cost_s=0.05)
    assert (pace.due(5.99), pace.due(6.0)) == (False, True)
