"""Of checkpoints those count that are complete, whatever came in between."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from harness.store import checkpoints


def made(folder: Path, step: int, *, whole: bool = True) -> Path:
    checkpoint = checkpoints.of_step(folder, step)
    (checkpoint / "part").mkdir(parents=True)
    (checkpoint / "part" / "weights").write_text("w")
    if whole:
        (checkpoint / checkpoints.SEAL).touch()
    return checkpoint


def test_the_newest_that_is_whole_is_by_its_step(tmp_path):
    assert checkpoints.newest(tmp_path / "none") is None
    made(tmp_path, 9)
    last = made(tmp_path, 10)
    made(tmp_path, 11, whole=False)
    assert checkpoints.newest(tmp_path) == last


def test_a_sealed_one_stands_alone(tmp_path):
    made(tmp_path, 2)
    made(tmp_path, 9, whole=False)
    last = made(tmp_path, 4, whole=False)
    checkpoints.seal(last)
    assert [*tmp_path.iterdir()] == [last] and checkpoints.newest(tmp_path) == last


def test_what_is_deleted_by_halves_is_none(tmp_path, monkeypatch):
    made(tmp_path, 2)
    made(tmp_path, 4)

    def killed(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.clear(tmp_path)
    assert checkpoints.newest(tmp_path) is None


def test_a_folder_that_is_a_link_is_cleared_too(tmp_path):
    made(tmp_path / "large-disk", 2)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "large-disk")
    checkpoints.clear(tmp_path / "checkpoints")
    assert not [*(tmp_path / "large-disk").iterdir()]


def test_a_file_system_without_a_sync_of_folders_will_do_and_one_that_cannot_write_will_not(tmp_path, monkeypatch):
    checkpoint, sync = made(tmp_path, 2, whole=False), os.fsync

    def refused(handle: int, code: int, folders: bool) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}") == folders:
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", lambda handle: refused(handle, errno.ENOSPC, False))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.seal(checkpoint)
    assert checkpoints.newest(tmp_path) is None
    monkeypatch.setattr(os, "fsync", lambda handle: refused(handle, errno.EINVAL, True))
    checkpoints.seal(checkpoint)
    assert checkpoints.newest(tmp_path) == checkpoint
