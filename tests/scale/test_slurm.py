"""Sweeps on a real Slurm: each trial a job, whatever becomes of one of them, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.store.checkpoints import SEAL
from tests.runs import Sandbox, wait_for
from tests.scale import slurm

pytestmark = pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing()))

ON_SLURM = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=10",
    "runner.threads=1",
)
LONG = ("train.steps=4000", "train.checkpoint_steps=20", "algo=dpo", "sweep=long")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[slurm.Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
            patch.setenv("SLURM_CONF", found.environment["SLURM_CONF"])
            yield found


@pytest.fixture
def sandbox(tmp_path, cache_dir) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


def only_folder(sandbox: Sandbox, sweep: str) -> Path:
    return wait_for(lambda: sandbox.folders(sweep), what="a trial")[0]


def checkpoint_of(sandbox: Sandbox, sweep: str) -> Path:
    folder = only_folder(sandbox, sweep)
    return wait_for(lambda: sorted((folder / "checkpoints").glob(f"checkpoint-*/{SEAL}")), what="a checkpoint")[0]


def attempts(sandbox: Sandbox, sweep: str) -> list[dict]:
    return [e for e in sandbox.events(only_folder(sandbox, sweep), "runner.jsonl") if e["kind"] == "attempt"]


@pytest.mark.slow
def test_four_trials_have_a_gpu_each_and_one_parent(sandbox, cluster):
    done = sandbox.run("-m", "algo=dpo,ipo,kto,sft", *ON_SLURM, "sweep=wide", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ConfigStore" not in done.stderr and "does not share" not in done.stderr
    results = sandbox.results("wide")
    assert len(results) == 4 and {r["outcome"] for r in results.values()} == {"finished"}
    spans = []
    for folder in sandbox.folders("wide"):
        events = sandbox.events(folder, "runner.jsonl")
        mask = next(e["mask"] for e in events if e["kind"] == "gpus")
        assert mask in ("0", "1")
        spans.append((mask, events[0]["time"], events[-1]["time"]))
    both = [(a, b) for a in spans for b in spans if a < b and a[1] < b[2] and b[1] < a[2]]
    assert both, "two of them ran at once"
    assert all(a[0] != b[0] for a, b in both), "and each on its own GPU"
    assert len(sandbox.runs("wide")) == 4 and not cluster.jobs()


@pytest.mark.nightly
def test_a_preempted_trial_goes_on_from_its_checkpoint(sandbox, cluster):
    command = sandbox.start("-m", *LONG, "train.steps=600", "train.checkpoint_steps=null", *ON_SLURM)
    folder = only_folder(sandbox, "long")
    wait_for(lambda: (folder / "worker.jsonl").exists() and '"series"' in (folder / "worker.jsonl").read_text())
    cluster.ask("srun", "--partition=urgent", "--gres=gpu:2", "sleep", "1")  # takes the GPUs of the lower partition
    out, _ = command.communicate(timeout=400)
    assert command.returncode == 0, out
    (result,) = sandbox.results("long").values()
    assert result["outcome"] == "finished", out
    first, second = attempts(sandbox, "long")[0], attempts(sandbox, "long")[-1]
    assert not first["continues"] and "checkpoint" in second["why"], (first, second)


@pytest.mark.slow
def test_a_cancelled_job_is_interrupted_and_not_started_again(sandbox, cluster):
    command = sandbox.start("-m", *LONG, *ON_SLURM)
    checkpoint_of(sandbox, "long")
    cluster.ask("scancel", "--user=root")
    out, _ = command.communicate(timeout=200)
    assert command.returncode == 1 and "Traceback" not in out, out
    (result,) = sandbox.results("long").values()
    assert result["outcome"] == "interrupted", result
    assert len(attempts(sandbox, "long")) == 1 and "cancelled" in out and "report:" in out


@pytest.mark.nightly
def test_a_time_limit_requeues_and_at_last_ends(sandbox, cluster):
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=1")
    command = sandbox.start("-m", *LONG, "train.checkpoint_steps=null", *ON_SLURM, *limit)
    out, _ = command.communicate(timeout=400)
    assert command.returncode == 1 and "Traceback" not in out, out
    (result,) = sandbox.results("long").values()
    assert result["outcome"] == "interrupted", result
    assert "timed-out too many times" in out + str(result["reason"])
    tried = attempts(sandbox, "long")
    assert len(tried) == 2 and "checkpoint" in tried[1]["why"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_told_to_end_leaves_no_job(sandbox, cluster, number):
    command = sandbox.start("-m", *LONG, "algo=dpo,ipo,kto", *ON_SLURM)
    checkpoint_of(sandbox, "long")
    command.send_signal(number)
    out, _ = command.communicate(timeout=200)
    assert command.returncode == 1 and "resume:" in out and "Traceback" not in out, out
    assert not cluster.jobs()
    results = sandbox.results("long").values()
    assert results and {r["outcome"] for r in results} == {"interrupted"}
    assert {r.info.status for r in sandbox.runs("long", "sweep")} == {"FAILED"}


@pytest.mark.slow
def test_a_slurm_that_takes_no_job_is_a_clear_error(sandbox, cluster):
    done = sandbox.run("-m", "algo=dpo,ipo", *ON_SLURM, "hydra.launcher.partition=nope", "sweep=none")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "hydra/launcher" in done.stderr and "partition" in done.stderr


@pytest.mark.slow
def test_a_machine_without_slurm_is_a_clear_error(sandbox):
    done = sandbox.run("-m", "algo=dpo,ipo", *ON_SLURM, "sweep=none", PATH=str(Path(sys.executable).parent))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert subprocess.list2cmdline(["sinfo"]) in done.stderr
