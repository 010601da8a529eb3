"""A step, by what the tracker counts of it and by what its process grows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from harness.trial.heap import M_MMAP_THRESHOLD, _glibc, give_back


def start() -> None:
    """Of a measuring process: one thread, and blocks above 64 KiB are the kernel's again once freed."""
    import torch

    torch.set_num_threads(1)
    library = _glibc()
    assert library is not None and library.mallopt(M_MMAP_THRESHOLD, 64 * 1024)


@contextmanager
def from_the_first_step() -> Iterator[dict[str, float]]:
    """Within it what was there when a trainer begins is noted, for ``grown``."""
    from harness.rehearsal.watch import Steady
    from harness.telemetry.host import reset_peak, resident_bytes

    seen: dict[str, float] = {}
    begin = Steady.on_train_begin

    def begun(self: Steady, *args: Any, **options: Any) -> None:
        gc.collect()
        give_back()
        assert reset_peak()
        seen["resident"] = resident_bytes("self") or 0
        seen["counted"] = sum(self.tracker.live.values())
        seen["from"] = len(self.tracker.timeline().records)
        begin(self, *args, **options)

    with patch.object(Steady, "on_train_begin", begun):
        yield seen


def grown(timeline: Any, seen: dict[str, float]) -> tuple[float, float]:
    """From that moment to the end of the step: bytes by the tracker, and resident."""
    from harness.telemetry.host import peak_resident_bytes

    counted = timeline.records[int(seen["from"]) :].sum(axis=1).max()
    return counted - seen["counted"], (peak_resident_bytes("self") or 0) - seen["resident"]
