"""All rows of a table, checked: what passes, what is skipped and counted, what is malformed. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from harness.base.errors import UserError, UserErrors
from harness.tasks.base import Row
from harness.tasks.reading.messages import Malformed, Skip, Undecided
from harness.tasks.reading.rows import Kind, Table

LISTED = 10
"""Malformed rows listed in one message."""


@dataclass(frozen=True)
class Checked:
    """The rows of one table that passed.

    Attributes:
        name: the table's.
        key: the table's.
        kind: what the rows are.
        rows: in our columns, in the table's order.
        conversational: whether their prompts are lists of messages.
        notes: one line per reason for which rows were skipped.
    """

    name: str
    key: str
    kind: Kind
    rows: Sequence[Row]
    conversational: bool
    notes: Sequence[str] = ()


def check(
    table: Table,
    kind: Kind,
    parse: Callable[[Row], Row],
    *,
    allow_skipped: float,
    dropped: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Checked:
    """Parse every row.

    Args:
        table: rows as read.
        kind: what they are.
        parse: one row, in our columns.
        allow_skipped: share that may be skipped.
        dropped: filled while rows are parsed: what is left out of them, by name.
        notes: of the table itself.

    Raises:
        UserErrors: malformed rows, the first ten listed.
        UserError: conversations mixed with plain text, or more skipped than ``allow_skipped``.
    """
    passed: list[tuple[int, Row]] = []
    skipped: dict[str, list[int]] = {}
    undecided: set[str] = set()
    malformed: list[UserError] = []
    for number, raw in zip(table.numbers, table.rows, strict=True):
        try:
            if isinstance(raw, Malformed | Skip):
                raise raw
            passed.append((number, parse(raw)))
        except Skip as skip:
            skipped.setdefault(str(skip), []).append(number)
            if isinstance(skip, Undecided):
                undecided.add(str(skip))
        except Malformed as error:
            malformed.append(_located(error, table, number))
    if malformed:
        more = len(malformed) - LISTED
        tail = [UserError(f"and {more} more malformed rows", key=table.name)] if more > 0 else []
        raise UserErrors(malformed[:LISTED] + tail)
    _check_skipped(table, skipped, undecided, allow_skipped)
    formats: dict[bool, list[int]] = {}
    for number, row in passed:
        formats.setdefault(isinstance(row["prompt"], list), []).append(number)
    if len(formats) > 1:
        raise UserError(
            f"rows must all be conversations or all be plain text: {len(formats[True])} are lists of messages"
            f" (first: {table.unit} {formats[True][0]}), {len(formats[False])} are text"
            f" (first: {table.unit} {formats[False][0]})",
            key=table.key,
            value=table.name,
            fix="write every row in one format, or in two files",
        )
    told = [*notes, *(f"{table.name}: {n:,} × {what} not read" for what, n in (dropped or {}).items())]
    told += [
        f"{table.name}: {len(n)} row{'s' if len(n) > 1 else ''} skipped, {why} ({_first(n, table.unit)})"
        for why, n in skipped.items()
    ]
    return Checked(table.name, table.key, kind, [row for _, row in passed], True in formats, told)


def _located(error: Malformed, table: Table, number: int) -> UserError:
    where = f"{table.name}, {table.unit} {number}" + (f", {error.column}" if error.column else "")
    if error.value is None:
        return UserError(error.rule, key=where, fix=error.fix)
    return UserError(error.rule, key=where, value=error.value, fix=error.fix)


def _check_skipped(table: Table, skipped: Mapping[str, Sequence[int]], undecided: Set[str], allowed: float) -> None:
    """Raise where too many rows are wrong, or none is left; rows that decide nothing are no wrong ones."""
    left, total = len(table.rows) - sum(map(len, skipped.values())), len(table.rows)
    wrong = {why: numbers for why, numbers in skipped.items() if why not in undecided}
    count = sum(map(len, wrong.values()))
    if count <= allowed * total and left:
        return
    told = wrong if left else skipped
    reasons = "; ".join(f"{len(numbers)}: {why} ({_first(numbers, table.unit)})" for why, numbers in told.items())
    if not left:
        raise UserError(f"no usable row among {total} ({reasons})", key=table.key, value=table.name)
    raise UserError(
        f"{count} of {total} rows of {table.name} cannot be used ({reasons}), more than the share allowed",
        key="task.allow_skipped",
        value=allowed,
        fix=f"mend the rows, or task.allow_skipped={math.ceil(100 * count / total) / 100:g}",
    )


def _first(numbers: Sequence[int], unit: str) -> str:
    shown = ", ".join(map(str, numbers[:3])) + (", …" if len(numbers) > 3 else "")
    return f"{unit}{'s' if len(numbers) > 1 else ''} {shown}"
