"""The part ``several`` of ``gpu_check``: a trial is pinned to a GPU, NVML tells devices apart, ranks have one each.

Most machines that this is run on have one GPU. What needs another gets a stand-in for it from ``Another``, a driver
that lists one device more; what only two real ones can show is skipped, with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

UUID = "GPU-00000000-0000-0000-0000-000000000000"
HELD = 10**9
CHILD = """
import sys, torch
held = torch.ones({size} // 4, device="cuda")
found = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
print(" ".join(found), flush=True)
sys.stdin.readline()
"""
"""Holds memory on the GPU that it is shown, and says by UUID which it sees."""


class Another:
    """The module ``pynvml`` with one GPU more, of the same model, and full."""

    def __init__(self, nvml: Any):
        """``nvml``: the module, or a stand-in for it."""
        self._nvml = nvml
        self.NVMLError = nvml.NVMLError

    def __getattr__(self, name: str) -> Any:
        """As the module has it, but for questions about the GPU that is not there."""
        asked = getattr(self._nvml, name)
        told = {
            "nvmlDeviceGetUUID": UUID,
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 10**9, used=79 * 10**9, free=10**9),
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=100),
            "nvmlDeviceGetPowerUsage": 700_000,
            "nvmlDeviceGetTotalEnergyConsumption": 0,
        }
        if name not in told or not callable(asked):
            return asked
        return lambda handle: told[name] if handle == UUID else asked(handle)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """One more."""
        return self._nvml.nvmlDeviceGetCount() + 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        """The last is the stand-in."""
        return UUID if index == self._nvml.nvmlDeviceGetCount() else self._nvml.nvmlDeviceGetHandleByIndex(index)

    def nvmlDeviceGetName(self, handle: Any) -> Any:  # noqa: N802
        """All are of one model, so that CUDA's numbers are NVML's."""
        return self._nvml.nvmlDeviceGetName(self._nvml.nvmlDeviceGetHandleByIndex(0) if handle == UUID else handle)


def real_gpus() -> list[str]:
    """UUIDs of the devices that the driver lists."""
    from harness.telemetry.inventory import listed, started

    nvml = started()
    try:
        return [device.uuid for device in listed(nvml)]
    finally:
        nvml.nvmlShutdown()


def choice(report: Any, nvml: Any, folder: Path) -> None:
    """Of the GPUs of ``nvml`` and a full one beside them, which does a trial take, and which a second one at once?"""
    from harness.runner.gpus import taken

    with taken(1, "cuda", Another(nvml), folder) as first, taken(1, "cuda", Another(nvml), folder) as second:
        chosen = [found.environment.get("CUDA_VISIBLE_DEVICES", "") for found in (first, second)]
    report.check("beside a full GPU a trial takes another one", chosen[0] not in ("", UUID), str(first.said))
    report.check(
        "a second trial at once takes a GPU that no other holds", chosen[1] not in ("", chosen[0]), str(second.said)
    )


def pinned(report: Any, uuid: str, nvml: Any) -> None:
    """A process that is shown one GPU by UUID sees that one alone, and NVML finds its memory there and nowhere else."""
    from harness.telemetry.inventory import device_levels
    from harness.telemetry.nvml import NvmlLens

    env = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid}
    levels = device_levels(Another(nvml))
    command = [sys.executable, "-c", CHILD.format(size=HELD)]
    child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    try:
        seen = [name if name.startswith("GPU-") else f"GPU-{name}" for name in child.stdout.readline().split()]
        report.check(f"CUDA_VISIBLE_DEVICES={uuid} shows that GPU alone", seen == [uuid], str(seen))
        for what, mask in (("pinned", uuid), ("not pinned, until it says which it uses", None)):
            shown = {k: v for k, v in env.items() if k != "CUDA_VISIBLE_DEVICES"} | (
                {"CUDA_VISIBLE_DEVICES": mask} if mask else {}
            )
            lens = NvmlLens(child.pid, env=shown, levels=levels, nvml=Another(nvml))
            if mask is None:
                lens.use_gpu(*seen)
            sample = lens.sample(time.time())
            lens.close()
            right = HELD / 1e6 <= sample.used_mb <= HELD / 1e6 + 2000
            report.check(
                f"of two devices NVML reads the trial's ({what})", right, f"{sample.used_mb:,.0f} MB by {sample.lens}"
            )
    finally:
        child.stdin.close()
        child.wait(30)


def ranks(report: Any, cwd: Path, run: Callable[..., tuple[int, str, list[dict[str, Any]]]], limit_s: float) -> None:
    """Trials of two processes by NCCL, each with a GPU of its own."""
    small = ("model=shape/llama-10m", "train.steps=3", "train.batch_size=8", "train.micro_batch_size=4",
             "task.pairs=64", "task.eval_pairs=8", "task.eval_prompts=8", "eval=none", "train.save=none")  # fmt: skip
    for strategy in ("ddp", "fsdp2"):
        name = f"ranks-{strategy}"
        code, said, results = run(
            ["-m", "algo=dpo", "adapter=full,lora,qlora", "parallel.processes=2", f"parallel.strategy={strategy}",
             f"sweep={name}", *small], cwd, limit_s,
        )  # fmt: skip
        peaks = [[round(r["metrics"].get(f"memory/rank_{k}_peak_mb", 0)) for k in (0, 1)] for r in results]
        finished = len(results) == 3 and all(r["outcome"] == "finished" for r in results)
        report.check(
            f"two processes train by {strategy}",
            finished,
            f"exit {code}, MB of each rank {peaks} {'' if finished else said[-300:]!r}",
        )
        alike = bool(peaks) and all(0 < min(pair) and max(pair) < 2.5 * min(pair) for pair in peaks)
        report.check(f"each rank's memory is read on its own GPU ({strategy})", alike, str(peaks))


def at_once(report: Any, cwd: Path, run: Callable[..., tuple[int, str, list[dict[str, Any]]]], limit_s: float) -> None:
    """Two trials beside each other take different GPUs, and say which."""
    code, said, results = run(
        ["-m", "algo=dpo,ipo", "model=shape/llama-10m", "train.steps=3", "task.pairs=64", "eval=none",
         "train.save=none", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep=at-once"], cwd, limit_s,
    )  # fmt: skip
    journals = (cwd / "outputs" / "at-once").glob("*/runner.jsonl")
    events = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    taken = [str(event["mask"]) for event in events if event["kind"] == "gpus"]
    report.check(
        "two trials at once finish", code == 0, f"{len(results)} results, {said[-200:]!r}" if code else str(taken)
    )
    report.check("each says which GPU it took, and they differ", len(taken) == len(set(taken)) == 2, str(taken))


def several(report: Any, cwd: Path, run: Callable[..., tuple[int, str, list[dict[str, Any]]]], limit_s: float) -> None:
    """The whole part."""
    import pynvml

    report.say("\n## Several GPUs\n")
    uuids = real_gpus()
    report.say(f"- the driver lists {len(uuids)}: {', '.join(uuids)}; one more, full, is a stand-in where it says so")
    choice(report, pynvml, cwd / "locks")
    for uuid in uuids:
        pinned(report, uuid, pynvml)
    if len(uuids) < 2:
        report.skip(
            "trials at once on GPUs of their own, and ranks by NCCL", f"needs two GPUs, and here is {len(uuids)}"
        )
        return
    at_once(report, cwd, run, limit_s)
    ranks(report, cwd, run, limit_s)
