"""Threads sleep while they wait where others hold the cores, and spin for a short while elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.runner import forkserver
from harness.telemetry import cores, waiting
from harness.telemetry.waiting import ASLEEP, NAMES, SHORT, Waiting


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def looking(*found: float | None) -> Waiting:
    answers: Iterator[Any] = iter(found)
    return Waiting(lambda: next(answers))


@pytest.mark.parametrize(
    ("held", "threads", "asleep"),
    [
        (0.0, None, False),
        (0.4, None, False),  # a shell, an editor
        (0.9, None, True),
        (2.0, 2, True),
        (None, None, False),  # nothing tells
    ],
)
def test_threads_sleep_where_there_are_more_of_them_than_free_cores(held, threads, asleep):
    now = looking(held)
    assert (now.look(threads) is not None) == asleep == now.asleep
    assert now.environment == (ASLEEP if asleep else SHORT)


def test_one_thread_waits_for_nobody_and_nobody_looks():
    assert looking().look(1) is None


def test_on_a_machine_with_cores_to_spare_a_neighbour_is_no_matter(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert looking(20.0).look(8) is None
    assert looking(60.0).look(8) == 60.0


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    now = looking()
    assert now.look(None) is None and now.environment == {}


def test_after_one_calm_look_threads_still_sleep_and_after_two_they_spin():
    now = looking(1.0, 0.0, 1.0, 0.0, 0.0)
    seen = []
    for _ in range(5):
        now.look(None)
        seen.append(now.asleep)
    assert seen == [True, True, True, True, False]


@pytest.mark.slow
def test_what_was_chosen_reaches_the_processes_that_trials_are_forked_into(monkeypatch):
    held = [0.0, 1.5]
    monkeypatch.setattr(forkserver, "PRESENT", looking(*held))
    assert forkserver.settle(None) is None
    assert asked("GOMP_SPINCOUNT") == SHORT["GOMP_SPINCOUNT"] and asked("OMP_WAIT_POLICY") is None
    said = forkserver.settle(None)
    assert said is not None and "1.5 of 2 cores" in said
    assert asked("OMP_WAIT_POLICY") == "passive" and asked("GOMP_SPINCOUNT") is None
    forkserver.stop()


def asked(name: str) -> Any:
    return forkserver.asked(_tell, name, name="tell", tries=2)


def _tell(sender: Any, name: str) -> None:
    sender.send(os.environ.get(name))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="cores are counted on Linux alone")
def test_what_others_do_is_counted_and_what_this_process_does_is_not(monkeypatch):
    monkeypatch.undo()
    stranger = "import time; end = time.time() + 20\nwhile time.time() < end: pass"
    start = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {stranger!r}], stdout=-3).pid)"
    pid = int(subprocess.run([sys.executable, "-c", start], check=True, stdout=subprocess.PIPE).stdout)
    try:  # a child of nobody here: its parent has ended
        assert max(held for _ in range(10) if (held := cores.held_by_others()) is not None) >= 0.2
    finally:
        os.kill(pid, signal.SIGKILL)


def test_ticks_of_this_process_tree_are_nobody_elses(monkeypatch):
    times = iter([(1000, 4000, 100), (1040, 4040, 130)])  # of 20 ticks on each of 2 cores all were busy, 30 for us
    monkeypatch.setattr(cores, "_now", lambda: next(times))
    assert cores.held_by_others(0.0) == pytest.approx(0.5)


def test_a_short_spin_is_what_nobody_set():
    assert waiting.Waiting().environment == SHORT
