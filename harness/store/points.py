"""The points of a trial's series, from its journals: what MLflow's charts show, and a report from a folder. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.base.records import Event
from harness.store import journal

AT_THE_END = ("delta/", "memory/", "time/", "energy/")
"""Figures that are known when all attempts are; from ``result.json``."""
SYSTEM_NAMES = {
    "private": {"used_mb": "system/system_memory_usage_megabytes"},
    "gpu": {
        "used_mb": "system/gpu_0_memory_usage_megabytes",
        "utilisation_percent": "system/gpu_0_utilization_percentage",
        "power_w": "system/gpu_0_power_usage_watts",
        "host_mb": "system/system_memory_usage_megabytes",
    },
}
"""MLflow's own names of what a sample says, by its lens."""


class Point(NamedTuple):
    """A value of a series, at a time in seconds since the epoch."""

    name: str
    value: float
    time: float
    step: int


def points_of(worker: Sequence[Event], runner: Sequence[Event], samples: int = 0) -> Iterator[Point]:
    """Points in the order of their events; ``samples`` of the memory series were given before."""
    for event in sorted([*worker, *runner], key=lambda e: e.time):
        if event.kind in journal.WITH_VALUES:
            for name, value in event.data["values"].items():
                if (number := journal.number(value)) is not None and not name.startswith(AT_THE_END):
                    yield Point(name, number, event.time, int(event.data.get("step", 0)))
        elif event.kind == "sample":
            for key, name in SYSTEM_NAMES["private" if event.data["lens"] == "private" else "gpu"].items():
                if (number := journal.number(event.data.get(key))) is not None:
                    yield Point(name, number, event.data["t"], samples)
            samples += 1
