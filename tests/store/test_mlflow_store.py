"""The store: opened by several commands at once, with a password that nobody sees, and what is said where it fails."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base import errors
from harness.base.errors import UserError
from harness.cli import concluding, launch
from harness.store import mlflow_store as tracking
from harness.store import mlflow_store as tracking_module
from harness.store.mlflow_store import Tracking, check_reachable, in_one_line, open_sweep

SECRET = "pa:ss/w@rd"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Of passwords in use, as at the start of a process."""
    monkeypatch.setattr(errors, "_secrets", {})
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", tracking.WHOLE_URI):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@contextlib.contextmanager
def server(code: int = 200, wait_s: float = 0.0) -> Iterator[tuple[str, list[str | None]]]:
    """A server on this machine: its host and port, and the ``Authorization`` headers that came."""
    heard: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization"))
            time.sleep(wait_s)
            with contextlib.suppress(OSError):
                self.send_response(code)
                self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{http.server_address[1]}", heard
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


# -- passwords -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "bare"),
    [
        (f"http://anna:{SECRET}@host:5000", "http://host:5000"),
        ("https://anna:s3cr3t@host/path?x=1", "https://host/path?x=1"),
        ("postgresql+psycopg://anna:s3cr3t@host/db", "postgresql+psycopg://host/db"),
        ("postgresql://host/db?password=s3cr3t", "postgresql://host/db?password=…"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////folder/of@anna/mlflow.db", "sqlite:////folder/of@anna/mlflow.db"),
    ],
)
def test_the_address_that_is_written_down_has_no_user_and_no_password(uri, bare):
    assert Tracking(uri=uri).resolved_uri == bare
    assert errors.without_password(f"cannot reach {uri}, s3cr3t or {SECRET}").count(
        "s3cr3t" if "s3" in uri else SECRET
    ) == (0 if bare != uri else 1)


def test_user_and_password_reach_the_server_and_nobody_else():
    with server() as (host, heard):
        check_reachable(Tracking(uri=f"http://anna:{SECRET}@{host}"))
        assert heard == ["Basic " + base64.b64encode(f"anna:{SECRET}".encode()).decode()]
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "anna"
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_a_database_is_opened_with_its_password_though_its_address_is_known_without():
    uri = "postgresql://anna:s3cr3t@host/db"
    assert tracking.whole_uri(Tracking(uri=uri).resolved_uri) == uri
    assert tracking.whole_uri("postgresql://other/db") == "postgresql://other/db"


def test_hydra_which_writes_its_overrides_to_disk_gets_none_of_it():
    given = ["algo=dpo", "tracking.uri=http://anna:s3cr3t@host"]
    kept = launch._without_credentials(given, Tracking(uri="http://anna:s3cr3t@host"))
    assert kept == ["algo=dpo", "tracking.uri='http://host'"]
    assert launch._without_credentials(["a=1"], Tracking()) == ["a=1"]


def test_an_error_quotes_a_library_without_the_password():
    Tracking(uri="http://anna:s3cr3t@host").resolved_uri  # noqa: B018
    shown = str(UserError("failed: password 's3cr3t' for http://anna:s3cr3t@host", value="s3cr3t"))
    assert "s3cr3t" not in shown
    assert "s3cr3t" not in in_one_line(ValueError("\n\nno s3cr3t\npage two"))


# -- servers -------------------------------------------------------------------------------------------


def refused(uri: str) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_sweep(Tracking(uri=uri), "s")
    assert time.monotonic() - started < 20
    return str(caught.value)


def test_a_server_that_asks_for_a_password_is_named_with_the_way_to_give_it():
    with server(401) as (host, _):
        said = refused(f"http://{host}")
        assert "it answers 401" in said and "USER:PASSWORD and an @" in said
        assert SECRET not in refused(f"http://anna:{SECRET}@{host}")


def test_a_server_that_is_down_is_said_at_once():
    with server() as (host, _):
        pass
    assert "cannot be reached" in refused(f"http://anna:{SECRET}@{host}")


def test_a_server_that_does_not_answer_in_time_is_given_up(monkeypatch):
    monkeypatch.setattr(tracking, "REACH_S", 0.2)
    with server(wait_s=1.0) as (host, _):
        assert "timed out" in refused(f"http://{host}")


# -- databases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "(sqlite3.OperationalError) table experiments already exists",
        "(sqlite3.OperationalError) duplicate column name: lifecycle_stage",
        '(psycopg.errors.UniqueViolation) violates unique constraint "uq_experiments_workspace_name"',
        "RESOURCE_ALREADY_EXISTS: Experiment(name=harness) already exists",
        "Detected out-of-date database schema",
        "database is locked",
    ],
)
def test_what_another_command_makes_at_that_moment_is_tried_again(monkeypatch, words):
    monkeypatch.setattr(tracking.time, "sleep", lambda s: None)
    answers = iter([RuntimeError(words), RuntimeError(words), None])

    def make() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "made"

    assert tracking.patiently(make) == "made"


def test_what_is_no_race_is_raised_at_once():
    calls: list[int] = []

    def make() -> None:
        calls.append(1)
        raise RuntimeError("permission denied for database")

    with pytest.raises(RuntimeError):
        tracking.patiently(make)
    assert len(calls) == 1


def test_two_parent_runs_made_at_once_become_the_older_one():
    runs: list[Any] = []
    deleted: list[str] = []

    def create(*_: Any, **__: Any) -> Any:
        for name, start in (("theirs", 1), ("mine", 2)):
            runs.append(SimpleNamespace(info=SimpleNamespace(run_id=name, start_time=start)))
        return runs[1]

    api = SimpleNamespace(create_run=create, search_runs=lambda *_, **__: list(runs), delete_run=deleted.append)
    assert tracking._parent(api, "1", "s", {}) == "theirs"
    assert deleted == ["mine"]


def test_a_new_database_is_made_beside_its_place_and_what_a_killed_command_left_is_cleared(tmp_path):
    left = tmp_path / ".mlflow.db.new"
    left.write_text("half")
    (tmp_path / ".mlflow.db.new-journal").write_text("half")

    def make(draft: Path) -> None:
        assert not draft.exists() and not (tmp_path / "mlflow.db").exists()
        draft.write_text("whole")

    tracking._make_tables(tmp_path / "mlflow.db", make)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"mlflow.db": "whole"}
    tracking._make_tables(tmp_path / "mlflow.db", lambda draft: pytest.fail("it is there"))


def test_a_missing_driver_is_named_with_the_extra_that_brings_it(monkeypatch):
    def client(uri: str) -> Any:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(tracking, "client", client)
    said = refused("postgresql://anna:s3cr3t@host/db")
    assert "pip install 'alignment-harness[postgres]'" in said and "psycopg" in said and "s3cr3t" not in said
    assert "mysql+DRIVER://" in refused("mysql://host/db")


@pytest.mark.slow
def test_two_commands_that_use_a_store_for_the_first_time_at_once_agree_on_it(tmp_path):
    script = (
        "import json, sys\nfrom harness.store.mlflow_store import Tracking, open_sweep\n"
        "print(json.dumps(vars(open_sweep(Tracking(uri=sys.argv[1]), 's'))))\n"
    )
    two = [
        subprocess.Popen(
            [sys.executable, "-c", script, f"sqlite:///{tmp_path}/mlflow.db"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0, 0]
    assert len({json.dumps(json.loads(text.splitlines()[-1]), sort_keys=True) for text in said}) == 1


# -- what a sweep does about it ------------------------------------------------------------------------


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="outputs=.*cannot be written"):
        launch.check_writable(tmp_path / "file" / "sweep")
    with pytest.raises(UserError, match="outputs=.*cannot be written"):
        launch.check_writable(Path("/proc/sweep"))
    launch.check_writable(tmp_path / "new" / "sweep")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("required", "code"), [(True, 1), (False, 0)])
def test_a_store_that_is_full_is_one_line_and_an_exit_code_where_it_is_required(
    tmp_path, monkeypatch, capsys, required, code
):
    from harness.store import mlflow_sync

    def full(*_: Any) -> None:
        raise RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO metrics ...]\n" * 9)

    trial = tmp_path / "s" / "dpo-1"
    trial.mkdir(parents=True)
    (trial / "runner.jsonl").touch()
    monkeypatch.setattr(mlflow_sync, "project", full)
    monkeypatch.setattr(concluding, "close_sweep", full)
    monkeypatch.setattr(
        concluding, "result_of", lambda folder: SimpleNamespace(outcome=concluding.Outcome.FINISHED, attempt=9e9)
    )
    sweep = SimpleNamespace(
        folder=tmp_path / "s",
        name="s",
        expanded=False,
        tracking=Tracking(required=required),
        points=(),
        own_process=True,
    )
    run = tracking.SweepRun("sqlite:////nowhere.db", "1", "parent")
    assert concluding.conclude(sweep, run, 0.0) == code  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "disk is full" in said and "harness sync" in said
    assert "SQL:" not in said and all(len(line) < 300 for line in said.splitlines())


def test_an_experiment_that_was_deleted_is_said_to_be_so(tmp_path):
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/m.db", experiment="gone")
    run = open_sweep(tracking, "a")
    tracking_module.client(tracking.resolved_uri).delete_experiment(run.experiment_id)
    with pytest.raises(UserError, match="the experiment was deleted in MLflow") as caught:
        open_sweep(tracking, "b")
    assert f"restore -x {run.experiment_id}" in str(caught.value.fix)


def test_a_database_without_the_library_that_opens_it_is_told_beforehand(monkeypatch, tmp_path):
    # mlflow-skinny: `doctor` said that the store can be used, and the sweep that it cannot.
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="(?s)sqlalchemy is not installed.*mlflow-skinny keeps no database"):
        check_reachable(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"))
