"""Figures that could not be measured, and why: from the journal to tags and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.base.records import Event

COLUMN = "absent."
"""Before the metric, in the tags of a run and the columns of a table; the value is the reason."""


def told(events: Iterable[Event]) -> dict[str, str]:
    """Metric -> reason, of a trial's events."""
    return {
        str(e.data["absent"]): str(e.data.get("message", "")).partition(": ")[2]
        for e in events
        if e.kind == "note" and e.data.get("absent")
    }


def of_row(row: Mapping[str, object]) -> dict[str, str]:
    """Metric -> reason, of a row of a table of trials."""
    found = {name.removeprefix(COLUMN): why for name, why in row.items() if name.startswith(COLUMN)}
    return {name: why for name, why in found.items() if isinstance(why, str) and why}
