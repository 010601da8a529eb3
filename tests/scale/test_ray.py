"""Sweeps on Ray: a cluster of the sweep's own, and one that was there before."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.store.checkpoints import SEAL
from tests.runs import Sandbox, alive, free_port, wait_for

absent = [name for name in ("ray", "hydra_plugins.hydra_ray_launcher") if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(absent), reason="needs the extra: pip install -e '.[ray]'")]

ON_RAY = ("hydra/launcher=ray", "runner.threads=1")
OWN = ("hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.init.num_gpus=2")
LONG = ("algo=dpo", "train.steps=4000", "train.checkpoint_steps=20", "sweep=long")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Two GPUs, as Ray believes: it asks no driver, and torch here has no use for them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # the token lies in a home that tests do not share


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


@pytest.fixture
def standing(tmp_path_factory) -> Iterator[str]:
    """A cluster that somebody started elsewhere; its address."""
    port, elsewhere = free_port(), tmp_path_factory.mktemp("elsewhere")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=2"]
    start += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    subprocess.run(start, cwd=elsewhere, check=True, capture_output=True, timeout=120)
    yield f"127.0.0.1:{port}"
    subprocess.run([*ray, "stop", "--force"], capture_output=True, timeout=120)


def runner_of(folder: Path) -> int:
    """The process id of a trial's runner: the parent of the forkserver of its process."""
    first = next(line for line in (folder / "worker.jsonl").read_text().splitlines() if '"start"' in line)
    pid = int(json.loads(first)["pid"])
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def training(sandbox: Sandbox, sweep: str) -> Path:
    folder = wait_for(lambda: sandbox.folders(sweep), what="a trial")[0]
    wait_for(lambda: list((folder / "checkpoints").glob(f"checkpoint-*/{SEAL}")), what="a checkpoint")
    return folder


def test_four_trials_share_two_gpus_of_a_cluster_of_their_own(sandbox):
    done = sandbox.run("-m", "algo=dpo,ipo,kto,sft", *ON_RAY, *OWN, "sweep=wide", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    results = sandbox.results("wide")
    assert len(results) == 4 and {r["outcome"] for r in results.values()} == {"finished"}
    spans = []
    for folder in sandbox.folders("wide"):
        events = sandbox.events(folder, "runner.jsonl")
        spans.append((next(e["mask"] for e in events if e["kind"] == "gpus"), events[0]["time"], events[-1]["time"]))
    both = [(a, b) for a in spans for b in spans if a < b and a[1] < b[2] and b[1] < a[2]]
    assert both and all(a[0] != b[0] for a, b in both), spans
    assert len(sandbox.runs("wide")) == 4
    assert "ConfigStore" not in done.stderr and "Traceback" not in done.stderr


def test_without_a_gpu_a_trial_takes_cores(sandbox):
    done = sandbox.run("-m", "algo=dpo,ipo", *ON_RAY, "hydra.launcher.ray.init.num_cpus=2", "sweep=cores", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this cluster has no GPU; each trial takes 1 of its 2 cores" in done.stderr


def test_more_processes_than_a_node_has_gpus_is_a_clear_error(sandbox):
    wide = ("parallel.processes=4", "train.batch_size=16", "train.micro_batch_size=4")
    done = sandbox.run("-m", "algo=dpo,ipo", *wide, *ON_RAY, *OWN, "sweep=many", timeout=120)
    assert done.returncode == 2 and "parallel.processes=4" in done.stderr and "no node has more than 2" in done.stderr


@pytest.mark.nightly
def test_a_cluster_that_was_there_runs_it_from_its_own_folder(sandbox, standing):
    done = sandbox.run("-m", "algo=dpo,ipo,kto,sft", *ON_RAY, "sweep=wide", timeout=500, RAY_ADDRESS=standing)
    assert done.returncode == 0, done.stdout + done.stderr
    results = sandbox.results("wide")
    assert len(results) == 4 and {r["outcome"] for r in results.values()} == {"finished"}


def test_a_killed_workers_trial_is_started_once_more_and_never_doubled(sandbox):
    command = sandbox.start("-m", *LONG, "train.steps=300", *ON_RAY, *OWN)
    folder = training(sandbox, "long")
    os.kill(runner_of(folder), signal.SIGKILL)
    out, _ = command.communicate(timeout=400)
    assert command.returncode == 0, out
    assert "started once more" in out
    events = sandbox.events(folder, "runner.jsonl")
    outcomes = [e["outcome"] for e in events if e["kind"] == "outcome"]
    assert outcomes == ["interrupted", "finished"]
    assert "checkpoint" in [e for e in events if e["kind"] == "attempt"][1]["why"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_told_to_end_concludes_and_leaves_nothing(sandbox, number):
    command = sandbox.start("-m", *LONG, "algo=dpo,ipo,kto", *ON_RAY, *OWN)
    folder = training(sandbox, "long")
    pid = runner_of(folder)
    command.send_signal(number)
    out, _ = command.communicate(timeout=200)
    assert command.returncode == 1 and "resume:" in out and "Traceback" not in out, out
    results = sandbox.results("long").values()
    assert results and {r["outcome"] for r in results} == {"interrupted"}
    assert {r.info.status for r in sandbox.runs("long", "sweep")} == {"FAILED"}
    end = time.monotonic() + 20
    while time.monotonic() < end and alive(pid):
        time.sleep(0.2)
    assert not alive(pid)


def test_a_cluster_that_is_not_there_is_a_clear_error(sandbox):
    done = sandbox.run("-m", "algo=dpo,ipo", *ON_RAY, "sweep=none", timeout=200, RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "hydra.launcher.ray.init.address" in done.stderr
