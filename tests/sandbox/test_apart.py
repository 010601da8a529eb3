"""Work in a process of its own: what comes back, and that nothing outlives whoever asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.sandbox.apart import Killed, apart
from harness.telemetry.waiting import NAMES

PARENT = """
import signal, sys
from harness.sandbox.apart import apart
import holds

def interrupted(*_):
    raise KeyboardInterrupt

if sys.argv[2] == "handled":
    signal.signal(signal.SIGTERM, interrupted)
apart(holds.holds, sys.argv[1])
"""
HOLDS = """
import os, pathlib, time

def holds(path):
    draft = pathlib.Path(path + ".draft")
    draft.write_text(str(os.getpid()))
    draft.rename(path)
    time.sleep(600)
"""


def refuse(rule: str) -> None:
    raise UserError(rule, key="task.writer", fix="another")


def test_its_threads_wait_as_those_of_trials_do(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    found = [apart(os.getenv, name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")]
    assert found in (["passive", None], [None, "10000"])
    assert not any(name in os.environ for name in NAMES)  # what this process does is its own


class Odd(Exception):
    def __reduce__(self):
        raise TypeError("no")


def odd() -> None:
    raise Odd("something odd")


def test_it_gives_what_its_work_gives_and_raises_what_that_raises():
    assert apart(os.path.join, "a", "b") == "a/b"
    with pytest.raises(UserError, match="task.writer: no") as error:
        apart(refuse, "no")
    assert error.value.fix == "another"
    with pytest.raises(ValueError, match="invalid literal") as told:
        apart(int, "x")
    assert "in its process" in told.value.__notes__[0]
    with pytest.raises(RuntimeError, match="something odd"):
        apart(odd)
    with pytest.raises(Killed):
        apart(os._exit, 0)


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, ""), (signal.SIGTERM, ""), (signal.SIGTERM, "handled")],
    ids=["killed", "ended", "interrupted"],
)  # fmt: skip
def test_it_ends_with_its_parent_however_that_ends(tmp_path, number, how):
    (tmp_path / "parent.py").write_text(f"if __name__ == '__main__':\n    exec({PARENT!r})")
    (tmp_path / "holds.py").write_text(HOLDS)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, "parent.py", "pid", how], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        pid = int(waited_for(lambda: (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""))
        parent.send_signal(number)
        assert parent.wait(20) != 0
        waited_for(lambda: "gone" if gone(pid) else "")
    finally:
        parent.kill()
        parent.wait()


def gone(pid: int) -> bool:
    """Whether a process is no more, or waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def waited_for(found) -> str:
    until = time.monotonic() + 30
    while not (text := found()):
        assert time.monotonic() < until, "it goes on"
        time.sleep(0.05)
    return text
