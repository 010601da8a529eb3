"""Journals: one JSON object per line, whatever happens to their writers."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from harness.base.records import Event
from harness.store import journal
from harness.store.journal import Journal, Tail


@pytest.fixture
def book(tmp_path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "deep" / "er" / "j.jsonl")) as journal:
        yield journal


def write_one(path: Path, kind: str) -> None:
    """A writer that comes, writes and goes."""
    with closing(Journal(path)) as book:
        book.write(kind)


def kinds(path: Path) -> list[str]:
    return [e.kind for e in journal.read(path)]


def event(kind: str, **data) -> Event:
    return Event(time=0.0, kind=kind, data=data)


def test_an_event_comes_back_as_it_was_written(book):
    written = book.write("metrics", values={"loss": 0.25, "steps": 3}, name="ä", at=Path("/x"), none=None, ok=True)
    (read,) = journal.read(book.path)
    assert read.kind == "metrics"
    assert abs(read.time - written.time) < 1e-3
    assert read.data == {"values": {"loss": 0.25, "steps": 3}, "name": "ä", "at": "/x", "none": None, "ok": True}


def test_a_line_is_on_disk_before_write_returns(book):
    book.write("one")
    assert kinds(book.path) == ["one"]


def test_an_absent_journal_is_empty(tmp_path):
    assert journal.read(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_ignored(tmp_path):
    path = tmp_path / "j.jsonl"
    write_one(path, "one")
    with path.open("a") as file:
        file.write('{"time": 1.0, "kind": "tw')
    assert kinds(path) == ["one"]


def test_a_writer_that_reopens_a_torn_journal_starts_a_new_line(tmp_path):
    path = tmp_path / "j.jsonl"
    write_one(path, "one")
    torn = b'{"time": 1.0, "kind": "tw'
    with path.open("ab") as file:
        file.write(torn)
    write_one(path, "three")
    assert kinds(path) == ["one", "three"]
    assert path.read_bytes().split(b"\n")[1] == torn  # never rewritten


def test_reopening_a_whole_journal_adds_no_empty_line(tmp_path):
    path = tmp_path / "j.jsonl"
    write_one(path, "one")
    write_one(path, "two")
    assert path.read_bytes().count(b"\n") == 2
    assert kinds(path) == ["one", "two"]


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('12\n{"kind": "timeless"}\n\nnull\n{"time": 1, "kind": "good"}\n')
    assert kinds(path) == ["good"]


def test_a_closed_journal_takes_nothing_more_and_closes_twice(book):
    book.write("one")
    book.close()
    book.close()
    book.write("late")
    assert kinds(book.path) == ["one"]


def test_a_tail_reads_each_event_once_and_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "j.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    line = b'{"time": 1.0, "kind": "\xc3\xa4"}\n'
    for cut in range(1, len(line)):  # inside the two-byte letter too
        with path.open("ab") as file:
            file.write(line[:cut])
        assert tail.read() == []
        with path.open("ab") as file:
            file.write(line[cut:])
        assert [e.kind for e in tail.read()] == ["ä"]
    assert tail.offset == path.stat().st_size


def test_a_tail_may_start_in_the_middle(book):
    book.write("one")
    size = book.path.stat().st_size
    book.write("two")
    assert [e.kind for e in Tail(book.path, size).read()] == ["two"]


def test_not_a_number_and_infinity_are_recorded_as_text(book):
    book.write("metrics", values={"a": math.nan, "b": math.inf, "c": -math.inf, "d": [math.nan, 1.5]})
    line = book.path.read_text()
    json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    (read,) = journal.read(book.path)
    assert read.data["values"] == {"a": "nan", "b": "inf", "c": "-inf", "d": ["nan", 1.5]}


def test_numbers_of_numpy_become_plain_ones(book):
    import numpy

    book.write("metrics", values={"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.float64("nan")})
    assert journal.read(book.path)[0].data["values"] == {"a": 0.5, "b": 3, "c": "nan"}


def test_only_finite_numbers_count_as_numbers():
    assert [journal.number(v) for v in (1, 0.5, "nan", "1", None, True, [1])] == [1.0, 0.5, *[None] * 5]


def test_threads_that_write_at_once_do_not_mix_their_lines(book):
    text = "x" * 5000

    def write(thread: int) -> None:
        for index in range(50):
            book.write("row", thread=thread, index=index, text=text)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = book.path.read_text().splitlines()
    assert len(lines) == len(journal.read(book.path)) == 400
    for n in range(8):  # each thread's own order is kept
        assert [r["index"] for r in map(json.loads, lines) if r["thread"] == n] == list(range(50))


def test_the_latest_attempt_begins_at_the_last_one_that_stands_alone():
    first = [event("attempt", continues=False), event("a")]
    second = [event("attempt", continues=False), event("b")]
    assert journal.latest_attempt([*first, *second]) == second


def test_an_attempt_that_continues_includes_the_ones_before_it():
    old = [event("attempt"), event("a")]
    chain = [event("attempt", continues=False), event("b"), event("attempt", continues=True), event("c"),
             event("attempt", continues=True)]  # fmt: skip
    assert journal.latest_attempt([*old, *chain]) == chain


def test_a_journal_without_attempts_is_one_attempt():
    events = [event("start"), event("done")]
    assert journal.latest_attempt(events) == events
    assert journal.latest_attempt([]) == []


# -- damage --------------------------------------------------------------------------------------------

GOOD = b'{"time": 1, "kind": "good"}'


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"time": 1, "kind": "note", "message": ' + b'{"a":' * 50_000,
        b'{"time": null, "kind": "done"}',
        b'{"time": "yesterday", "kind": "done"}',
        b'{"time": true, "kind": "done"}',
        b'{"time": NaN, "kind": "done"}',
        b'{"time": 1e300, "kind": "done"}',
        b'{"time": 1, "kind": ["done"]}',
        b'{"time": 1, "kind": "metrics"}',
        b'{"time": 1, "kind": "metrics", "values": [1]}',
        b'{"time": 1, "kind": "outcome", "outcome": null}',
        b'{"time": 1, "kind": "stage", "stage": "sft"}',
        b'{"time": 1, "kind": "done", "x": "\xff\xfe"}',
        b"\x00" * 4096,
    ],
)
def test_a_damaged_line_costs_itself_alone_and_is_counted(tmp_path, line):
    path = tmp_path / "j.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    assert kinds(path) == ["good", "good"]
    assert journal.skipped(path) == 1


def test_half_of_a_surrogate_pair_is_written_as_its_code(book):
    book.write("note", message="bad \ud800 text", values={"\udfff": 1})
    (read,) = journal.read(book.path)
    assert read.data == {"message": "bad \\ud800 text", "values": {"\\udfff": 1}}
    read.data["message"].encode()  # and whatever takes it from there can encode it


def test_half_of_a_surrogate_pair_that_another_writer_escaped_is_read_as_its_code(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"time": 1, "kind": "note", "message": "\\ud83d, \\ud83d\\ude00"}\n')
    (read,) = journal.read(tmp_path / "j.jsonl")
    assert read.data["message"] == "\\ud83d, 😀"


def test_what_is_nested_too_deep_is_cut_and_what_holds_itself_ends(book):
    endless: dict = {"a": 1}
    endless["self"] = endless
    book.write("note", message="x", more=endless)
    (read,) = journal.read(book.path)
    assert read.data["message"] == "x" and read.data["more"]["self"]["a"] == 1


def test_a_line_that_the_disk_took_half_of_does_not_swallow_the_next(book):
    class Full:
        """A disk with room for twelve bytes."""

        closed, room = False, 12

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            taken, self.room = min(self.room, len(data)), max(0, self.room - len(data))
            return real.write(data[:taken])

    real, book._file = book._file, Full()
    with pytest.raises(OSError, match="No space"):
        book.write("lost")
    with pytest.raises(OSError, match="No space"):
        book.write("lost")
    book._file = real
    book.write("after")
    assert kinds(book.path) == ["after"]


def test_a_password_in_an_address_is_not_journalled(book):
    book.write("note", message="POST http://anna:s3cr3t@host:5000/api failed")
    assert "s3cr3t" not in book.path.read_text()
