"""Whole sweeps, as a user runs them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.store.checkpoints import SEAL
from tests.runs import Sandbox, alive, free_port, session_members, wait_for

LONG = ("train.steps=4000", "train.logging_steps=1")


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


def worker_pid(sandbox: Sandbox, sweep: str, phase: str = "train") -> int:
    """Pid of the running worker, once it has entered ``phase``."""

    def look() -> int | None:
        for folder in sandbox.folders(sweep):
            events = sandbox.events(folder, "worker.jsonl")
            if any(e["kind"] == "progress" and e["what"] == phase for e in events):
                return next(e["pid"] for e in reversed(events) if e["kind"] == "start")
        return None

    return wait_for(look, what=f"a worker in {phase}")


def test_a_sweep_trains_judges_tracks_and_reports_every_trial(sandbox: Sandbox) -> None:
    done = sandbox.run("-m", "algo=dpo,grpo", "sweep=main")

    assert done.returncode == 0, done.stderr
    assert "dpo" in done.stdout and "grpo" in done.stdout and "mlflow ui" in done.stdout
    assert "Loading weights" not in done.stdout + done.stderr, "library chatter belongs into worker.log"
    report = sandbox.cwd / "reports" / "main" / "report.md"
    assert report.exists() and "![" in report.read_text()
    results = sandbox.results("main")
    assert {r["outcome"] for r in results.values()} == {"finished"} and len(results) == 2
    for result in results.values():
        metrics = result["metrics"]
        for name in (
            "eval/true_reward",
            "baseline/true_reward",
            "delta/true_reward",
            "memory/peak_mb",
            "memory/train_peak_mb",
            "time/train_s",
            "throughput/train_tokens_per_s",
            "params/trainable",
        ):
            assert name in metrics, (result["trial_id"], name)
        assert "baseline/preference_accuracy" not in metrics
    for folder in sandbox.folders("main"):
        for name in ("config.yaml", "worker.jsonl", "runner.jsonl", "worker.log", "result.json"):
            assert (folder / name).exists(), name
    runs = sandbox.runs("main")
    assert {r.info.status for r in runs} == {"FINISHED"} and {r.data.tags["outcome"] for r in runs} == {"finished"}
    (parent,) = sandbox.runs("main", kind="sweep")
    assert {r.data.tags["mlflow.parentRunId"] for r in runs} == {parent.info.run_id}
    written = report.read_text()
    assert "(memory_by_phase.png)" in written and "(reliability.png)" in written and "## Data\n" in written
    for run in runs:  # the recorded command is the trial's own
        program, *overrides = shlex.split(run.data.tags["command"])
        assert [program, *overrides[:2]] == ["python", "-m", "harness"] and run.data.tags["command"] in written
        alone = sandbox.run("validate", *overrides[2:], quick=False)
        assert alone.stdout == f"ok  {run.data.tags['trial_id']}\n", alone.stderr
    assert all(set(r.data.metrics) >= set(results[r.data.tags["trial_id"]]["metrics"]) - {"nan"} for r in runs)
    assert {r.data.params["algo.beta"] for r in runs} == {"0.1", "0.04"}


@pytest.mark.slow
def test_a_killed_worker_is_a_row_and_the_sweep_goes_on(sandbox: Sandbox) -> None:
    process = sandbox.start("-m", "algo=dpo,sft", "sweep=killed", *LONG)
    pid = worker_pid(sandbox, "killed")
    os.kill(pid, signal.SIGKILL)
    first = wait_for(lambda: sandbox.results("killed"), what="the first result")
    (result,) = first.values()
    assert result["outcome"] == "failed" and "signal 9" in result["reason"]
    assert result["metrics"]["memory/peak_mb"] > 0 and result["metrics"]["train/loss"] > 0
    second = worker_pid_of_other(sandbox, "killed", result["trial_id"])
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    wait_for(lambda: not alive(second), 5, "the interrupted worker to be gone")
    wait_for(lambda: not session_members(process.pid), 5, "no process to be left")
    outcomes = sorted(r["outcome"] for r in sandbox.results("killed").values())
    assert outcomes == ["failed", "interrupted"], output
    assert sorted(r.info.status for r in sandbox.runs("killed")) == ["FAILED", "KILLED"]


def worker_pid_of_other(sandbox: Sandbox, sweep: str, done: str) -> int:
    def look() -> int | None:
        for folder in sandbox.folders(sweep):
            events = sandbox.events(folder, "worker.jsonl")
            if folder.name != done and any(e["kind"] == "progress" and e["what"] == "train" for e in events):
                return next(e["pid"] for e in events if e["kind"] == "start")
        return None

    return wait_for(look, what="the second worker")


@pytest.mark.slow
def test_a_killed_runner_leaves_no_process_and_the_next_start_finishes_what_is_missing(sandbox: Sandbox) -> None:
    steps = ("train.steps=4000", "train.checkpoint_steps=5")
    process = sandbox.start("-m", "algo=sft,dpo", "sweep=orphan", *steps)
    pid = worker_pid(sandbox, "orphan")
    (folder,) = [f for f in sandbox.folders("orphan")]
    wait_for(lambda: list((folder / "checkpoints").glob(f"checkpoint-*/{SEAL}")), what="a checkpoint")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    wait_for(lambda: not alive(pid), 5, "the worker to follow its runner")
    wait_for(lambda: not session_members(process.pid), 5, "the forkserver to be gone")
    for name in ("worker.jsonl", "runner.jsonl"):
        lines = (folder / name).read_text().splitlines()
        assert all(json.loads(line) for line in lines[:-1]), "only the last line may be torn"

    synced = sandbox.run("sync", "--sweep", "orphan", quick=False)
    assert synced.returncode == 0, synced.stderr
    (run,) = sandbox.runs("orphan")
    assert run.data.tags["outcome"] == "interrupted" and run.info.status == "KILLED"
    assert run.data.metrics["memory/peak_mb"] > 0

    # Shorter than the checkpoint's distance would be another training, so the same configuration must continue.
    again = sandbox.start("-m", "algo=sft,dpo", "sweep=orphan", *steps)
    try:
        wait_for(
            lambda: any(
                "continues from checkpoint" in e.get("message", "") for e in sandbox.events(folder, "worker.jsonl")
            ),
            what="the resumed trial",
        )
    finally:  # what goes on training would be in the way of the tests after this one
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=60)
    attempts = [e for e in sandbox.events(folder, "runner.jsonl") if e["kind"] == "attempt"]
    assert [a["continues"] for a in attempts] == [False, True]


@pytest.mark.slow
def test_timeout_and_out_of_memory_are_rows_with_their_high_water_mark(sandbox: Sandbox) -> None:
    late = sandbox.run("sweep=late", *LONG, "runner.timeout_s=6", quick=True)
    assert late.returncode == 1
    (result,) = sandbox.results("late").values()
    assert result["outcome"] == "timeout" and result["metrics"]["memory/peak_mb"] > 0

    big = sandbox.run(
        "-m",
        "algo=sft",
        "model=shape/llama-10m,shape/llama-1b",
        "sweep=big",
        "runner.memory_limit_mb=2500",
        "eval=none",
        "runner.predict=false",
        "task.pairs=16",
        "train.steps=2",
        "train.batch_size=4",
        "train.max_length=96",
        "train.save=none",
        quick=False,
    )
    assert big.returncode == 1, big.stderr
    results = {r["config"]["model"]["label"]: r for r in sandbox.results("big").values()}
    assert results["llama-10m"]["outcome"] == "finished", results["llama-10m"]["reason"]
    assert results["llama-1b"]["outcome"] == "oom", results["llama-1b"]["reason"]
    assert results["llama-1b"]["metrics"]["memory/peak_mb"] > 0
    assert "oom" in big.stdout


@pytest.mark.slow
def test_a_tracking_server_that_goes_away_loses_nothing(sandbox: Sandbox) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"

    def serve() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--workers",
                "1",
                "--backend-store-uri",
                f"sqlite:///{sandbox.cwd}/server.db",
                "--artifacts-destination",
                str(sandbox.cwd / "a"),
            ],
            cwd=sandbox.cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda: _answers(port), 90, "the server")
        return server

    def stop(server: subprocess.Popen[bytes]) -> None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    refused = sandbox.run(f"tracking.uri={uri}", "sweep=none")
    assert refused.returncode == 2 and "tracking.uri" in refused.stderr and "Traceback" not in refused.stderr

    server = serve()
    try:
        process = sandbox.start(
            "algo=sft", "sweep=outage", f"tracking.uri={uri}", "train.steps=60", "train.logging_steps=1"
        )
        worker_pid(sandbox, "outage")
        stop(server)
        time.sleep(3)
        server = serve()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        synced = sandbox.run("sync", "--sweep", "outage", f"tracking.uri={uri}", quick=False)
        assert synced.returncode == 0, synced.stderr
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        (experiment,) = [e for e in client.search_experiments() if e.name == "harness"]
        (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
        (folder,) = sandbox.folders("outage")
        written = [e for e in sandbox.events(folder, "worker.jsonl") if e["kind"] == "series"]
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == sum(
            "train/loss" in e["values"] for e in written
        )
        assert run.data.tags["outcome"] == "finished"
    finally:
        stop(server)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_launchers_run_four_trials_under_one_parent(sandbox: Sandbox, launcher: str) -> None:
    extra = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    done = sandbox.run("-m", "algo=dpo,ipo,kto,sft", f"hydra/launcher={launcher}", *extra, "sweep=wide", timeout=500)
    assert done.returncode == 0, done.stderr
    assert [r["outcome"] for r in sandbox.results("wide").values()] == ["finished"] * 4
    assert len(sandbox.runs("wide")) == 4 and len(sandbox.runs("wide", kind="sweep")) == 1
