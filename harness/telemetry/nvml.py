"""GPU memory of a process tree, read from the driver through NVML.

The figure wanted is the memory of the worker itself (lens ``nvml_process``): what the allocator reserved,
plus the CUDA context and library workspaces that ``torch.cuda`` does not know of. Where the driver does not
tell it (inside a container the driver lists pids of the host, or lists ours without its memory; under WSL
never), the level of the whole device minus its level at the start stands in (``nvml_device_delta``),
neighbours on the device included.

NVML numbers devices by PCI bus, CUDA by speed unless CUDA_DEVICE_ORDER=PCI_BUS_ID. The two agree where all
devices are of one model. Elsewhere an index names no device for sure, and only a UUID does: one in
CUDA_VISIBLE_DEVICES, one that the worker reports, or that of the device where the driver lists the worker.
Until one is known the device level is not taken for the worker's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from harness.base.records import MemorySample
from harness.telemetry.host import MB, Pace, SampleMissed, process_tree
from harness.telemetry.inventory import (
    LensUnavailable,
    bare,
    levels_of,
    listed,
    refuse_mig,
    said,
    shows_none,
    started,
    visible_gpus,
)

PROCESS_LENS = "nvml_process"
DELTA_LENS = "nvml_device_delta"


class NvmlLens:
    """GPU memory, power and utilisation of a process and its descendants.

    Args:
        pid: the worker.
        env: the worker's environment; by default this process's.
        levels: bytes in use per UUID before the worker started (``device_levels``); by default those of now.
        nvml: the module ``pynvml`` or a stand-in for it.

    Raises:
        LensUnavailable: no driver, no visible GPU, or one that cannot be read.
    """

    def __init__(
        self,
        pid: int,
        *,
        env: Mapping[str, str] | None = None,
        levels: Mapping[str, int] | None = None,
        nvml: Any = None,
    ):
        """Open the driver."""
        env = os.environ if env is None else env
        if env.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # a trial on the CPU needs no driver
            raise LensUnavailable(shows_none(env["CUDA_VISIBLE_DEVICES"]))
        self._pid = pid
        self._nvml = started(nvml)
        try:
            devices = listed(self._nvml)
            visible = visible_gpus(devices, env)
            refuse_mig(self._nvml, [device for device in devices if device.uuid in visible.uuids])
            self._levels = {**levels_of(self._nvml, devices), **(levels or {})}
        except BaseException:
            self.close()
            raise
        self._handles = {device.uuid: device.handle for device in devices}
        self._candidates, self._certain = tuple(visible.uuids), visible.certain
        self._watched = self._candidates[:1]
        self._process_seen = self._broken = False
        self._tree: set[int] = {pid}
        self._tree_pace, self._recovery_pace = Pace(), Pace()
        self._counters_mj: dict[str, int] = {}
        self._energy_mj: int | None = None
        self._told: frozenset[str] = frozenset()

    def use_gpu(self, *uuids: str) -> None:
        """Look at these GPUs only, as the worker itself named them.

        Args:
            *uuids: ``str(torch.cuda.get_device_properties(i).uuid)``, with or without ``GPU-`` first. A UUID
                that the driver does not list changes nothing.
        """
        self._told = frozenset(bare(uuid) for uuid in uuids)  # applied by the sampling thread

    def sample(self, now: float, *, full: bool = True) -> MemorySample:
        """Read the memory in use.

        Args:
            now: seconds since the epoch, the sample's time.
            full: read utilisation and power as well.

        Raises:
            SampleMissed: the driver failed, or does not say what would be needed; the next sample may
                succeed.
        """
        try:
            self._recover(now)
            self._heed_worker()
            if self._tree_pace.due(now):
                self._tree_pace.spent(now, 0.0)
                self._tree = {self._pid, *process_tree(self._pid)}
                self._follow_process()
            used, lens = self._used_bytes()
        except (self._nvml.NVMLError, LensUnavailable) as error:
            self._broken = True
            raise SampleMissed(said(error)) from error
        if not full:
            return MemorySample(time=now, used_mb=used / MB, lens=lens)
        rates = self._optional(self._nvml.nvmlDeviceGetUtilizationRates)
        power_mw = self._optional(self._nvml.nvmlDeviceGetPowerUsage)
        return MemorySample(
            time=now,
            used_mb=used / MB,
            lens=lens,
            utilisation_percent=sum(rate.gpu for rate in rates) / len(rates) if rates else None,
            power_w=sum(power_mw) / 1e3 if power_mw else None,
        )

    def energy_j(self) -> float | None:
        """Joules of the watched devices since the first call; None without a counter (before Volta)."""
        for uuid in self._watched:
            with suppress(self._nvml.NVMLError, KeyError):
                counter = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handles[uuid])
                # A counter that fell was reset with the driver: what it held before is lost, not negative.
                gained = max(0, counter - self._counters_mj.get(uuid, counter))
                self._counters_mj[uuid] = counter
                self._energy_mj = (self._energy_mj or 0) + gained
        return None if self._energy_mj is None else self._energy_mj / 1e3

    def close(self) -> None:
        """Close the driver."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _used_bytes(self) -> tuple[int, str]:
        listed = [used for uuid in self._watched for used in self._process_bytes(uuid)]
        # A process with a context holds memory: 0 for one never seen with any is as good as an absent figure.
        if any(listed):
            self._process_seen = True
        if not self._process_seen:
            return self._delta_bytes(), DELTA_LENS
        told = [used for used in listed if used is not None]
        if len(told) < len(listed):
            raise SampleMissed("NVML: the process is listed without its memory")
        return sum(told), PROCESS_LENS  # not listed any more: it has let go of its context

    def _process_bytes(self, uuid: str) -> list[int | None]:
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle(uuid))
        return [process.usedGpuMemory for process in processes if process.pid in self._tree]

    def _delta_bytes(self) -> int:
        if not self._certain:
            raise SampleMissed(
                "GPUs of several models: which one the worker uses is not known until it reports a UUID"
                " (or set CUDA_DEVICE_ORDER=PCI_BUS_ID)"
            )
        total = 0
        for uuid in self._watched:
            if uuid not in self._levels:
                raise SampleMissed(f"NVML: the level of {uuid} at the start is not known")
            total += max(0, self._nvml.nvmlDeviceGetMemoryInfo(self._handle(uuid)).used - self._levels[uuid])
        return total

    def _heed_worker(self) -> None:
        known = tuple(uuid for uuid in self._handles if bare(uuid) in self._told)
        if known and known != self._candidates:
            self._candidates, self._watched, self._certain = known, known, True

    def _follow_process(self) -> None:
        """Watch the devices where the process is listed; the first visible one until it is."""
        if len(self._candidates) > 1:
            holding = tuple(uuid for uuid in self._candidates if self._process_bytes(uuid))
            if holding:
                self._watched, self._certain = holding, True

    def _recover(self, now: float) -> None:
        """After an error start the driver anew, at most once a second: handles do not outlive a reset."""
        if not self._broken:
            return
        if self._recovery_pace.due(now):
            self._recovery_pace.spent(now, 0.0)
            self.close()
            self._nvml.nvmlInit()
            self._handles = {device.uuid: device.handle for device in listed(self._nvml)}
        self._broken = False

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            self._broken = True
            raise SampleMissed(f"NVML: the driver lists {uuid} no more")
        return self._handles[uuid]

    def _optional(self, read: Callable[[Any], Any]) -> list[Any]:
        """One value per watched device; empty where one of them does not tell."""
        try:
            return [read(self._handle(uuid)) for uuid in self._watched]
        except (self._nvml.NVMLError, SampleMissed):
            return []
