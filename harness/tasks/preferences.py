"""The user's own preference file: JSON Lines, JSON, Parquet or CSV, paired or not, text or conversations."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from harness.errors import UserError
from harness.tasks.annotators import with_annotations
from harness.tasks.base import Row, Task, TaskData
from harness.tasks.checking import Checked, check
from harness.tasks.formats import recognised
from harness.tasks.messages import Malformed
from harness.tasks.rows import Column, Table, layout_of, pair, unescaped, unpaired
from harness.tasks.splits import Overlap, assemble


@dataclass(frozen=True)
class Preferences(Task):
    """Preference data from a file, split by prompt into training, validation and test.

    Columns are ``chosen`` and ``rejected`` (with ``prompt``, or with the prompt as their common beginning),
    or ``prompt``, ``completion`` and ``label``. Each is text or a list of ``{"role", "content"}`` messages;
    in CSV, TSV and Parquet the list may be JSON text.

    Attributes:
        path: the file, by suffix: .jsonl, .ndjson, .json, .parquet, .csv or .tsv.
        eval_path: a held-out file; null holds prompts of ``path`` out.
        seed: governs the split.
        held_out: share of the prompts held out where ``eval_path`` is null. One half of them is for
            validation, one for test; ``eval_path`` is halved in the same way.
        columns: our column -> the file's, where the names differ.
        prompt_end: where a text prompt shared by chosen and rejected ends (the last such marker); null takes
            their longest common beginning, as TRL does.
        overlap: ``error`` refuses, ``drop`` leaves out training rows whose prompt is in ``eval_path``.
        allow_skipped: share of the rows that may be unusable (empty, chosen equal to rejected).
        max_rows: read only so many rows, from the top of each file.
        annotators: columns that hold the label each of several people gave; their agreement stands in the data card.
    """

    path: str
    eval_path: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    columns: dict[Column, str] = field(default_factory=dict)
    prompt_end: str | None = None
    overlap: Overlap = "error"
    allow_skipped: Annotated[float, Ge(0), Le(1)] = 0.05
    max_rows: Annotated[int, Gt(0)] | None = None
    annotators: tuple[str, ...] = ()

    def load(self) -> TaskData:
        """Read, check and split the rows."""
        train = self._checked(self.path, "task.path")
        held = None if self.eval_path is None else self._checked(self.eval_path, "task.eval_path")
        return assemble(
            train,
            held,
            share=self.held_out,
            seed=self.seed,
            overlap=self.overlap,
            eval_key="task.eval_path",
        )

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the bytes of the files, without parsing them."""
        total = hashlib.sha256()
        for path, key in ((self.path, "task.path"), (self.eval_path, "task.eval_path")):
            if path is not None:
                with _existing(path, key).open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()[:16]

    def _checked(self, path: str, key: str) -> Checked:
        found = recognised(read_table(path, key=key, max_rows=self.max_rows), self.columns)
        table = found.table
        layout = layout_of(table, self.columns, prompt_end=unescaped(self.prompt_end))
        parse = partial({"preferences": pair, "unpaired": unpaired}[layout.kind], layout=layout)
        parse = with_annotations(table, self.annotators, parse)
        return check(
            table, layout.kind, parse, allow_skipped=self.allow_skipped, dropped=layout.dropped, notes=found.notes
        )


# -- files ---------------------------------------------------------------------------------------------

Numbered = Iterator[tuple[int, Row | Malformed]]


def read_table(path: str, *, key: str, max_rows: int | None = None) -> Table:
    """Read a file by its suffix, without looking at what the rows mean.

    Args:
        path: relative to the working directory.
        key: the configuration key that names the file, for messages.
        max_rows: stop after so many rows.

    Raises:
        UserError: the file is missing, of an unknown kind, empty, or cannot be read at all.
    """
    file = _existing(path, key)
    if file.suffix.lower() not in _READERS:
        raise UserError(
            f"the suffix must be one of {', '.join(_READERS)}",
            key=key,
            value=path,
            fix="convert the file, or rename it if only its suffix is wrong",
        )
    if file.stat().st_size == 0:
        raise UserError("the file is empty", key=key, value=path)
    reader, unit, encoded = _READERS[file.suffix.lower()]
    try:
        numbered = list(itertools.islice(reader(file), max_rows))
    except UnicodeDecodeError as error:
        raise UserError(
            f"the file is not UTF-8 ({error.reason} at byte {error.start})",
            key=key,
            value=path,
            fix=f"iconv -f LATIN1 -t UTF-8 {path}",
        ) from None
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise UserError(f"the file cannot be read: {error}", key=key, value=path) from None
    rows = [row for _, row in numbered]
    columns = dict.fromkeys(str(name) for row in rows if isinstance(row, Mapping) for name in row)
    return Table(path, key, list(columns), rows, [number for number, _ in numbered], unit, encoded)


def _existing(path: str, key: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "the file does not exist"
        raise UserError(what, key=key, value=path, fix=f"give a path relative to {Path.cwd()}, or an absolute one")
    return file


def _lines(file: Path) -> Numbered:
    """JSON Lines; blank lines are no rows."""
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: str) -> Row | Malformed:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return Malformed(f"is not JSON: {error.msg} at character {error.colno}", fix="one JSON object per line")
    return _object(value)


def _object(value: Any) -> Row | Malformed:
    if isinstance(value, dict):
        return value
    return Malformed(f"must be an object such as {{...}}, not {type(value).__name__}", value=value)


def _json(file: Path) -> Numbered:
    """A JSON array of objects; JSON Lines under this suffix is read too, as is common on the hub."""
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("{"):
        first = _json_row(next(line for line in text.split("\n") if line.strip()))
        if not isinstance(first, Malformed):
            return _lines(file)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, character {error.colno} is not JSON: {error.msg}") from None
    if not isinstance(rows, list):
        raise ValueError(f"it must hold an array of rows [{{...}}, ...], not {type(rows).__name__}")
    return iter([(number, _object(row)) for number, row in enumerate(rows, start=1)])


def _parquet(file: Path) -> Numbered:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _delimited(file: Path, *, delimiter: str) -> Numbered:
    """CSV or TSV with a header; a row of another length is malformed, and all cells are text."""
    start = 1
    before = csv.field_size_limit(sys.maxsize)  # the default refuses completions of 128 kB
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"column names repeat: {', '.join(header)}")
            start = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    yield start, dict(zip(header, cells, strict=True))
                elif cells:
                    yield (
                        start,
                        Malformed(f"must have {len(header)} cells as the header, not {len(cells)}"),
                    )
                start = reader.line_num + 1  # a quoted cell may span lines: this is where the next row begins
    except csv.Error as error:
        raise ValueError(f"the row that begins in line {start}: {error}") from None
    finally:
        csv.field_size_limit(before)


_READERS: dict[str, tuple[Callable[[Path], Numbered], str, bool]] = {
    ".jsonl": (_lines, "line", False),
    ".ndjson": (_lines, "line", False),
    ".json": (_json, "row", False),
    ".parquet": (_parquet, "row", True),
    ".csv": (partial(_delimited, delimiter=","), "line", True),
    ".tsv": (partial(_delimited, delimiter="\t"), "line", True),
}
"""Per suffix: how to read it, what its numbers count, and whether messages may be JSON text."""
