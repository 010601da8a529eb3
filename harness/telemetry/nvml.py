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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from harness.base.records import MemorySample
from harness.telemetry.host import MB, Pace, SampleMissed, process_tree

PROCESS_LENS = "nvml_process"
DELTA_LENS = "nvml_device_delta"


NO_SLICES = "MIG slices are not supported by this lens, torch's own figures stand in"


class LensUnavailable(Exception):
    """There is nothing to look at through this lens; the message says why."""


@dataclass(frozen=True)
class Device:
    """One GPU as NVML numbers it.

    Attributes:
        uuid: its UUID, ``GPU-`` first.
        model: its name, such as ``NVIDIA H200``.
        handle: what NVML calls take.
    """

    uuid: str
    model: str
    handle: Any


@dataclass(frozen=True)
class Visible:
    """The GPUs that a process may use.

    Attributes:
        uuids: in CUDA's order where ``certain``, else those it may be.
        certain: whether CUDA's numbering is known.
    """

    uuids: Sequence[str]
    certain: bool


def visible_gpus(devices: Sequence[Device], env: Mapping[str, str]) -> Visible:
    """The devices that CUDA shows to a process with this environment.

    As CUDA does, an entry of CUDA_VISIBLE_DEVICES that names no device ends the list.

    Args:
        devices: all devices of the machine, in NVML's order.
        env: the environment of the process.

    Raises:
        LensUnavailable: no GPU is visible, or a MIG slice is asked for.
    """
    by_index = env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({device.model for device in devices}) < 2
    everything = [device.uuid for device in devices]
    mask = env.get("CUDA_VISIBLE_DEVICES")
    if not devices:
        raise LensUnavailable("the driver lists no GPU")
    if mask is None:
        return Visible(everything, certain=by_index or len(devices) == 1)
    uuids: list[str] = []
    certain = True
    for entry in (part.strip() for part in mask.split(",")):
        if entry.upper().startswith("MIG-"):
            raise LensUnavailable(f"CUDA_VISIBLE_DEVICES={mask}: {NO_SLICES}")
        if entry.isdecimal() and int(entry) < len(everything):
            uuids.append(everything[int(entry)])
            certain = certain and by_index
        elif (named := _named(entry, everything)) is not None:
            uuids.append(named)
        else:
            break
    if not uuids:
        raise LensUnavailable(_shows_none(mask))
    return Visible(list(dict.fromkeys(uuids)) if certain else everything, certain)


def device_levels(nvml: Any = None) -> dict[str, int]:
    """Bytes in use on every GPU by UUID, to be taken before a worker starts; empty without a driver."""
    try:
        nvml = _started(nvml)
    except LensUnavailable:
        return {}
    try:
        return _levels(nvml, _devices(nvml))
    except LensUnavailable:
        return {}
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def first_visible(env: Mapping[str, str] | None = None, nvml: Any = None) -> tuple[str, int] | None:
    """Name and memory in bytes of the first GPU that CUDA shows to this environment.

    Of a sliced GPU (MIG) it is the slice that CUDA shows. None without one, and where CUDA's numbering of several
    models is not known.
    """
    try:
        nvml = _started(nvml)
    except LensUnavailable:
        return None
    try:
        devices = _devices(nvml)
        env = os.environ if env is None else env
        if (name := env.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()).upper().startswith("MIG-"):
            return _slice(nvml, devices, name)
        visible = visible_gpus(devices, env)
        if not visible.certain:
            return None
        device = next(d for d in devices if d.uuid == visible.uuids[0])
        if _sliced(nvml, device):
            return _slice(nvml, [device])
        return device.model, int(nvml.nvmlDeviceGetMemoryInfo(device.handle).total)
    except (LensUnavailable, nvml.NVMLError):
        return None
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


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
            raise LensUnavailable(_shows_none(env["CUDA_VISIBLE_DEVICES"]))
        self._pid = pid
        self._nvml = _started(nvml)
        try:
            devices = _devices(self._nvml)
            visible = visible_gpus(devices, env)
            refuse_mig(self._nvml, [device for device in devices if device.uuid in visible.uuids])
            self._levels = {**_levels(self._nvml, devices), **(levels or {})}
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
        self._told = frozenset(_bare(uuid) for uuid in uuids)  # applied by the sampling thread

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
            raise SampleMissed(_said(error)) from error
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
        known = tuple(uuid for uuid in self._handles if _bare(uuid) in self._told)
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
            self._handles = {device.uuid: device.handle for device in _devices(self._nvml)}
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


def refuse_mig(nvml: Any, devices: Iterable[Device]) -> None:
    """The driver lists no process of a slice with its memory, and a device's level is that of all its slices.

    Raises:
        LensUnavailable: one of ``devices`` is sliced.
    """
    for device in devices:
        if _sliced(nvml, device):
            raise LensUnavailable(f"{device.uuid} is sliced by MIG: {NO_SLICES}")


def _sliced(nvml: Any, device: Device) -> bool:
    with suppress(nvml.NVMLError):  # not supported: not a device that can be sliced
        return bool(nvml.nvmlDeviceGetMigMode(device.handle)[0])
    return False


def _slice(nvml: Any, devices: Sequence[Device], uuid: str | None = None) -> tuple[str, int] | None:
    """Name and memory in bytes of a slice: the one of this UUID, or the first that there is; None without it."""
    for device in devices:
        if not _sliced(nvml, device):
            continue
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device.handle)):
            with suppress(nvml.NVMLError):  # this place is not taken
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(device.handle, index)
                if uuid is None or _text(nvml.nvmlDeviceGetUUID(handle)).lower() == uuid.lower():
                    return f"MIG slice of {device.model}", int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return None


def _started(nvml: Any) -> Any:
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError as error:
            raise LensUnavailable("pynvml is missing: pip install nvidia-ml-py") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise LensUnavailable(_said(error)) from error
    return nvml


def _devices(nvml: Any) -> list[Device]:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise LensUnavailable(_said(error)) from error
    devices = []
    for index in range(count):
        with suppress(nvml.NVMLError):  # a lost device must not hide the others
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, model = (_text(read(handle)) for read in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
            devices.append(Device(uuid, model, handle))
    return devices


def _levels(nvml: Any, devices: Sequence[Device]) -> dict[str, int]:
    levels = {}
    for device in devices:
        with suppress(nvml.NVMLError):
            levels[device.uuid] = nvml.nvmlDeviceGetMemoryInfo(device.handle).used
    return levels


def _named(entry: str, uuids: Sequence[str]) -> str | None:
    """The one UUID that an entry such as ``GPU-1a2b`` begins."""
    found = [uuid for uuid in uuids if _bare(uuid).startswith(_bare(entry))]
    return found[0] if entry.lower().startswith("gpu-") and len(found) == 1 else None


def _shows_none(mask: str) -> str:
    return f"CUDA_VISIBLE_DEVICES={mask!r} shows no GPU"


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, LensUnavailable) else f"NVML: {error}"


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
