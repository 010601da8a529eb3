"""The worker's own account of its phases: seconds and true memory peaks, kept inside the worker.

The sampler sees memory 20 times a second; a peak of the allocator lasts milliseconds. The kernel (``VmHWM``)
and torch's allocator both remember their highest level since they were last told to forget it, so telling
them at every change of phase gives each phase its true peak.

Price of a change of phase, measured (2 cores, a process of 1.1 GB with torch, transformers and trl loaded):
24 us, without what ``emit`` does; two changes per rollout, so hundreds of rollouts cost milliseconds.
``smaps_rollup`` (15 ms there) is read at most once a second and for at most 0.5 % of the time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.base.records import PHASES
from harness.telemetry.host import MB, Pace, SharedPart, children, peak_resident_bytes, reset_peak


@dataclass(frozen=True)
class PhasePeak:
    """Highest memory within one phase, in MB (10^6 bytes); None where it cannot be measured.

    Attributes:
        host_peak_mb: private resident memory of the worker itself, its children left out: the highest
            resident level minus the part shared with the forkserver, as last measured. That part shrinks as
            pages are copied on write: off by at most what was copied between the peak and the measurement.
        allocated_peak_mb: CUDA tensors; over several devices the sum of each one's peak.
        reserved_peak_mb: what torch's allocator held on CUDA devices; over several devices likewise.
    """

    host_peak_mb: float | None = None
    allocated_peak_mb: float | None = None
    reserved_peak_mb: float | None = None

    def higher(self, other: PhasePeak) -> PhasePeak:
        """The higher of two peaks, measure by measure."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return PhasePeak(*(max((mb for mb in pair if mb is not None), default=None) for pair in pairs))


class PhaseClock:
    """Gives every second and every peak to exactly one phase.

    Entering a phase inside another suspends the outer one until the inner one is left. Time outside every
    phase is counted nowhere.

    Args:
        emit: called as ``emit("phase", data)`` at each change, with ``name`` (None outside every phase),
            ``previous``, and, about the stretch of ``previous`` that ended, ``previous_s`` and the peaks that
            could be measured.
    """

    def __init__(self, emit: Callable[[str, Mapping[str, Any]], object]):
        """Start outside every phase."""
        self._emit = emit
        self._current: str | None = None
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, PhasePeak] = {}
        self._shared = SharedPart("self")
        self._shared_pace = Pace()
        self._peak_resets = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spend the body in phase ``name``.

        Raises:
            ValueError: ``name`` is not one of ``harness.base.records.PHASES``.
        """
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is not one of {', '.join(PHASES)}")
        outer = self._current
        try:
            self._switch(name)
            yield
        finally:
            self._switch(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds per phase entered so far, the running one included."""
        seconds = dict(self._seconds)
        if self._current is not None:
            seconds[self._current] = seconds.get(self._current, 0.0) + time.perf_counter() - self._since
        return seconds

    def peaks(self) -> dict[str, PhasePeak]:
        """Highest memory per phase entered so far, the running one included."""
        peaks = dict(self._peaks)
        if self._current is not None:
            peaks[self._current] = peaks.get(self._current, PhasePeak()).higher(self._read_peak())
        return peaks

    def _switch(self, name: str | None) -> None:
        previous = self._current
        if name == previous:
            return
        now = time.perf_counter()
        data: dict[str, Any] = {"name": name, "previous": previous}
        if previous is not None:
            peak = self._read_peak()
            self._peaks[previous] = self._peaks.get(previous, PhasePeak()).higher(peak)
            self._seconds[previous] = self._seconds.get(previous, 0.0) + now - self._since
            data["previous_s"] = now - self._since
            data.update((measure, mb) for measure, mb in vars(peak).items() if mb is not None)
        self._current, self._since = name, now
        self._forget_peak()
        self._emit("phase", data)

    def _read_peak(self) -> PhasePeak:
        allocated, reserved = _cuda_peak_bytes()
        return PhasePeak(self._host_peak_mb(), _mb(allocated), _mb(reserved))

    def _host_peak_mb(self) -> float | None:
        if not self._peak_resets:  # a high-water mark of the whole life tells nothing about one phase
            return None
        self._measure_shared()
        highest = peak_resident_bytes()
        if highest is None or self._shared.shared_bytes is None:
            return None
        return max(0, highest - self._shared.shared_bytes) / MB

    def _forget_peak(self) -> None:
        self._peak_resets = reset_peak()
        if cuda := _cuda():
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)

    def _measure_shared(self) -> None:
        now = time.perf_counter()
        if self._shared_pace.due(now):
            before = time.thread_time()
            self._shared.measure(alone=not children(os.getpid()))
            self._shared_pace.spent(now, time.thread_time() - before)


def _cuda() -> Any:
    """``torch.cuda`` where in use; asking must neither import torch nor create a context."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _cuda_peak_bytes() -> tuple[int | None, int | None]:
    cuda = _cuda()
    if cuda is None:
        return None, None
    # max_memory_allocated() and max_memory_reserved() would each flatten all of these statistics first.
    stats = [cuda.memory_stats_as_nested_dict(device) for device in range(cuda.device_count())]
    return _total_peak(stats, "allocated_bytes"), _total_peak(stats, "reserved_bytes")


def _total_peak(stats: list[dict[str, Any]], kind: str) -> int:
    return sum(device[kind]["all"]["peak"] for device in stats)


def _mb(size: int | None) -> float | None:
    return None if size is None else size / MB
