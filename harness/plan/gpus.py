"""GPUs by name or size, and what a trial needs of one beyond its tensors. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.telemetry.inventory import first_visible

GB = 10**9
MIB = 2**20

KNOWN = {
    "t4": 15_360, "v100-16gb": 16_384, "v100-32gb": 32_768, "rtx3090": 24_576, "rtx4090": 24_564, "rtx5090": 32_607,
    "l4": 23_034, "a10": 23_028, "a10g": 23_028, "l40s": 46_068, "rtxa6000": 49_140, "a100-40gb": 40_960,
    "a100-80gb": 81_920, "a100": 81_920, "h100": 81_559, "h200": 143_771, "b200": 183_359,
}  # fmt: skip
"""Name -> memory in MiB, as the driver reports it with error correction as it is by default."""
DRIVERS_OWN = 768 * MIB
"""Of that, what the driver keeps and CUDA never shows. Not measured here: the difference to the "total capacity" in
torch's out-of-memory messages, as users report them, is 0.35 GiB (RTX 4090: 23.64 GiB), 0.44 (T4: 14.56), 0.46 (L40S:
44.53), 0.47 (RTX 5090: 31.37), 0.5 (RTX 3090: 23.50; A100: 39.50), 0.54 (H100: 79.11), 0.75 (A100: 79.25); the largest
is taken."""

CONTEXT_BYTES = 800 * 10**6
"""CUDA context with the kernels that a trial loads. Measured on an H100 (CUDA 13.0, torch 2.11): 640 MB at the first
tensor, 749 to 805 MB after training; older cards and drivers take less."""
WORKSPACE_BYTES = 32 * MIB
"""Of cuBLAS, for each thread that multiplies matrices: one until something is differentiated, then two. torch allocates
them like tensors, of this size since Hopper (measured to the byte) and 8 MiB before."""
FRAGMENTED = 0.05
"""Share of the tensors' bytes that torch's allocator reserves beside them. On an H100: 2 to 7 % from 1 GB on."""

TRANSIENT, HEAP = ("activations", "logits", "kv_cache"), 2.0
"""Without a GPU, what comes and goes in each step, and how much of the heap it holds for each live byte: batches of
changing lengths leave holes, and glibc keeps what was freed. Measured 1.2 to 3.9, mostly 1.7 to 2.6."""
PROCESS_BYTES = 80_000_000
"""Private memory of a trial's process before its first tensor, libraries' buffers included; measured 75 to 95 MB."""


@dataclass(frozen=True)
class Gpu:
    """A GPU to fit into.

    Attributes:
        name: as the user wrote it, or as the driver says.
        bytes: of its memory, those that a process can have.
    """

    name: str
    bytes: int

    def fits(self, tensors: float) -> bool:
        """Whether a trial with this peak of live tensors fits."""
        return needed(tensors) <= self.bytes


def needed(tensors: float) -> float:
    """Bytes of a GPU that a trial takes at a peak of live tensors: these, fragmentation, and the context."""
    return tensors * (1 + FRAGMENTED) + CONTEXT_BYTES


def resident(owners: Mapping[str, float]) -> float:
    """Bytes of host memory that a trial without a GPU takes at a level of live tensors, given by owner."""
    return sum(size * (HEAP if owner in TRANSIENT else 1) for owner, size in owners.items()) + PROCESS_BYTES


def gpu_of(text: str) -> Gpu:
    """A GPU by name (``h100``), less what its driver keeps, or by size (``24GB``), which is taken as it stands.

    Raises:
        UserError: neither; the known names are told.
    """
    name = re.sub(r"[\s_]", "", text.lower())
    if name in KNOWN:
        return Gpu(text, KNOWN[name] * MIB - DRIVERS_OWN)
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(gib|gb|g)", name)
    if size and float(size.group(1)) > 0:
        return Gpu(text, int(float(size.group(1)) * (2**30 if size.group(2) == "gib" else GB)))
    sized = f"--gpu {name}GB" if re.fullmatch(r"\d+(\.\d+)?", name) and float(name) > 0 else "a size such as 24GB"
    raise UserError("no such GPU", key="--gpu", value=text, fix=f"{sized}, or one of {', '.join(KNOWN)}")


def gpu_present() -> Gpu | None:
    """The first GPU that CUDA would show, asked of the driver and less what that keeps; None without one."""
    found = first_visible()
    return None if found is None else Gpu(found[0], found[1] - DRIVERS_OWN)
