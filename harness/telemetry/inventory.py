"""The GPUs of this machine, as NVML lists them and as CUDA shows them to an environment.

NVML numbers devices by PCI bus, CUDA by speed unless CUDA_DEVICE_ORDER=PCI_BUS_ID. The two agree where all
devices are of one model. Elsewhere an index names no device for sure, and only a UUID does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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
        raise LensUnavailable(shows_none(mask))
    return Visible(list(dict.fromkeys(uuids)) if certain else everything, certain)


def device_levels(nvml: Any = None) -> dict[str, int]:
    """Bytes in use on every GPU by UUID, to be taken before a worker starts; empty without a driver."""
    try:
        nvml = started(nvml)
    except LensUnavailable:
        return {}
    try:
        return levels_of(nvml, listed(nvml))
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
        nvml = started(nvml)
    except LensUnavailable:
        return None
    try:
        devices = listed(nvml)
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


def by_free_memory(env: Mapping[str, str], nvml: Any = None) -> list[str]:
    """The UUIDs of the GPUs that CUDA shows to this environment, those with most memory free first.

    Empty without a GPU, of slices (MIG), and where a mask names GPUs of several models by numbers that are CUDA's own.
    """
    try:
        nvml = started(nvml)
    except LensUnavailable:
        return []
    try:
        devices = listed(nvml)
        visible = visible_gpus(devices, env)
        if not visible.certain and env.get("CUDA_VISIBLE_DEVICES") is not None:
            return []
        refuse_mig(nvml, [device for device in devices if device.uuid in visible.uuids])
        handles = {device.uuid: device.handle for device in devices}
        free = {uuid: int(nvml.nvmlDeviceGetMemoryInfo(handles[uuid]).free) for uuid in visible.uuids}
        return sorted(free, key=lambda uuid: -free[uuid])
    except (LensUnavailable, nvml.NVMLError):
        return []
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


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


def started(nvml: Any = None) -> Any:
    """The driver's module, opened; whoever opens it closes it.

    Raises:
        LensUnavailable: there is none, or no driver.
    """
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError as error:
            raise LensUnavailable("pynvml is missing: pip install nvidia-ml-py") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise LensUnavailable(said(error)) from error
    return nvml


def listed(nvml: Any) -> list[Device]:
    """All devices of the machine but those that are lost.

    Raises:
        LensUnavailable: the driver does not say how many there are.
    """
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise LensUnavailable(said(error)) from error
    devices = []
    for index in range(count):
        with suppress(nvml.NVMLError):  # a lost device must not hide the others
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, model = (_text(read(handle)) for read in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
            devices.append(Device(uuid, model, handle))
    return devices


def levels_of(nvml: Any, devices: Sequence[Device]) -> dict[str, int]:
    """Bytes in use on each, by UUID."""
    levels = {}
    for device in devices:
        with suppress(nvml.NVMLError):
            levels[device.uuid] = nvml.nvmlDeviceGetMemoryInfo(device.handle).used
    return levels


def _named(entry: str, uuids: Sequence[str]) -> str | None:
    """The one UUID that an entry such as ``GPU-1a2b`` begins."""
    found = [uuid for uuid in uuids if bare(uuid).startswith(bare(entry))]
    return found[0] if entry.lower().startswith("gpu-") and len(found) == 1 else None


def shows_none(mask: str) -> str:
    """What is said of a mask that shows no GPU."""
    return f"CUDA_VISIBLE_DEVICES={mask!r} shows no GPU"


def said(error: Exception) -> str:
    """A failure of the driver in one line."""
    return str(error) if isinstance(error, LensUnavailable) else f"NVML: {error}"


def bare(uuid: str) -> str:
    """A UUID without what it begins with, as torch tells it."""
    return uuid.lower().removeprefix("gpu-")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
