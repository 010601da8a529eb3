"""Labels that several people gave to the same rows: kept beside the row, for the data card alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness.base.errors import UserError
from harness.tasks.base import Row
from harness.tasks.reading.messages import Malformed
from harness.tasks.reading.rows import Table

ANNOTATIONS = "annotations"
"""Key of a row under which the labels stand: annotator -> label, None where there is none."""


def with_annotations(
    table: Table,
    names: Sequence[str],
    parse: Callable[[Row], Row],
    *,
    least: int = 2,
    key: str = "task.annotators",
) -> Callable[[Row], Row]:
    """``parse`` that also keeps the columns ``names``, one per annotator.

    Raises:
        UserError: a column is not there, or there are fewer than ``least``; ``key`` is the setting that names them.
    """
    if not names:
        return parse
    absent = [name for name in names if name not in table.columns]
    if absent or len(set(names)) < least:
        raise UserError(
            f"no such column: {', '.join(absent)}; found: {', '.join(table.columns)}"
            if absent
            else "agreement needs the columns of two annotators or more",
            key=key,
            value=list(names),
            fix="name the columns that hold each annotator's label",
        )

    def annotated(raw: Row) -> Row:
        labels = {name: raw.get(name) for name in names}
        for name, label in labels.items():
            if label is not None and not isinstance(label, str | bool | int | float):
                raise Malformed("a label must be text, a number or true/false", column=name, value=label)
        return {**parse(raw), ANNOTATIONS: labels}

    return annotated


def vote_of(label: Any) -> str | None:
    """A label as it is compared: 1, 1.0 and '1' are one, and an empty cell is none."""
    text = "" if label is None or label != label else str(label).strip().casefold()
    return text.removesuffix(".0") or None
