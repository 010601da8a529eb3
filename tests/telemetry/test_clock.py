"""The worker's own account of its phases."""

from __future__ import annotations

import sys
import types

import pytest

from harness.telemetry import clock as clock_module
from harness.telemetry.clock import PhaseClock, PhasePeak


class Time:
    """A clock that moves when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return 0.0


@pytest.fixture
def time(monkeypatch) -> Time:
    stopped = Time()
    monkeypatch.setattr(clock_module, "time", stopped)
    return stopped


@pytest.fixture
def cuda(monkeypatch) -> types.SimpleNamespace:
    """A stand-in for ``torch.cuda`` with one device whose allocator remembers its peak."""
    level = types.SimpleNamespace(peak=0, resets=0)

    def reset(device):
        level.peak, level.resets = 0, level.resets + 1

    level.is_initialized = lambda: True
    level.device_count = lambda: 1
    level.reset_peak_memory_stats = reset
    level.memory_stats_as_nested_dict = lambda device: {
        "allocated_bytes": {"all": {"peak": level.peak}},
        "reserved_bytes": {"all": {"peak": 2 * level.peak}},
    }
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=level))
    return level


def ignore(kind, data):
    pass


def test_an_inner_phase_suspends_the_outer_one(time):
    clock = PhaseClock(ignore)
    with clock.phase("train"):
        time.now += 2
        with clock.phase("rollout"):
            time.now += 5
        time.now += 3
        with clock.phase("rollout"):
            time.now += 1
    time.now += 50
    with clock.phase("evaluate"):
        time.now += 4
    assert clock.seconds() == {"train": 5.0, "rollout": 6.0, "evaluate": 4.0}


def test_the_running_phase_counts_as_it_runs(time):
    clock = PhaseClock(ignore)
    with clock.phase("prepare"):
        time.now += 7
        assert clock.seconds() == {"prepare": 7.0}
        assert set(clock.peaks()) == {"prepare"}


def test_each_change_of_phase_is_emitted_with_the_stretch_that_ended(time):
    events = []
    clock = PhaseClock(lambda kind, data: events.append((kind, data)))
    with clock.phase("train"):
        time.now += 2
        with clock.phase("rollout"):
            time.now += 1
    assert [kind for kind, _ in events] == ["phase"] * 4
    assert [(data["name"], data["previous"], data.get("previous_s")) for _, data in events] == [
        ("train", None, None),
        ("rollout", "train", 2.0),
        ("train", "rollout", 1.0),
        (None, "train", 0.0),
    ]


def test_a_phase_within_itself_is_no_change(time):
    events = []
    clock = PhaseClock(lambda kind, data: events.append(data["name"]))
    with clock.phase("train"), clock.phase("train"):
        time.now += 1
    assert events == ["train", None]
    assert clock.seconds() == {"train": 1.0}


def test_an_exception_leaves_the_phase(time):
    clock = PhaseClock(ignore)
    with pytest.raises(MemoryError), clock.phase("train"), clock.phase("rollout"):
        time.now += 1
        raise MemoryError
    time.now += 10
    assert clock.seconds() == {"train": 0.0, "rollout": 1.0}


def test_a_failing_journal_leaves_the_clock_right(time):
    def full_disk(kind, data):
        if data["name"] == "rollout":
            raise OSError("no space left on device")

    clock = PhaseClock(full_disk)
    with clock.phase("train"):
        time.now += 1
        with pytest.raises(OSError, match="no space"), clock.phase("rollout"):
            time.now += 100  # not reached
        time.now += 1
    assert clock.seconds() == {"train": 2.0, "rollout": 0.0}


def test_an_unknown_phase_is_refused():
    with (
        pytest.raises(ValueError, match="'warmup' is not one of prepare, reference"),
        PhaseClock(ignore).phase("warmup"),
    ):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_short_host_peak_belongs_to_the_phase_it_fell_in(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    events = []
    clock = PhaseClock(lambda kind, data: events.append(data))
    with clock.phase("train"):
        with clock.phase("rollout"):
            memory = bytearray(100_000_000)
            memory[::4096] = bytes([1]) * len(memory[::4096])
            del memory
        with clock.phase("evaluate"):
            pass
    peaks = clock.peaks()
    assert peaks["rollout"].host_peak_mb - peaks["train"].host_peak_mb == pytest.approx(100, rel=0.1)
    assert peaks["rollout"].host_peak_mb - peaks["evaluate"].host_peak_mb == pytest.approx(100, rel=0.1)
    assert peaks["rollout"].allocated_peak_mb is None
    assert events[2]["host_peak_mb"] == peaks["rollout"].host_peak_mb
    assert "allocated_peak_mb" not in events[2]


def test_host_peaks_are_absent_where_the_kernel_keeps_its_high_water_mark(monkeypatch):
    monkeypatch.setattr(clock_module, "reset_peak", lambda: False)
    clock = PhaseClock(ignore)
    with clock.phase("train"):
        pass
    assert clock.peaks()["train"].host_peak_mb is None


def test_cuda_peaks_belong_to_the_phase_they_fell_in(cuda):
    clock = PhaseClock(ignore)
    with clock.phase("train"):
        cuda.peak = 300_000_000
        with clock.phase("rollout"):
            cuda.peak = 900_000_000
        cuda.peak = 200_000_000
    peaks = clock.peaks()
    assert (peaks["train"].allocated_peak_mb, peaks["train"].reserved_peak_mb) == (300.0, 600.0)
    assert (peaks["rollout"].allocated_peak_mb, peaks["rollout"].reserved_peak_mb) == (900.0, 1800.0)


def test_asking_for_peaks_never_starts_cuda(cuda):
    cuda.is_initialized = lambda: False
    clock = PhaseClock(ignore)
    with clock.phase("train"):
        pass
    assert cuda.resets == 0
    assert clock.peaks()["train"].allocated_peak_mb is None


def test_the_higher_of_two_peaks_is_taken_measure_by_measure():
    one, other = (
        PhasePeak(host_peak_mb=1.0, allocated_peak_mb=5.0),
        PhasePeak(host_peak_mb=2.0, reserved_peak_mb=3.0),
    )
    assert one.higher(other) == PhasePeak(host_peak_mb=2.0, allocated_peak_mb=5.0, reserved_peak_mb=3.0)
