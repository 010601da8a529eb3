"""Rows that are trained on again, so that a model keeps what it could do: prompts and completions from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from harness.base.errors import UserError
from harness.tasks.base import Row
from harness.tasks.reading.checking import check
from harness.tasks.reading.files import read_table
from harness.tasks.reading.formats import recognised
from harness.tasks.reading.rows import layout_of, pair, unpaired

KEY = "train.replay.path"


def replay_rows(path: str, *, allow_skipped: float, key: str = KEY) -> Sequence[Row]:
    """The ``prompt, completion`` rows of a file: chosen of pairs, desirable of labelled ones, else all.

    Args:
        path: as ``task=preferences`` reads it; a label is not needed.
        allow_skipped: share of the rows that may be unusable.
        key: names the file in messages.

    Raises:
        UserError: the file cannot be read, or holds no such rows.
    """
    found = recognised(read_table(path, key=key), {})
    table = found.table
    if {"prompt", "completion"} <= set(table.columns) and "label" not in table.columns:
        rows = [{**row, "label": True} if isinstance(row, dict) else row for row in table.rows]
        table = replace(table, columns=[*table.columns, "label"], rows=rows)
    layout = layout_of(table, {})
    parse = partial({"preferences": pair, "unpaired": unpaired}[layout.kind], layout=layout)
    checked = check(table, layout.kind, parse, allow_skipped=allow_skipped, dropped=layout.dropped).rows
    if layout.kind == "preferences":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in checked]
    kept = [{"prompt": row["prompt"], "completion": row["completion"]} for row in checked if row["label"]]
    if not kept:
        raise UserError("holds no desirable completion", key=key, value=path, fix="name a file that does")
    return kept
