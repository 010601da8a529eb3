"""Files of rows by their suffix: JSON Lines, JSON, Parquet, CSV and TSV. What the rows mean is looked at elsewhere."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from harness.base.errors import UserError
from harness.tasks.base import Row
from harness.tasks.reading.messages import Malformed
from harness.tasks.reading.rows import Table

UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""How a file in UTF-16 begins; spreadsheets of Windows write such."""

Numbered = Iterator[tuple[int, Row | Malformed]]


def read_table(path: str, *, key: str, max_rows: int | None = None) -> Table:
    """Read a file by its suffix, without looking at what the rows mean; ``.gz`` behind it is unpacked.

    Args:
        path: relative to the working directory.
        key: the configuration key that names the file, for messages.
        max_rows: stop after so many rows.

    Raises:
        UserError: the file is missing, of an unknown kind, empty, or cannot be read at all.
    """
    file = existing(path, key)
    if (suffix := _suffix(file)) not in _READERS:
        raise UserError(
            f"the suffix must be one of {', '.join(_READERS)}",
            key=key,
            value=path,
            fix="convert the file, or rename it if only its suffix is wrong",
        )
    if file.stat().st_size == 0:
        raise UserError("the file is empty", key=key, value=path, fix="see that what wrote it came to its end")
    reader, unit, encoded = _READERS[suffix]
    try:
        numbered = list(itertools.islice(reader(file), max_rows))
    except UnicodeDecodeError as error:
        raise UserError(
            f"the file is not UTF-8 ({error.reason} at byte {error.start})",
            key=key,
            value=path,
            fix=f"write it in UTF-8, for example: iconv -f LATIN1 -t UTF-8 {path} > utf8{file.suffix}",
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        fix = "pack it again, or unpack it (gunzip)"
        raise UserError(f"the file is no whole gzip file: {error}", key=key, value=path, fix=fix) from None
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise UserError(f"the file cannot be read: {error}", key=key, value=path) from None
    rows = [row for _, row in numbered]
    columns = dict.fromkeys(str(name) for row in rows if isinstance(row, Mapping) for name in row)
    return Table(path, key, list(columns), rows, [number for number, _ in numbered], unit, encoded)


def read_lines(path: str, *, key: str) -> list[str]:
    """The lines of a text file that hold something, without the blanks around them.

    A line ends at a line break alone: what else Unicode calls a separator may stand within a text.

    Args:
        path: relative to the working directory.
        key: the configuration key that names the file, for messages.

    Raises:
        UserError: the file is missing, no text in UTF-8, or holds no such line.
    """
    try:
        with _text(existing(path, key), newline="\n") as opened:
            found = [line.strip() for line in opened]
    except UnicodeDecodeError:
        raise UserError("is no text in UTF-8", key=key, value=path, fix="write it in UTF-8") from None
    if not any(found):
        raise UserError("holds no line", key=key, value=path, fix="write one a line")
    return [line for line in found if line]


def fingerprint_of(paths: Mapping[str, str | None]) -> str:
    """SHA-256 (16 hex digits) over the bytes of files by the configuration keys that name them; null ones are none."""
    total = hashlib.sha256()
    for key, path in paths.items():
        if path is not None:
            with existing(path, key).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def existing(path: str, key: str) -> Path:
    """The file; raises ``UserError`` where it is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        if file.is_dir():
            held = sorted(child.name for child in file.iterdir() if _suffix(child) in _READERS)
            fix = f"name a file in it: {file / held[0]}" if held else f"name a file: {', '.join(_READERS)}"
            raise UserError("is a folder, not a file", key=key, value=path, fix=fix)
        fix = f"give a path relative to {Path.cwd()}, or an absolute one"
        raise UserError("the file does not exist", key=key, value=path, fix=fix)
    return file


PACKED = ".gz"


def _suffix(file: Path) -> str:
    """Of what is in the file."""
    whole = file.name.lower().removesuffix(PACKED)
    return Path(whole).suffix if not whole.endswith(".parquet") or file.name.lower() == whole else ""


def _opened(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.name.lower().endswith(PACKED) else file.open("rb")  # type: ignore[return-value]


def _text(file: Path, newline: str | None = None) -> IO[str]:
    """The file as text, unpacked where it is packed."""
    return io.TextIOWrapper(_opened(file), encoding=_encoding(file), newline=newline)


def _encoding(file: Path) -> str:
    """UTF-16 where the file says so at its beginning, else UTF-8 with or without a mark of its own."""
    with _opened(file) as opened:
        start = opened.read(64)
    if start[:2] in UTF16:
        return "utf-16"
    even, odd = start[::2].count(0), start[1::2].count(0)  # without a mark, by the empty half of each letter
    return "utf-16-le" if odd > len(start) // 4 else "utf-16-be" if even > len(start) // 4 else "utf-8-sig"


def _lines(file: Path) -> Numbered:
    """JSON Lines; blank lines are no rows."""
    with _text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: str) -> Row | Malformed:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return Malformed(f"is not JSON: {error.msg} at character {error.colno}", fix="one JSON object per line")
    except RecursionError:
        return Malformed("is nested too deeply to be a row")
    return _object(value, "\\ud" in line or "\\uD" in line)


def _object(value: Any, escapes: bool = False) -> Row | Malformed:
    if isinstance(value, dict):
        half = _half_character(value) if escapes else None
        return (
            value
            if half is None
            else Malformed(
                "holds half a character (a lone surrogate such as \\ud83d), which no tokenizer takes",
                column=half,
                fix="write the text again from its source, or leave the row out",
            )
        )
    return Malformed(f"must be an object such as {{...}}, not {type(value).__name__}", value=value)


def _half_character(row: Mapping[str, Any]) -> str | None:
    """The column that cannot be written in UTF-8; None where all can."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        for name, value in row.items():
            try:
                json.dumps([name, value], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                return str(name).encode("ascii", "backslashreplace").decode()
    return None


def _json(file: Path) -> Numbered:
    """A JSON array of objects; JSON Lines under this suffix is read too, as is common on the hub."""
    with _text(file) as opened:
        text = opened.read()
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
    escapes = "\\ud" in text or "\\uD" in text
    return iter([(number, _object(row, escapes)) for number, row in enumerate(rows, start=1)])


def _parquet(file: Path) -> Numbered:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _delimiter(header: str, usual: str) -> str:
    """Spreadsheets of half of Europe part cells by semicolons: taken where the header has them and no usual one."""
    others = [d for d in (";", "\t", ",") if d in header]
    return usual if usual in header or not others else others[0]


def _delimited(file: Path, *, delimiter: str) -> Numbered:
    """CSV or TSV with a header; a row of another length is malformed, and all cells are text."""
    start = 1
    before = csv.field_size_limit(sys.maxsize)  # the default refuses completions of 128 kB
    try:
        with _text(file, newline="") as lines:
            delimiter = _delimiter(lines.readline(), delimiter)
            lines.seek(0)
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
