"""``harness sync``: each trial by itself, and no password in anything that is written."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from harness.base.records import Outcome, Trial
from harness.cli.commands import sync
from harness.store import mlflow_store, mlflow_sync
from harness.store.journal import Journal
from harness.store.past import past_of
from harness.store.result import read_result
from tests.runs import Sandbox
from tests.store.test_past import begin, damage

TRIALS = [Trial(f"dpo-{n}", "s", {"algo": {"name": "dpo"}}, "t", "e") for n in range(4)]


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """A sweep of four trials whose runner was killed, and a store that takes note of what is projected."""
    for trial in TRIALS:
        (tmp_path / "s" / trial.trial_id).mkdir(parents=True)
        begin(tmp_path / "s" / trial.trial_id, trial).close()
    monkeypatch.setattr(mlflow_store, "open_sweep", lambda *_: mlflow_store.SweepRun("", "", ""))
    monkeypatch.setattr(mlflow_store, "close_sweep", lambda *_, **__: None)
    known = {True: "run", False: None}
    monkeypatch.setattr(mlflow_sync, "project", lambda folder, run: known[past_of(folder).began is not None])
    return tmp_path


def test_a_trial_that_cannot_be_synced_keeps_no_other_from_it(outputs, monkeypatch, capsys):
    def project(folder: Path, run: object) -> str:
        if folder.name == "dpo-1":
            raise RuntimeError("database is full\n[SQL: ...]")
        return folder.name

    monkeypatch.setattr(mlflow_sync, "project", project)
    assert sync(["--outputs", str(outputs)]) == 1
    said = capsys.readouterr()
    assert "3 of 4 trials" in said.out and said.err == "dpo-1: not synced: RuntimeError: database is full\n"
    assert all(read_result(outputs / "s" / t.trial_id).outcome is Outcome.INTERRUPTED for t in TRIALS)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null"])
@pytest.mark.parametrize("name", ["trial.json", "result.json", "config.yaml"])
def test_lost_or_damaged_files_stop_nothing(outputs, capsys, name, content):
    assert sync(["--outputs", str(outputs)]) == 0
    damage(outputs / "s" / "dpo-2" / name, content)
    assert sync(["--outputs", str(outputs)]) == 0
    assert "4 of 4 trials" in capsys.readouterr().out
    assert read_result(outputs / "s" / "dpo-2").outcome is Outcome.INTERRUPTED


def test_a_trial_of_which_nothing_can_be_read_is_named_and_left_out(outputs, capsys):
    for name in ("trial.json", "runner.jsonl"):
        (outputs / "s" / "dpo-3" / name).write_bytes(b"[]\n")
    assert sync(["--outputs", str(outputs), "--sweep", "s"]) == 0
    said = capsys.readouterr().out
    assert "dpo-3: no attempt that can be read" in said and "3 of 4 trials" in said


def test_a_journal_that_lost_its_worker_closes_as_interrupted(outputs):
    with closing(Journal(outputs / "s" / "dpo-0" / "worker.jsonl")) as worker:
        worker.write("metrics", values={"a": 1})
    assert sync(["--outputs", str(outputs)]) == 0
    assert read_result(outputs / "s" / "dpo-0").metrics == {"a": 1.0}


@pytest.mark.slow
def test_a_password_is_in_no_file_and_no_line_of_a_whole_sweep(tmp_path, cache_dir):
    sandbox = Sandbox(tmp_path, cache_dir)
    store = "tracking.uri=http://anna:s3cr3tw0rd@127.0.0.1:9"
    refused = sandbox.run("-m", "algo=dpo,sft", "sweep=p", store)
    assert refused.returncode == 2 and "cannot be reached" in refused.stderr
    done = sandbox.run("-m", "algo=dpo,sft", "sweep=p", store, "tracking.required=false")
    assert done.returncode == 0, done.stderr
    said = refused.stdout + refused.stderr + done.stdout + done.stderr
    assert "s3cr3tw0rd" not in said
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(files) > 10
    assert [f for f in files if b"s3cr3tw0rd" in f.read_bytes()] == []
