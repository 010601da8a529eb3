"""What the C library does with freed memory, in a trial's process.

glibc gives a large freed block back to the kernel at once and asks for it again, zeroed page by page, at the next
step: a million page faults in a minute of training on a CPU. Holding on to what a step will ask for again makes it
about a fifth faster at the same peak (docs/architecture.md has the figures). Between two phases all of it is
given back, so that no phase is charged for what an earlier one left.

Elsewhere than on glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MMAP_ABOVE = 32 * 2**20  # where glibc's own adaptive threshold ends
TRIM_ABOVE = 128 * 2**20


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def hold_freed_memory() -> bool:
    """Keep freed blocks below 32 MiB for the next step; whether this C library can."""
    library = _glibc()
    if library is None:
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MMAP_ABOVE) and library.mallopt(M_TRIM_THRESHOLD, TRIM_ABOVE))


def give_back() -> None:
    """Return all freed memory to the kernel."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
