"""The sampler that watches a worker from the runner."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from harness.base.records import MemorySample
from harness.telemetry.sampler import MemorySampler, _Account, _Reading

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

WORKER = """
import sys
held = []
for line in sys.stdin:
    command, mb = line.split()
    if command == "hold":
        held.append(bytearray(int(mb) * 10**6))
        held[-1][::4096] = bytes([1]) * len(held[-1][::4096])
    else:
        held.clear()
    print("done", flush=True)
"""


class Worker:
    """A process that holds and drops memory when told to."""

    def __init__(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-S", "-c", WORKER], stdin=pipe, stdout=pipe, text=True)
        self.pid = self.process.pid
        self.tell("drop 0")

    def tell(self, command: str) -> None:
        print(command, file=self.process.stdin, flush=True)
        self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


class Driver:
    """A stand-in for ``pynvml`` with one GPU; ``level`` and ``energy_mj`` are read anew at each call."""

    class NVMLError(Exception):
        """As ``pynvml.NVMLError``."""

    def __init__(self, pid: int):
        self.pid, self.used, self.power_mw, self.energy_mj = pid, None, 200_000, None
        self.failing = False

    def nvmlInit(self):  # noqa: N802
        pass

    nvmlShutdown = nvmlInit  # noqa: N815

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return "GPU-a"

    nvmlDeviceGetName = nvmlDeviceGetUUID  # noqa: N815

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=10**9)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        if self.failing:
            raise self.NVMLError("Unknown Error")
        return [] if self.used is None else [SimpleNamespace(pid=self.pid, usedGpuMemory=self.used)]

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=80)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self.power_mw

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if self.energy_mj is None:
            raise self.NVMLError("Not Supported")
        return self.energy_mj


def eventually(condition: Callable[[], object]) -> None:
    """Wait, no longer than needed, until ``condition`` holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def samples_taken(sampler: MemorySampler) -> int:
    return sampler.summary().samples + len(sampler._held)


def take(sampler: MemorySampler, count: int = 2) -> None:
    """Let the sampler take ``count`` more samples."""
    before = samples_taken(sampler)
    eventually(lambda: samples_taken(sampler) >= before + count)


def reading(t: float, mb: float = 1.0, lens: str = "private", power=None, energy=None, host=None) -> _Reading:
    return _Reading(MemorySample(t, mb, lens, None, power), host, energy)


def account(phase: str = "prepare", window_s: float = 1.0) -> _Account:
    book = _Account(window_s)
    book.phase = phase
    return book


@linux
def test_the_peaks_of_two_phases_are_kept_apart():
    rows = []
    with Worker() as worker:
        with MemorySampler(worker.pid, emit=rows.append, env=NO_GPU, hz=100) as sampler:
            take(sampler)
            sampler.phase = "train"
            worker.tell("hold 200")
            take(sampler)
            worker.tell("drop 0")
            sampler.phase = "evaluate"
            worker.tell("hold 50")
            take(sampler)
        summary = sampler.summary()
    assert summary.lens == "private"
    assert summary.phase_peak_mb["train"] - summary.phase_peak_mb["prepare"] == pytest.approx(200, rel=0.1)
    assert summary.phase_peak_mb["evaluate"] - summary.phase_peak_mb["prepare"] == pytest.approx(50, rel=0.1)
    assert (summary.high_water_phase, summary.peak_mb) == ("train", summary.phase_peak_mb["train"])
    assert (summary.missed, summary.energy_j) == (0, None)
    assert summary.reason == "CUDA_VISIBLE_DEVICES='' shows no GPU"
    assert list(dict.fromkeys(row["phase"] for row in rows)) == ["prepare", "train", "evaluate"]
    assert sum(row["n"] for row in rows) == summary.samples
    assert set(rows[0]) == {"t", "phase", "used_mb", "mean_mb", "lens", "n"}


@linux
def test_a_change_of_phase_heard_of_late_still_claims_its_samples():
    with Worker() as worker:
        with MemorySampler(worker.pid, emit=lambda row: None, env=NO_GPU, hz=100) as sampler:
            take(sampler)
            began = time.time()
            worker.tell("hold 100")
            take(sampler)
            sampler.enter("train", at=began)
        peaks = sampler.summary().phase_peak_mb
    assert peaks["train"] - peaks["prepare"] == pytest.approx(100, rel=0.1)


@linux
def test_even_the_shortest_watch_has_a_first_and_a_last_sample():
    rows = []
    with Worker() as worker:
        with MemorySampler(worker.pid, emit=rows.append, env=NO_GPU, hz=0.01) as sampler:
            eventually(lambda: samples_taken(sampler) == 1)
            worker.tell("hold 100")
        assert sampler.summary().samples == 2
    assert rows[0]["used_mb"] > 100


@linux
def test_a_worker_that_dies_ends_the_sampling_quietly():
    rows = []
    with Worker() as worker, MemorySampler(worker.pid, emit=rows.append, env=NO_GPU, hz=100) as sampler:
        take(sampler)
        worker.process.kill()
        eventually(lambda: not sampler._thread.is_alive())
    summary = sampler.summary()
    assert (summary.missed, summary.lens) == (0, "private")
    assert sum(row["n"] for row in rows) == summary.samples > 0


@linux
def test_a_worker_that_is_gone_at_the_start_has_no_summary_to_show():
    with Worker() as worker:
        pass
    with MemorySampler(worker.pid, emit=lambda row: None, env=NO_GPU) as sampler:
        pass
    summary = sampler.summary()
    assert (summary.lens, summary.peak_mb, summary.high_water_phase, summary.samples) == (None, None, None, 0)


@linux
def test_a_failing_journal_stops_neither_the_sampling_nor_the_trial():
    def full_disk(row):
        raise OSError("no space left on device")

    with Worker() as worker:
        with MemorySampler(worker.pid, emit=full_disk, env=NO_GPU, hz=100) as sampler:
            take(sampler)
        summary = sampler.summary()
    assert summary.peak_mb is not None
    assert summary.missed >= 1
    assert "no space left" in summary.reason


@linux
def test_the_exception_of_the_body_is_not_swallowed_and_the_thread_ends():
    before = threading.active_count()
    with Worker() as worker, pytest.raises(KeyError):
        with MemorySampler(worker.pid, emit=lambda row: None, env=NO_GPU):
            raise KeyError("body")
    assert threading.active_count() == before


@linux
def test_a_gpu_is_sampled_through_the_driver_with_host_memory_beside_it():
    rows = []
    with Worker() as worker:
        driver = Driver(worker.pid)
        driver.used = 2 * 10**9
        with MemorySampler(worker.pid, emit=rows.append, env={}, nvml=driver, hz=100) as sampler:
            take(sampler)
        summary = sampler.summary()
    assert (summary.lens, summary.peak_mb, summary.reason) == ("nvml_process", 2000.0, None)
    assert (rows[0]["utilisation_percent"], rows[0]["power_w"]) == (80.0, 200.0)
    assert 0 < rows[0]["host_mb"] < 50


@linux
def test_a_driver_error_is_counted_and_sampling_goes_on_after_it():
    with Worker() as worker:
        driver = Driver(worker.pid)
        driver.used = 1 * 10**9
        with MemorySampler(worker.pid, emit=lambda row: None, env={}, nvml=driver, hz=100) as sampler:
            take(sampler)
            driver.failing = True
            eventually(lambda: sampler.summary().missed > 1)
            driver.failing, driver.used = False, 3 * 10**9
            take(sampler)
        summary = sampler.summary()
    assert summary.peak_mb == 3000.0
    assert summary.missed > 1
    assert summary.reason == "NVML: Unknown Error"


@linux
def test_a_driver_that_answers_nonsense_leaves_the_host_lens():
    with Worker() as worker:
        broken = SimpleNamespace(NVMLError=Driver.NVMLError, nvmlInit=lambda: None, nvmlShutdown=lambda: None)
        with MemorySampler(worker.pid, emit=lambda row: None, env={}, nvml=broken, hz=100) as sampler:
            take(sampler)
        summary = sampler.summary()
    assert summary.lens == "private"
    assert "nvmlDeviceGetCount" in summary.reason


def test_a_window_holds_its_highest_and_its_mean():
    book = account()
    for t, mb in ((0.0, 10), (0.5, 30), (1.0, 50)):
        book.add(reading(t, mb))
    book.flush()
    assert book.rows == [
        {"t": 0.5, "phase": "prepare", "used_mb": 30, "mean_mb": 20.0, "lens": "private", "n": 2},
        {"t": 1.0, "phase": "prepare", "used_mb": 50, "mean_mb": 50.0, "lens": "private", "n": 1},
    ]


def test_a_change_of_phase_closes_the_window():
    book = account()
    book.add(reading(0.0, 10))
    book.change_phase(0.1, "train")
    book.add(reading(0.2, 20))
    book.flush()
    assert [(row["phase"], row["used_mb"]) for row in book.rows] == [("prepare", 10), ("train", 20)]


def test_a_change_of_lens_closes_the_window():
    book = account()
    book.add(reading(0.0, 900, lens="nvml_device_delta"))
    book.add(reading(0.1, 20, lens="nvml_process"))
    book.flush()
    assert [(row["lens"], row["used_mb"]) for row in book.rows] == [
        ("nvml_device_delta", 900),
        ("nvml_process", 20),
    ]


def test_neighbours_on_the_device_do_not_count_once_the_process_itself_is_seen():
    book = account()
    book.add(reading(0.0, 900, lens="nvml_device_delta"))
    book.change_phase(0.1, "train")
    book.add(reading(0.2, 20, lens="nvml_process"))
    peaks = book.peaks_of_best_lens()
    assert (peaks.lens, peaks.phase_mb) == ("nvml_process", {"train": 20})


def test_the_energy_counter_is_shared_out_by_the_time_in_each_phase():
    book = account("train")
    book.add(reading(0.0, energy=0.0))
    book.change_phase(3.0, "evaluate")
    book.add(reading(4.0, energy=100.0, power=1e6))  # the counter outranks power
    book.add(reading(5.0, energy=130.0))
    assert book.energy_j == {"train": 75.0, "evaluate": 55.0}


def test_power_is_integrated_where_there_is_no_counter():
    book = account("train")
    book.add(reading(0.0, power=100.0))
    book.add(reading(1.0))  # a sample between two readings of power
    book.add(reading(2.0, power=300.0))
    book.change_phase(2.0, "evaluate")
    book.add(reading(3.0, power=300.0))
    assert book.energy_j == {"train": 400.0, "evaluate": 300.0}


def test_a_phase_too_short_for_a_sample_has_its_energy_and_no_peak():
    book = account("train")
    book.add(reading(0.0, energy=0.0))
    book.change_phase(1.0, "rollout")
    book.change_phase(2.0, "train")
    book.add(reading(4.0, energy=40.0))
    assert book.energy_j == {"train": 30.0, "rollout": 10.0}
    assert set(book.peaks_of_best_lens().phase_mb) == {"train"}
