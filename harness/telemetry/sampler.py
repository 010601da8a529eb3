"""Memory and energy of a worker by phase, sampled from outside by a thread of the runner.

    with MemorySampler(worker.pid, emit=journal.append_memory, env=job.env) as sampler:
        ...                                            # for each phase event in the worker's journal:
        sampler.enter(event.data["name"], at=event.time)
    sampler.summary().peak_mb

The runner hears of a change of phase a moment after it happened. Samples are therefore held back for a second
and given to the phase that their own time falls into, so that a rollout's peak is not booked on training.

Cost at 20 Hz of the host lens, ``python bench/sampler.py``: 1.0-1.1 % of one core for a worker of 0.9 GB.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from harness.base.records import MemorySample
from harness.telemetry.host import HostLens, Pace, SampleMissed, start_ticks
from harness.telemetry.inventory import LensUnavailable
from harness.telemetry.nvml import DELTA_LENS, NvmlLens

SETTLE_S = 1.0
"""How late the runner may hear of a change of phase without a sample going to the wrong one."""

SLOW_READINGS_S = 0.2
"""Utilisation, power and energy are read this often: they are averages or counters, and each is a call."""


@dataclass(frozen=True)
class MemorySummary:
    """What a trial took, as seen from outside.

    Attributes:
        lens: where the figures come from (see ``MemorySample``); None where nothing was measured.
        peak_mb: highest memory of all samples through that lens, in MB (10^6 bytes).
        phase_peak_mb: the same by phase; a phase too short for a sample is absent.
        high_water_phase: the phase of the highest sample.
        samples: how many succeeded.
        missed: how many samples failed, and rows that could not be emitted.
        energy_j: joules of the GPUs in use by phase, from the driver's counter or else integrated from power;
            None where neither can be read. A device's energy includes its other users'.
        reason: why a better lens was not used and how the last failure read; None where all went well.
    """

    lens: str | None
    peak_mb: float | None
    phase_peak_mb: Mapping[str, float]
    high_water_phase: str | None
    samples: int
    missed: int
    energy_j: Mapping[str, float] | None
    reason: str | None


class MemorySampler:
    """Samples a process from entry to exit; see the module for its use.

    Nothing that happens to the process, the driver or ``emit`` is raised: failures are counted, the last one
    is kept.

    Args:
        pid: the worker; its descendants are counted with it.
        emit: takes one row per window: ``t`` (seconds since the epoch, of the last sample), ``phase``,
            ``used_mb`` (the highest), ``mean_mb``, ``lens``, ``n`` (samples); and, where they could be read,
            ``utilisation_percent`` and ``power_w`` (means) and ``host_mb`` (private host memory, beside a
            GPU's). Called from the sampling thread.
        env: the worker's environment, which decides the GPUs it sees; by default this process's.
        hz: samples per second.
        window_s: a row is emitted this often, at each change of phase and at the end.
        levels: GPU memory in use before the worker started (``inventory.device_levels``); by default that of the
            entry.
        nvml: stands in for the module ``pynvml``.
    """

    def __init__(
        self,
        pid: int,
        *,
        emit: Callable[[dict[str, Any]], object],
        env: Mapping[str, str] | None = None,
        hz: float = 20.0,
        window_s: float = 1.0,
        levels: Mapping[str, int] | None = None,
        nvml: Any = None,
    ):
        """Touch nothing; entering starts."""
        self._pid, self._emit, self._period = pid, emit, 1.0 / hz
        self._open = {"env": env, "levels": levels, "nvml": nvml}
        self._account = _Account(window_s)
        self._phase = "prepare"
        self._uuids: tuple[str, ...] = ()
        self._lens: NvmlLens | HostLens = HostLens(pid)
        self._beside: HostLens | None = None
        self._host_pace, self._slow_pace = Pace(), Pace(SLOW_READINGS_S)
        self._held: deque[_Reading] = deque()
        self._changes: deque[tuple[float, str]] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"memory-sampler-{pid}", daemon=True)
        self._started: int | None = None
        self._missed = 0
        self.latest_mb: float | None = None
        self._lens_reason: str | None = None
        self._last_failure: str | None = None

    @property
    def phase(self) -> str:
        """The phase entered last; setting it enters one now."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self.enter(name)

    def enter(self, phase: str | None, at: float | None = None) -> None:
        """The worker has entered a phase.

        Args:
            phase: its name. None, outside every phase, leaves the last one in force: each sample has a phase.
            at: when, in seconds since the epoch; by default now. Samples up to ``SETTLE_S`` old follow it.
        """
        if phase is None:
            return
        self._phase = phase
        self._changes.append((time.time() if at is None else at, phase))

    def use_gpu(self, *uuids: str) -> None:
        """The worker reports the GPUs it computes on (``torch.cuda.get_device_properties(i).uuid``)."""
        self._uuids = uuids
        self._lens.use_gpu(*uuids)

    def summary(self) -> MemorySummary:
        """What was measured so far; complete after exit."""
        with self._lock:
            peaks = self._account.peaks_of_best_lens()
            phase = max(peaks.phase_mb, key=peaks.phase_mb.__getitem__, default=None)
            return MemorySummary(
                lens=peaks.lens,
                peak_mb=None if phase is None else peaks.phase_mb[phase],
                phase_peak_mb=peaks.phase_mb,
                high_water_phase=phase,
                samples=self._account.samples,
                missed=self._missed,
                energy_j=dict(self._account.energy_j) or None,
                reason="; ".join(filter(None, (self._lens_reason, self._last_failure))) or None,
            )

    def __enter__(self) -> Self:
        """Choose the lens and start sampling."""
        self._account.phase = self._phase
        self._started = start_ticks(self._pid)
        try:
            self._lens = NvmlLens(self._pid, **self._open)
            self._beside = HostLens(self._pid)
        except Exception as error:  # an unforeseen driver must not cost the trial its memory figures
            self._lens_reason = str(error) if isinstance(error, LensUnavailable) else f"NVML: {error!r}"
        self._lens.use_gpu(*self._uuids)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take a last sample if the process is still there, and emit what is left."""
        self._stop.set()
        self._thread.join(timeout=10.0)
        if self._thread.is_alive():
            self._last_failure = "the driver did not answer: the sampling thread is stuck"

    def _run(self) -> None:
        due = time.monotonic()
        stopping = False
        while not stopping and self._process_lives():
            stopping = self._stop.is_set()  # asked before sampling: the last sample comes after the stop
            now = time.time()
            self._guarded(self._read, now, stopping)
            self._guarded(self._settle, now - SETTLE_S)
            due = max(due + self._period, time.monotonic())  # late: no burst to catch up
            if not stopping:
                self._stop.wait(due - time.monotonic())
        self._guarded(self._settle, math.inf)
        self._lens.close()

    def _process_lives(self) -> bool:
        return self._started is not None and start_ticks(self._pid) == self._started

    def _guarded(self, step: Callable[..., object], *args: Any) -> None:
        try:
            step(*args)
        except SampleMissed as failure:
            if self._process_lives():  # one that ended between two looks is no failure of the measurement
                self._missed, self._last_failure = self._missed + 1, str(failure)
        except Exception as error:
            self._missed, self._last_failure = self._missed + 1, repr(error)

    def _read(self, now: float, last: bool) -> None:
        full = last or self._slow_pace.due(now)
        if full:
            self._slow_pace.spent(now, 0.0)
        sample = self._lens.sample(now, full=full)
        self.latest_mb = sample.used_mb
        host_mb = None
        if self._beside is not None and (last or self._host_pace.due(now)):
            self._host_pace.spent(now, 0.0)
            try:
                host_mb = self._beside.sample(now).used_mb
            except SampleMissed as failure:
                self._last_failure = str(failure)
        self._held.append(_Reading(sample, host_mb, self._lens.energy_j() if full else None))

    def _settle(self, until: float) -> None:
        """Book the readings up to ``until``, and emit the windows that this completes."""
        with self._lock:
            while self._held and self._held[0].sample.time <= until:
                reading = self._held.popleft()
                while self._changes and self._changes[0][0] <= reading.sample.time:
                    self._account.change_phase(*self._changes.popleft())
                self._account.add(reading)
            if until == math.inf:
                self._account.flush()
            rows, self._account.rows = self._account.rows, []
        for row in rows:
            self._guarded(self._emit, row)


@dataclass(frozen=True)
class _Reading:
    sample: MemorySample
    host_mb: float | None
    energy_j: float | None


@dataclass(frozen=True)
class _Peaks:
    lens: str | None
    phase_mb: dict[str, float]


class _Account:
    """Readings in order of time, booked by phase: peaks, energy, rows. No clock and no I/O of its own."""

    def __init__(self, window_s: float):
        self.window_s = window_s
        self.phase = ""
        self.samples = 0
        self.rows: list[dict[str, Any]] = []
        self.energy_j: dict[str, float] = {}
        self._peak_mb: dict[str, dict[str, float]] = {}  # lens -> phase -> MB
        self._window: list[_Reading] = []
        self._until: float | None = None
        self._spans_s: dict[str, float] = {}  # per phase, since the energy was last known
        self._counter: float | None = None
        self._power: MemorySample | None = None

    def change_phase(self, at: float, phase: str) -> None:
        """Enter ``phase`` at time ``at`` (or as long after it as later readings are booked already)."""
        self._advance(at)
        if phase != self.phase:
            self.flush()
        self.phase = phase

    def add(self, reading: _Reading) -> None:
        """Book one reading on the phase entered last."""
        sample = reading.sample
        self._advance(sample.time)
        first = self._window[0].sample if self._window else sample
        if first.lens != sample.lens or sample.time - first.time >= self.window_s:
            self.flush()
        self._window.append(reading)
        self.samples += 1
        peaks = self._peak_mb.setdefault(sample.lens, {})
        peaks[self.phase] = max(peaks.get(self.phase, 0.0), sample.used_mb)
        self._add_energy(reading)

    def flush(self) -> None:
        """Close the window."""
        if not self._window:
            return
        samples = [reading.sample for reading in self._window]
        row: dict[str, Any] = {
            "t": samples[-1].time,
            "phase": self.phase,
            "used_mb": max(sample.used_mb for sample in samples),
            "mean_mb": _mean([sample.used_mb for sample in samples]),
            "lens": samples[0].lens,
            "n": len(samples),
            "utilisation_percent": _mean([sample.utilisation_percent for sample in samples]),
            "power_w": _mean([sample.power_w for sample in samples]),
            "host_mb": max((r.host_mb for r in self._window if r.host_mb is not None), default=None),
        }
        self.rows.append({key: value for key, value in row.items() if value is not None})
        self._window = []

    def peaks_of_best_lens(self) -> _Peaks:
        """Peaks through one lens: the level of the whole device counts only where the process was never seen.

        Until its first CUDA call the driver does not list a process; it uses no GPU memory then, its
        neighbours may.
        """
        lenses = sorted(self._peak_mb, key=lambda lens: lens == DELTA_LENS)
        return _Peaks(lenses[0], dict(self._peak_mb[lenses[0]])) if lenses else _Peaks(None, {})

    def _advance(self, to: float) -> None:
        if self._until is None:
            self._until = to
        elapsed = to - self._until
        if elapsed > 0:
            self._spans_s[self.phase] = self._spans_s.get(self.phase, 0.0) + elapsed
            self._until = to

    def _add_energy(self, reading: _Reading) -> None:
        """Share out the energy since the last known point by the time spent in each phase since."""
        joules = None
        if reading.energy_j is not None:
            if self._counter is not None:
                joules = reading.energy_j - self._counter
            self._counter = reading.energy_j
        elif reading.sample.power_w is not None and self._counter is None:
            if self._power is not None:
                joules = _integral_j(self._power, reading.sample)
            self._power = reading.sample
        else:
            return
        total = sum(self._spans_s.values())
        if joules is not None and total > 0:
            for phase, span in self._spans_s.items():
                self.energy_j[phase] = self.energy_j.get(phase, 0.0) + joules * span / total
        self._spans_s = {}


def _integral_j(earlier: MemorySample, later: MemorySample) -> float:
    """Energy between two samples of power (trapezoid)."""
    return (later.time - earlier.time) * ((earlier.power_w or 0.0) + (later.power_w or 0.0)) / 2


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
