"""A store for a team: an MLflow server with its artifacts, on PostgreSQL, used by several drivers at once."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.runs import Sandbox, free_port, wait_for

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres"


def missing() -> str | None:
    if not PROGRAMS:
        return "needs PostgreSQL: apt-get install postgresql"
    if os.geteuid() != 0:
        return "PostgreSQL of our own needs root, to become its user"
    if importlib.util.find_spec("psycopg") is None:
        return "needs the extra: pip install -e '.[postgres]'"
    return None


pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
PASSWORD = "s3cr3t-of-the-team"


@contextmanager
def postgres() -> Iterator[str]:
    """A database server on a loopback address; it holds the empty databases mlflow and direct."""
    root, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    root.chmod(0o755)
    data, secret = root / "data", root / "secret"
    secret.write_text(PASSWORD)
    for path in (root, secret):
        shutil.chown(path, USER)
    tool = PROGRAMS[-1]
    make = [tool / "initdb", "-D", data, "--auth=scram-sha-256", f"--pwfile={secret}", "--username=team"]
    subprocess.run([str(word) for word in make], check=True, user=USER, capture_output=True, cwd=root)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", f"unix_socket_directories={root}"]
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            [str(tool / "postgres"), "-D", str(data), *options], user=USER, stdout=log, stderr=log
        )
        try:
            env = {**os.environ, "PGPASSWORD": PASSWORD}
            make = [str(tool / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "team"]
            for name in ("mlflow", "direct"):
                command = [*make, name]
                done = partial(subprocess.run, command, env=env, capture_output=True)
                wait_for(lambda done=done: done().returncode == 0, 30, "the database")
            yield f"postgresql+psycopg://team:{PASSWORD}@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
            shutil.rmtree(root, ignore_errors=True)


@dataclass
class Server:
    """``mlflow server``, which can be killed and started again."""

    database: str
    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--artifacts-destination", str(self.root / "artifacts"), "--workers", "1"]
        env = {**os.environ, "MLFLOW_BACKEND_STORE_URI": self.database, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.root / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=env, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.answers, 90, "the MLflow server")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as found:
        yield found


@pytest.fixture
def server(database, tmp_path_factory) -> Iterator[Server]:
    made = Server(f"{database}/mlflow", tmp_path_factory.mktemp("server"), free_port())
    made.start()
    yield made
    made.kill()


@pytest.fixture
def sandboxes(tmp_path, cache_dir) -> list[Sandbox]:
    """Two people's folders, and a third that has no outputs."""
    found = [Sandbox(tmp_path / name, cache_dir) for name in ("anna", "ben", "ci")]
    for sandbox in found:
        sandbox.cwd.mkdir()
    return found


def test_two_sweeps_at_once_on_an_empty_store_then_report_and_gate_from_it_alone(sandboxes, server):
    store = f"tracking.uri={server.uri}"
    started = [
        sandbox.start("-m", "algo=dpo,ipo", "seed=0,1", store, f"sweep={name}", "runner.threads=1")
        for sandbox, name in zip(sandboxes, ("anna", "ben"), strict=False)
    ]
    ended = [(command, command.communicate(timeout=400)[0]) for command in started]
    for command, out in ended:
        assert command.returncode == 0, out
        assert "MLflow is behind" not in out
    ci = sandboxes[2]
    for name in ("anna", "ben"):
        done = ci.run("report", f"--sweep={name}", store, quick=False)
        assert done.returncode == 0, done.stderr
        text = (ci.cwd / "reports" / name / "report.md").read_text()
        assert text.count("dpo-lora") and (ci.cwd / "reports" / name / "quality_against_memory.png").is_file()
    made = ci.run("gate", "--update", "--baseline=b.json", "--candidate=anna", "--reason=first", store, quick=False)
    assert made.returncode == 0, made.stderr
    judged = ci.run("gate", "--baseline=b.json", "--candidate=ben", store, quick=False)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "passed" in judged.stdout


def test_a_server_that_is_killed_and_comes_back_has_all_in_the_end(sandboxes, server):
    anna, store = sandboxes[0], f"tracking.uri={server.uri}"
    command = anna.start("-m", "algo=dpo,ipo,kto", store, "sweep=back", "train.steps=40", "runner.threads=1")
    folder = wait_for(lambda: anna.folders("back"), what="a trial")[0]
    worker = folder / "worker.jsonl"
    wait_for(lambda: worker.exists() and '"series"' in worker.read_text(), what="training")
    server.kill()
    wait_for(lambda: (folder / "result.json").exists(), what="the first trial's end")
    server.start()
    out, _ = command.communicate(timeout=400)
    assert command.returncode == 0, out
    done = sandboxes[2].run("report", "--sweep=back", store, "--format=csv", quick=False)
    assert done.returncode == 0, done.stderr
    rows = (sandboxes[2].cwd / "reports" / "back").glob("*.csv")
    assert sum(len(path.read_text().splitlines()) - 1 for path in rows) >= 3


def test_a_servers_experiment_is_not_filled_through_its_database(sandboxes, server, database):
    anna = sandboxes[0]
    assert anna.run("algo=dpo", f"tracking.uri={server.uri}", "tracking.experiment=ours").returncode == 0
    done = anna.run("algo=ipo", f"tracking.uri={database}/mlflow", "tracking.experiment=ours")
    assert done.returncode == 2 and "tracking.uri=" in done.stderr, done.stdout + done.stderr
    assert "lie behind the MLflow server" in done.stderr and PASSWORD not in done.stderr
    assert len(list(anna.cwd.glob("outputs/*/*/trial.json"))) == 1


def test_a_database_is_used_directly_and_its_password_shown_nowhere(sandboxes, database):
    anna, ben, ci = sandboxes
    database = f"{database}/direct"
    started = [
        sandbox.start("-m", "algo=dpo,ipo", f"tracking.uri={database}", f"sweep=direct-{k}", "runner.threads=1")
        for k, sandbox in enumerate((anna, ben))
    ]
    ended = [(command, command.communicate(timeout=400)[0]) for command in started]
    for command, out in ended:
        assert command.returncode == 0, out
        assert PASSWORD not in out
    for sandbox in (anna, ben):
        held = [p for p in sandbox.cwd.rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
        assert held == []
    done = ci.run("sync", f"--outputs={anna.cwd / 'outputs'}", f"tracking.uri={database}", quick=False)
    assert done.returncode == 0 and "2 of 2 trials" in done.stdout, done.stdout + done.stderr
    assert json.loads((anna.folders("direct-0")[0] / "result.json").read_text())["outcome"] == "finished"
