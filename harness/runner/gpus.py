"""Which GPUs a trial takes on a host that has several, where no scheduler has given it any.

A trial sees as many GPUs as it has processes: a trainer that sees more spreads its batches over all of them. Trials of
this user do not take each other's: a GPU is held by a lock on a file, which the kernel lets go of with its holder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.telemetry.inventory import by_free_memory


@dataclass(frozen=True)
class Taken:
    """The GPUs of a trial.

    Attributes:
        environment: what makes CUDA show them and no others; empty where the trial has what it was given.
        said: which they are, in words; None where there was no choice.
    """

    environment: Mapping[str, str]
    said: str | None = None


@contextmanager
def taken(processes: int, device: str, driver: Any = None, folder: Path | None = None) -> Iterator[Taken]:
    """Hold ``processes`` of the visible GPUs, for as long as the context lasts.

    Those that no other trial holds come first, and among them those with most memory free. Where there are too few,
    trials share.

    Args:
        processes: how many the trial needs.
        device: what it computes on, ``cpu`` or ``cuda``.
        driver: stands in for the module ``pynvml``.
        folder: of the locks; by default this user's.
    """
    from filelock import FileLock, Timeout

    free = by_free_memory(os.environ, driver) if device != "cpu" else []
    if len(free) <= processes:
        yield Taken({})
        return
    folder = folder or Path(tempfile.gettempdir()) / f"harness-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine: list[str] = []
    with ExitStack() as locks:
        for uuid in free:
            if len(mine) == processes:
                break
            try:
                locks.enter_context(FileLock(folder / uuid, timeout=0))
            except Timeout:
                continue
            mine.append(uuid)
        shared = [uuid for uuid in free if uuid not in mine][: processes - len(mine)]
        chosen = [*mine, *shared]
        with_others = f", {len(shared)} of them" if shared and mine else ""
        said = (
            f"takes {len(chosen)} of {len(free)} visible GPUs: {', '.join(chosen)}"
            + (f" (shared with other trials{with_others})" if shared else "")
        )  # fmt: skip
        yield Taken({"CUDA_VISIBLE_DEVICES": ",".join(chosen)}, said)
