"""Sweeps that are named again, and books that are made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store import mlflow_sync
from harness.store.mlflow_store import Tracking, client, open_sweep
from tests.runs import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


@pytest.mark.slow
def test_a_named_sweep_resumes_reuses_and_evaluates_without_training(sandbox: Sandbox) -> None:
    first = sandbox.run("-m", "adapter=full,lora", "rank=8,16", "sweep=again")
    assert first.returncode == 0, first.stderr
    folders = sandbox.folders("again")
    assert len(folders) == 3 and "same trial" in first.stderr, "full fine-tuning has no rank"
    before = {f.name: (f / "worker.jsonl").read_text() for f in folders}

    second = sandbox.run("-m", "adapter=full,lora", "rank=8,16", "sweep=again")
    assert second.returncode == 0 and second.stdout.count("reused") >= 3
    assert before == {f.name: (f / "worker.jsonl").read_text() for f in folders}
    assert len(sandbox.runs("again")) == 3

    third = sandbox.run("-m", "adapter=full", "rank=8", "sweep=again", "eval.evaluators.true_reward.samples=2")
    assert third.returncode == 0 and "evaluates without training" in third.stderr, third.stderr
    (full,) = [f for f in folders if "full" in f.name]
    attempts = [e for e in sandbox.events(full, "runner.jsonl") if e["kind"] == "attempt"]
    assert [a["mode"] for a in attempts] == ["train", "evaluate"] and attempts[1]["continues"]
    assert sum(e["kind"] == "series" for e in sandbox.events(full, "worker.jsonl")) == before[full.name].count(
        '"series"'
    )
    assert len(sandbox.runs("again")) == 3, "the same run, evaluated anew"

    forced = sandbox.run("adapter=full", "sweep=again", "resume=false", "eval.evaluators.true_reward.samples=2")
    assert forced.returncode == 0 and "resume=false" in forced.stderr
    assert len(sandbox.runs("again")) == 3, "a newer attempt replaces the older one's run"


@pytest.mark.slow
def test_sync_rebuilds_a_lost_database(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox.run("algo=sft", "sweep=lost").returncode == 0
    (before,) = sandbox.runs("lost")
    (sandbox.cwd / "mlflow.db").unlink()
    assert sandbox.run("sync", quick=False).returncode == 0
    (after,) = sandbox.runs("lost")
    assert after.data.metrics == before.data.metrics and after.data.params == before.data.params
    assert sandbox.run("sync", quick=False).returncode == 0
    assert len(sandbox.runs("lost")) == 1, "projecting twice changes nothing"

    # A store that fails in the middle (a locked database) must not get a second run at the next try.
    sweep = open_sweep(Tracking(uri=f"sqlite:///{sandbox.cwd}/second.db"), "lost")
    (folder,) = sandbox.folders("lost")
    with monkeypatch.context() as locked:
        locked.setattr(mlflow_sync, "describe_run", lambda *_: (_ for _ in ()).throw(RuntimeError("locked")))
        with pytest.raises(RuntimeError, match="locked"):
            mlflow_sync.project(folder, sweep)
    mlflow_sync.project(folder, sweep)
    (whole,) = client(sweep.uri).search_runs([sweep.experiment_id], "tags.kind = 'trial'")
    assert whole.data.params == before.data.params and whole.info.status == "FINISHED"
