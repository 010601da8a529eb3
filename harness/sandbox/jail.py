"""Programs that nobody trusts, in bubblewrap: no network, a read-only system, one process, limits on all it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Literal

from harness.base.errors import UserError
from harness.sandbox import seccomp

Kind = Literal["bubblewrap", "none"]
INSIDE = Path(__file__).with_name("inside")
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache")
SCRATCH_BYTES = 16 * 2**20
UNSAFE = "=none runs what the model writes with your own rights, on your own files"


def command(script: str, arguments: Sequence[object], *, kind: Kind, filtered: int | None) -> list[str]:
    """The command line that runs one of the scripts in ``inside``.

    Args:
        script: its name.
        arguments: of the script.
        kind: in which sandbox.
        filtered: file descriptor of the filter for system calls; None goes without.
    """
    words = [str(a) for a in arguments]
    if kind == "none":
        return [sys.executable, "-I", "-S", str(INSIDE / script), *words]
    python = os.path.realpath(sys.executable)
    seen = [*SYSTEM, *(p for p in {sys.base_prefix, sys.base_exec_prefix, str(Path(python).parents[1])})]
    binds = [word for path in seen if os.path.exists(path) for word in ("--ro-bind", path, path)]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--die-with-parent",
        "--new-session", "--clearenv", "--cap-drop", "ALL", *binds, "--ro-bind", str(INSIDE), "/inside",
        "--dev", "/dev", "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/",
        "--chdir", "/tmp", *(() if filtered is None else ("--seccomp", str(filtered))),
        python, "-I", "-S", f"/inside/{script}", *words,
    ]  # fmt: skip


def started(
    script: str,
    arguments: Sequence[object],
    *,
    kind: Kind,
    handed: Sequence[int],
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a script in a sandbox; it has the file descriptors ``handed``, and says nothing but through them."""
    rules = seccomp.program() if kind == "bubblewrap" else None
    filtered = None if rules is None else _as_file(rules)
    try:
        return subprocess.Popen(
            command(script, arguments, kind=kind, filtered=filtered),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[*handed, *(() if filtered is None else (filtered,))],
            start_new_session=True,
            cwd="/",
        )
    finally:
        if filtered is not None:
            os.close(filtered)


def _as_file(content: bytes) -> int:
    """A file descriptor to read ``content`` from."""
    handle = os.memfd_create("rules", 0)
    os.write(handle, content)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


@cache
def problem(kind: Kind, key: str = "task.sandbox") -> UserError | None:
    """Why no sandbox of this kind can be had here; None where it can. ``key`` is the setting that chose it."""
    unsafe = key + UNSAFE
    if kind == "none":
        return None
    if sys.platform != "linux" or seccomp.program() is None:
        words = "bubblewrap runs on Linux, on x86-64 and aarch64; this machine is another one"
        return UserError(words, key=key, value=kind, fix=f"run it there; {unsafe}")
    if shutil.which("bwrap") is None:
        words = "what a model writes is run in bubblewrap, which is not installed"
        return UserError(words, key=key, value=kind, fix=f"apt-get install bubblewrap; {unsafe}")
    rules = _as_file(seccomp.program() or b"")
    try:
        asked = command("wire.py", [], kind=kind, filtered=rules)
        done = subprocess.run(asked, pass_fds=[rules], capture_output=True, text=True, timeout=60)
    finally:
        os.close(rules)
    if done.returncode == 0:
        return None
    said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    fix = f"let users make namespaces (a container needs --security-opt seccomp=unconfined or --privileged); {unsafe}"
    return UserError(f"bubblewrap is there and starts nothing: {said}", key=key, value=kind, fix=fix)
