"""The stage cache: built once, put in place whole, and explained."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from harness.base.errors import UserError
from harness.store import cache as cache_module
from harness.store.cache import MARK, Cache, default_dir


def put(text: str = "value", note: dict | None = None):
    """A builder that writes one file."""

    def build(folder: Path):
        (folder / "file").write_text(text)
        return note

    return build


def never(folder: Path):
    raise AssertionError("this should have been a hit")


def entry_of(cache: Cache, key: str, size: int = 10, used: float | None = None):
    entry = cache.fetch("sft", key, put("x" * size), inputs={"key": key})
    if used is not None:
        os.utime(entry.path / MARK, (used, used))
    return entry


def test_the_first_fetch_builds_and_the_second_finds(tmp_path):
    cache = Cache(tmp_path)
    first = cache.fetch("sft", "k1", put(note={"loss": 0.5}), inputs={"steps": 3})
    second = cache.fetch("sft", "k1", never, inputs={"steps": 3})
    assert (first.hit, first.why) == (False, "first use")
    assert (second.hit, second.why) == (True, "same inputs")
    assert second.path == first.path == tmp_path / "sft" / "k1"
    assert second.seconds == first.seconds
    assert (second.path / "file").read_text() == "value"
    assert cache.note(second) == {"loss": 0.5}


def test_a_miss_names_the_inputs_that_changed(tmp_path):
    cache = Cache(tmp_path)
    cache.fetch("sft", "k1", put(), inputs={"steps": 3, "seed": 0, "folder": Path("/x")})
    entry = cache.fetch("sft", "k2", put(), inputs={"steps": 4, "seed": 0, "folder": Path("/x"), "rate": 1})
    assert entry.why == "changed since the newest entry: rate, steps"


def test_stages_do_not_share_their_entries(tmp_path):
    cache = Cache(tmp_path)
    cache.fetch("sft", "k", put(), inputs={})
    assert cache.fetch("reward", "k", put(), inputs={}).why == "first use"


def test_a_lost_entry_is_built_again(tmp_path):
    cache = Cache(tmp_path)
    entry = cache.fetch("sft", "k1", put("old"), inputs={"a": 1})
    cache.fetch("sft", "k2", put(), inputs={"a": 1})
    (entry.path / MARK).unlink()  # half a folder, as a crash of the disk might leave it
    again = cache.fetch("sft", "k1", put("new"), inputs={"a": 1})
    assert (again.hit, again.why) == (False, "not built yet")
    assert (again.path / "file").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_builder_that_fails_leaves_nothing_behind(tmp_path, error):
    cache = Cache(tmp_path)

    def fail(folder: Path):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        cache.fetch("sft", "k", fail, inputs={})
    assert cache.entries() == []
    assert [p for p in (tmp_path / "sft").iterdir() if p.is_dir()] == []
    assert not cache.fetch("sft", "k", put(), inputs={}).hit


def test_of_two_threads_one_builds_and_the_other_waits(tmp_path):
    built, entries = [], []
    start = threading.Barrier(2)

    def build(folder: Path):
        built.append(folder)
        time.sleep(0.2)

    def fetch() -> None:
        start.wait()
        entries.append(Cache(tmp_path).fetch("sft", "k", build, inputs={}))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted((e.hit, e.why) for e in entries) == [
        (False, "first use"),
        (True, "another process built it meanwhile"),
    ]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom harness.store.cache import Cache\n"
        "def build(folder):\n    print('built', flush=True)\n    time.sleep(0.5)\n"
        f"print(Cache(Path({str(tmp_path)!r})).fetch('sft', 'k', build, inputs={{}}).hit)\n"
    )
    two = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=20)[0].split() for process in two)
    assert [process.returncode for process in two] == [0, 0]
    assert said == [["True"], ["built", "False"]]


def test_entries_are_listed_by_size_with_stage_and_key(tmp_path):
    cache = Cache(tmp_path)
    entry_of(cache, "small", 10)
    entry_of(cache, "large", 5000)
    listed = cache.entries()
    assert [(e["stage"], e["key"]) for e in listed] == [("sft", "large"), ("sft", "small")]
    assert listed[0]["bytes"] == 5000 + (tmp_path / "sft" / "large" / MARK).stat().st_size


def test_pruning_deletes_the_least_recently_used_until_the_rest_fits(tmp_path):
    cache = Cache(tmp_path)
    for key, used in (("old", 100.0), ("middle", 200.0), ("new", 300.0)):
        entry_of(cache, key, 1000, used)
    size = {e["key"]: e["bytes"] for e in cache.entries()}
    gone = cache.prune(size["middle"] + size["new"])
    assert [e["key"] for e in gone] == ["old"]
    assert {e["key"] for e in cache.entries()} == {"middle", "new"}
    assert [e["key"] for e in cache.prune(0)] == ["middle", "new"]
    assert cache.entries() == []


def test_a_hit_counts_as_use(tmp_path):
    cache = Cache(tmp_path)
    entry_of(cache, "a", used=100.0)
    entry_of(cache, "b", used=200.0)
    cache.fetch("sft", "a", never, inputs={})
    assert [e["key"] for e in cache.prune(max(e["bytes"] for e in cache.entries()))] == ["b"]


def test_pruning_to_more_than_there_is_deletes_nothing(tmp_path):
    cache = Cache(tmp_path)
    entry_of(cache, "a")
    assert cache.prune(10**9) == []
    assert len(cache.entries()) == 1


def test_a_pruned_entry_is_built_again(tmp_path):
    cache = Cache(tmp_path)
    entry_of(cache, "a")
    cache.prune(0)
    assert not entry_of(cache, "a").hit


def test_the_default_folder_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "named"))
    assert default_dir() == tmp_path / "named"
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_dir() == tmp_path / "xdg" / "harness"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_dir() == tmp_path / ".cache" / "harness"


# -- damage --------------------------------------------------------------------------------------------


def fresh(root: Path) -> Cache:
    """The cache as another process finds it: nothing is known of its files."""
    cache_module._hashed.clear()
    return Cache(root)


def flip(path: Path, at: int = 2) -> None:
    """A few bits, the file's size and time as they were."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_a_damaged_entry_is_set_aside_said_and_built_again(tmp_path, monkeypatch, harm, small):
    if not small:
        monkeypatch.setattr(cache_module, "SMALL", 2)
    entry = Cache(tmp_path).fetch("sft", "k", put("precious"), inputs={})
    assert fresh(tmp_path).fetch("sft", "k", never, inputs={}).hit
    harm(entry.path / "file")
    assert fresh(tmp_path).find("sft", "k") is None
    again = fresh(tmp_path).fetch("sft", "k", put("new"), inputs={})
    assert not again.hit and "damaged (file is not what was written)" in again.why and "set aside" in again.why
    assert (again.path / "file").read_text() == "new"
    assert sorted(e["state"] for e in Cache(tmp_path).entries()) == ["damaged", "whole"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"seconds": 1}', b'{"seconds": "x", "inputs": {}}'])
def test_a_torn_note_costs_its_own_entry_alone(tmp_path, content):
    cache = Cache(tmp_path)
    for key in ("torn", "other"):
        cache.fetch("sft", key, put(), inputs={"a": 1})
    (tmp_path / "sft" / "torn" / MARK).write_bytes(content)
    os.utime(tmp_path / "sft" / "torn" / MARK, (2e9, 2e9))  # the newest, which a miss is explained by
    assert cache.fetch("sft", "next", put(), inputs={"a": 2}).why == "changed since the newest entry: a"
    assert len(cache.entries()) == 3
    assert "damaged (entry.json" in cache.fetch("sft", "torn", put(), inputs={"a": 1}).why
    assert cache.fetch("sft", "torn", never, inputs={"a": 1}).hit


def test_a_number_changed_in_a_note_is_damage_too(tmp_path):
    entry = Cache(tmp_path).fetch("sft", "k", put(note={"loss": 0.5}), inputs={})
    mark = entry.path / MARK
    mark.write_text(mark.read_text().replace("0.5", "0.4"))
    assert Cache(tmp_path).find("sft", "k") is None


def test_a_large_file_is_hashed_again_only_where_it_may_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SMALL", 2)
    entry = Cache(tmp_path).fetch("sft", "k", put(), inputs={})
    monkeypatch.setattr(cache_module.hashlib, "file_digest", None)  # hashing would fail
    assert fresh(tmp_path).find("sft", "k") is not None
    monkeypatch.undo()
    monkeypatch.setattr(cache_module, "SMALL", 2)
    os.utime(entry.path / "file", (1e9, 1e9))  # copied, perhaps: the content is the same
    assert fresh(tmp_path).find("sft", "k") is not None
    monkeypatch.setattr(cache_module.hashlib, "file_digest", None)  # and it is known from then on
    assert fresh(tmp_path).find("sft", "k") is not None


def test_an_entry_of_an_older_version_without_checksums_stays_usable(tmp_path):
    entry = Cache(tmp_path).fetch("sft", "k", put(note={"loss": 1}), inputs={})
    mark = json.loads((entry.path / MARK).read_text())
    (entry.path / MARK).write_text(json.dumps({k: v for k, v in mark.items() if k not in ("files", "seal")}))
    found = fresh(tmp_path).fetch("sft", "k", never, inputs={})
    assert found.hit and Cache(tmp_path).note(found) == {"loss": 1}


def test_a_whole_cache_that_can_only_be_read_works(tmp_path, monkeypatch):
    Cache(tmp_path).fetch("sft", "k", put(), inputs={})

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache_module.os, "utime", refuse)
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert fresh(tmp_path).fetch("sft", "k", never, inputs={}).hit
    with pytest.raises(UserError, match=r"cache\.dir=.*lacks an entry of sft.*Read-only"):
        Cache(tmp_path).fetch("sft", "absent", put(), inputs={})


def test_the_draft_of_a_killed_builder_is_seen_and_pruned_and_that_of_a_living_one_is_not(tmp_path):
    cache = Cache(tmp_path)
    entry_of(cache, "whole")
    dead = tmp_path / "sft" / ".some-key-abc123"
    dead.mkdir()
    (dead / "half").write_bytes(b"x" * 5000)
    during: list[dict] = []

    def build(folder: Path) -> None:
        (folder / "half").write_bytes(b"y" * 100)
        during.extend(cache.entries())
        assert [e["state"] for e in cache.prune(10**9)] == ["abandoned"]
        assert folder.is_dir() and not dead.exists()

    cache.fetch("sft", "living", build, inputs={})
    assert {e["state"]: e["bytes"] for e in during if e["state"] != "whole"} == {"abandoned": 5000, "building": 100}
