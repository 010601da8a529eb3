"""The texts of a trial's row, each declared once: its name in the table and as MLflow's tag, and where it comes from.

What an attempt is about (``trial.json``) is a tag from the run's first moment on; what the worker or the runner finds
out becomes one with the journal's event. A row from a folder and one from MLflow read the same declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base.records import Event


@dataclass(frozen=True)
class Column:
    """A text of a row.

    Attributes:
        name: of the column, and of the tag.
        about: its value from what an attempt is about; None where an event tells.
        event: the kind of event that tells.
        field: of the event.
    """

    name: str
    about: Callable[[Mapping[str, Any]], Any] | None = None
    event: str | None = None
    field: str = ""


def _group(name: str) -> Column:
    return Column(name, lambda trial: (trial["config"].get(name) or {}).get("name"))


def _digest(name: str, key: str) -> Column:
    return Column(f"{name}_digest", lambda trial: trial["digests"].get(key))


COLUMNS = (
    Column("trial_id", lambda trial: trial["trial_id"]),
    Column("sweep", lambda trial: trial.get("sweep")),
    *map(_group, ("algo", "adapter", "model", "task")),
    Column("device", event="device", field="device"),
    Column("device_name", event="device", field="name"),
    Column("precision", event="device", field="precision"),
    Column("reference", event="training", field="reference"),
    Column("reference_quantized", event="training", field="quantized"),
    Column("memory_lens", event="memory", field="lens"),
    Column("git_sha", lambda trial: trial["environment"].get("git_sha") or "unknown"),
    _digest("dataset", "dataset"),
    _digest("held_out", "held_out"),
    _digest("base", "base"),
    _digest("evaluator", "evaluators"),
    _digest("code", "code"),
    Column("train_key", lambda trial: trial.get("train_key")),
    Column("eval_key", lambda trial: trial.get("eval_key")),
    Column("command", lambda trial: trial["environment"].get("trial_command")),
)
BESIDE = ("run_id", "outcome", "reason")
"""Texts of a row that MLflow, or the end of the attempt, gives."""
TEXTS = (*(column.name for column in COLUMNS[:2]), *BESIDE, *(column.name for column in COLUMNS[2:]))


def tags_of(trial: Mapping[str, Any]) -> dict[str, str]:
    """Tags from what an attempt is about."""
    found = {column.name: column.about(trial) for column in COLUMNS if column.about is not None}
    return {name: str(value) for name, value in found.items() if value is not None}


def tags_from(event: Event) -> dict[str, str]:
    """Tags from an event."""
    last = {event.kind: event.data}
    found = {column.name: text(last, column) for column in COLUMNS if column.event == event.kind}
    return {name: value for name, value in found.items() if value is not None}


def text(last: Mapping[str, Mapping[str, Any]], column: Column) -> str | None:
    """A column's text from the last event of each kind."""
    value = last.get(column.event or "", {}).get(column.field)
    return None if value is None else str(value)


def texts_of(trial: Mapping[str, Any], events: Sequence[Event]) -> dict[str, Any]:
    """Texts of a row from what its attempt is about, and from the last event of each kind."""
    last = {event.kind: event.data for event in events}
    return {column.name: column.about(trial) if column.about is not None else text(last, column) for column in COLUMNS}
