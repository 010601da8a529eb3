"""A stand-in for the module ``pynvml``: devices, their processes, and drivers that fail."""

from __future__ import annotations

from types import SimpleNamespace

GB = 10**9


class NVMLError(Exception):
    """As ``pynvml.NVMLError``."""


class Gpu:
    """One device of the stand-in."""

    def __init__(self, uuid: str, model: str = "H200", used: int = GB):
        self.uuid, self.model, self.used = uuid, model, used
        self.processes: dict[int, int | None] = {}
        self.utilisation, self.power_mw, self.energy_mj = 50, 300_000, 1_000_000
        self.mig, self.total = 0, 80 * GB


class Driver:
    """A stand-in for the module ``pynvml``; handles die when it is started anew."""

    NVMLError = NVMLError

    def __init__(self, *gpus: Gpu):
        self.gpus = list(gpus)
        self.failing: str | None = None
        self.unsupported: set[str] = set()
        self.open = self.generation = 0

    def nvmlInit(self):  # noqa: N802
        if self.failing:
            raise NVMLError(self.failing)
        self.open += 1
        self.generation += 1

    def nvmlShutdown(self):  # noqa: N802
        if not self.open:
            raise NVMLError("Uninitialized")
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return self.generation, index

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return self._gpu(handle).uuid

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self._gpu(handle).model

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        return [self._gpu(handle).mig, 0]

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(
            used=self._gpu(handle).used,
            total=self._gpu(handle).total,
            free=self._gpu(handle).total - self._gpu(handle).used,
        )

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        processes = self._gpu(handle).processes
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=self._gpu(handle, "utilisation").utilisation)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._gpu(handle, "power").power_mw

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self._gpu(handle, "energy").energy_mj

    def _gpu(self, handle, what=""):
        generation, index = handle
        if self.failing:
            raise NVMLError(self.failing)
        if what in self.unsupported:
            raise NVMLError("Not Supported")
        if generation != self.generation or not self.open:
            raise NVMLError("Invalid Argument")
        return self.gpus[index]
