"""Helpers of the tests that run whole sweeps as a user would, in a process of their own."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.cli.main import main
from tests.conftest import QUICK


@dataclass
class Sandbox:
    """A working directory with a stage cache of the session."""

    cwd: Path
    cache: Path

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "HARNESS_CACHE": str(self.cache), "COLUMNS": "140", "OMP_NUM_THREADS": "1", **extra}

    def run(
        self, *arguments: str, quick: bool = True, timeout: float = 300, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """``python -m harness ...``; ``quick`` adds the overrides that make a trial take two seconds."""
        return subprocess.run(
            [sys.executable, "-m", "harness", *(QUICK if quick else ()), *arguments],
            cwd=self.cwd,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, which takes no seconds of imports; for what trains nothing."""
        out, err = io.StringIO(), io.StringIO()
        with chdir(self.cwd), patch.dict(os.environ, self.environment()), redirect_stdout(out), redirect_stderr(err):
            code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same, in the background and in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *QUICK, *arguments],
            cwd=self.cwd,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell's background job ignores Ctrl-C and hands that down; these tests send it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def folders(self, sweep: str) -> list[Path]:
        return sorted(p.parent for p in (self.cwd / "outputs" / sweep).glob("*/trial.json"))

    def results(self, sweep: str) -> dict[str, dict[str, Any]]:
        """Algorithm (or trial id where ambiguous) -> result.json."""
        found = [
            json.loads((f / "result.json").read_text()) for f in self.folders(sweep) if (f / "result.json").exists()
        ]
        return {r["trial_id"]: r for r in found}

    def events(self, folder: Path, name: str) -> list[dict[str, Any]]:
        lines = (folder / name).read_text().splitlines() if (folder / name).exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def runs(self, sweep: str, kind: str = "trial") -> list[Any]:
        """MLflow runs of a sweep in the default store."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{self.cwd}/mlflow.db")
        experiment = client.get_experiment_by_name("harness")
        assert experiment is not None
        return list(
            client.search_runs(
                [experiment.experiment_id], f"tags.kind = '{kind}' and tags.sweep = '{sweep}'", max_results=500
            )
        )


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: str = "the condition") -> Any:
    """Poll until truthy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def session_members(session: int) -> list[int]:
    """Living processes of a session: what a command line left behind."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def kill(pid: int, sig: int = signal.SIGKILL) -> None:
    os.kill(pid, sig)
