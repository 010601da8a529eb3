"""What a trial will compute on, found out without torch and without the driver."""

from __future__ import annotations

import os

from harness.config import identity


def gpu_visible() -> bool:
    """Whether an NVIDIA device node exists and is not hidden; asks neither torch nor the driver."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = mask is not None and mask.strip() in ("", "-1")
    return not hidden and os.path.exists("/dev/nvidiactl")


def compute_device(wanted: str) -> str:
    """What ``runner.device`` comes to, as a trial's process will find it: ``cpu`` or ``cuda``."""
    if wanted != "auto":
        return wanted
    return "cuda" if gpu_visible() and not identity.version_of("torch").endswith("+cpu") else "cpu"
