"""The leaderboard as a table, for the terminal and for markdown. Pure."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection
from io import StringIO

import pandas as pd

from harness.base import formatting
from harness.report.intervals import SHORT_LEGEND, short_interval
from harness.report.leaderboard import (
    COLUMNS,
    DROPPED_FIRST,
    HOURS,
    NOTE,
    PREDICTED,
    WITHOUT_REWARD,
    Price,
    hours_heading,
    leaderboard,
)

WIDTH = 100
NARROWEST_TRIAL = 20
GOOD, BAD = dict.fromkeys(("finished", "reused"), "green"), dict.fromkeys(("failed", "diverged"), "red")
STYLES = {**GOOD, **BAD, "oom": "magenta", "timeout": "yellow"}


def render_terminal(frame: pd.DataFrame, width: int | None = None) -> str:
    """The leaderboard for a terminal; reasons stand below the table, where there is room for them.

    Args:
        frame: trials.
        width: columns; None is the terminal's own, or 100 where the output is not a terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tty = sys.stdout.isatty()
    width = width or (shutil.get_terminal_size((WIDTH, 24)).columns if tty else WIDTH)
    board = leaderboard(frame, form=short_interval).map(formatting.printable)
    shown = _columns_that_fit(board, width)
    figures = [name for name in shown if name not in COLUMNS[:2]]
    silent = (board["outcome"] == formatting.MISSING) & (board[figures] == formatting.MISSING).all(axis=1)
    board = pd.DataFrame(board[~silent])  # a row of reference that has nothing to say here
    roomy = board["trial"].str.len().max() + 80 <= width  # two spaces between columns, else one
    grid = Table(box=box.SIMPLE, padding=(0, int(roomy), 0, 0), pad_edge=False, show_edge=False)
    for name in shown:
        flush, wraps = "left" if name in COLUMNS[:2] else "right", name == "trial"
        grid.add_column(_header(name), justify=flush, no_wrap=not wraps, overflow="fold")
    for row in board.to_dict("records"):
        style = STYLES.get(row["outcome"], "dim" if row["outcome"] == formatting.MISSING else "")
        grid.add_row(*(Text(row[c], style=style if c == "outcome" else "") for c in shown))
    stream = StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=tty,
        no_color=True if not tty or "NO_COLOR" in os.environ else None,
    )
    console.print(grid)
    if any("±" in cell for column in shown for cell in board[column]):
        console.print(Text(f"{SHORT_LEGEND}, over held-out rows"))
    if NOTE in board:
        for row in filter(lambda r: r[NOTE], board.to_dict("records")):
            console.print(Text(f"{row['outcome']}: {row['trial']}: {row[NOTE]}"))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def render_markdown(
    frame: pd.DataFrame,
    price: Price | None = None,
    most: int | None = None,
    marked: Collection[str] = (),
    metric: str | None = None,
) -> str:
    """The leaderboard as a markdown table; nothing in a name or a reason is markup."""
    board = leaderboard(frame, price, most, marked, metric).rename(columns={HOURS: hours_heading(frame)})
    foreign = [name in ("trial", "outcome", NOTE) for name in board.columns]  # the rest is numbers of our own making
    rows = [
        [formatting.escape(c, limit=200) if f else c for c, f in zip(row, foreign, strict=True)]
        for row in board.itertuples(index=False)
    ]
    table = formatting.table([formatting.escape(c) for c in board.columns], rows, left=2)
    if NOTE in board:  # the last column is prose
        head, rule, *body = table.split("\n")
        table = "\n".join([head, rule.removesuffix("---: |") + ":--- |", *body])
    return table


def _header(name: str) -> str:
    """A heading on two lines where it has a unit or a second word."""
    return name if name in COLUMNS[:2] else "\n".join(name.replace("/", " /").rsplit(" ", 1))


def _columns_that_fit(board: pd.DataFrame, width: int) -> list[str]:
    """The columns for a terminal of this width: those that matter least go first, the trial never does."""
    shown = [n for n in board.columns if n in (*COLUMNS, PREDICTED, *WITHOUT_REWARD)]
    needs = {n: max(*map(len, _header(n).split("\n")), *board[n].str.len()) + 1 for n in shown}
    needs["trial"] = NARROWEST_TRIAL + 1
    for name in DROPPED_FIRST:
        if name in shown and sum(needs[n] for n in shown) > width:
            shown.remove(name)
    return shown
