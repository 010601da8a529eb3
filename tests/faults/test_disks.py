"""Disks that are full or can only be read: real ones of a few hundred kilobytes, where this user may mount one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.store import cache as cache_module
from harness.store.cache import Cache
from tests.faults.test_points import aside, recover, scene_at, template  # noqa: F401  (fixtures)

KB = 1024


def mount(place: Path, options: str) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    return done.returncode == 0


def change(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], capture_output=True, check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own."""
    if shutil.which("mount") is None or not mount(tmp_path, "size=64m"):
        pytest.skip("this user may not mount a file system")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], capture_output=True, check=False)


def used(place: Path) -> int:
    return shutil.disk_usage(place).used // KB


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 4, 12, 24, 48])
def test_a_disk_that_fills_up_under_outputs_and_store_loses_nothing(room, disk, scene_at):  # noqa: F811
    scene = scene_at(disk / "scene")
    change(disk, f"size={used(disk) + room}k")
    code, said = aside(scene.story)
    assert code == 0, said
    change(disk, "size=64m")
    code, said = aside(lambda: recover(scene, sync=room % 8 == 0))
    assert code == 0, said


@pytest.mark.slow
def test_a_stage_that_a_full_disk_stopped_leaves_no_draft_and_is_built_when_there_is_room(disk):
    def build(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x" * 200 * KB)

    change(disk, "size=128k")
    with pytest.raises(OSError, match="No space left"):
        Cache(disk).fetch("sft", "k", build, inputs={})
    assert Cache(disk).entries() == []
    change(disk, "size=64m")
    assert not Cache(disk).fetch("sft", "k", build, inputs={}).hit
    change(disk, "ro")
    cache_module._hashed.clear()
    assert Cache(disk).fetch("sft", "k", build, inputs={}).hit
