"""Three views of a GPU's memory per phase, and what lies between them. Pure."""

from __future__ import annotations

import pandas as pd

from harness.base import formatting
from harness.base.records import PHASES
from harness.report.leaderboard import value_of

MOST_ROWS = 60
WORDS = """\
*Tensors* are what torch had allocated at its highest, *allocator* what it had reserved for them from the driver,
*process* what the driver saw. Between the first two lie freed blocks that are kept, and fragmentation; between the last
two the CUDA context, kernels and the workspaces of libraries (and neighbours, where the lens is the whole device). Each
is a peak of its own: they need not be of one moment, and the driver is asked 20 times a second, so that a short peak
can escape it."""


def section(frame: pd.DataFrame, kind: str) -> list[str]:
    """A row for each trial and phase; nothing without CUDA."""
    body = []
    for row in frame.to_dict("records"):
        for phase in PHASES:
            views = [value_of(row, f"memory/{phase}{lens}_peak_mb") for lens in ("_allocated", "_reserved", "")]
            if views[0] is not None and views[1] is not None:
                gaps = [_gap(views[1], views[0]), _gap(views[2], views[1])]
                body.append([formatting.escape(row["label"]), phase, *map(formatting.whole, (*views, *gaps))])
    if not body:
        return []
    head = [kind, "phase", "tensors", "allocator", "process", "kept or fragmented", "context and libraries"]
    return ["### Three views of GPU memory (peaks, MB)", WORDS, formatting.table(head, body[:MOST_ROWS], left=2)]


def _gap(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above - below
