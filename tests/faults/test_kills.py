"""Whole command lines, killed at random: no process is left, nothing is lost, and each trial is in MLflow once."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runs import Sandbox, alive, session_members, wait_for

KILLS = int(os.environ.get("HARNESS_FAULT_KILLS", "4"))
PER_SWEEP = 10
"""Kills before a sweep may end."""
VICTIMS = ("worker", "parent", "both", "forkserver")
LATEST_S = float(os.environ.get("HARNESS_FAULT_LATEST_S", "25"))
"""After its start a command is killed at some moment up to here: about as long as it takes."""
SWEEP = ("-m", "algo=dpo,ppo", "train.steps=40", "train.checkpoint_steps=2", "train.logging_steps=1")


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_text().rsplit(")", 1)[1].split()[1] == str(pid):
                found.append(int(stat.parent.name))
    return found


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def server_of(parent: int) -> int | None:
    return next((pid for pid in children(parent) if "multiprocessing.forkserver" in command(pid)), None)


def end(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def strike(process, chance: random.Random) -> str:
    """Kill one of the victims that are there; those that die with it must be gone within five seconds."""
    victim = chance.choice(VICTIMS)
    server = server_of(process.pid)
    workers = [] if server is None else children(server)
    left = [*children(process.pid), *workers]
    if victim in ("worker", "both") and workers:
        end(chance.choice(workers))
    if victim == "forkserver":
        end(server)
    if victim in ("parent", "both"):
        end(process.pid)
        process.wait()
        wait_for(lambda: not session_members(process.pid), 5, f"everything of a killed {victim} to be gone")
        wait_for(lambda: not any(map(alive, left)), 5, "the guard to be gone")
    return victim


@pytest.mark.slow
@pytest.mark.parametrize("seed", range((KILLS + PER_SWEEP - 1) // PER_SWEEP))
def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(seed, tmp_path, cache_dir):
    sandbox, chance = Sandbox(tmp_path, cache_dir), random.Random(seed)
    name, kills, told = f"k{seed}", min(PER_SWEEP, KILLS - seed * PER_SWEEP), []
    for _ in range(kills):
        process = sandbox.start(*SWEEP, f"sweep={name}")
        after = chance.uniform(0.2, LATEST_S)
        with suppress(Exception):
            process.wait(after)
        victim = strike(process, chance) if process.poll() is None else "none: it had ended"
        output, _ = process.communicate(timeout=400)
        told.append(f"{victim} after {after:.1f} s, exit {process.returncode}")
        print(told[-1], flush=True)
        assert "Traceback" not in output, output
        wait_for(lambda pid=process.pid: not session_members(pid), 5, "no process to be left")
    done = sandbox.run(*SWEEP, f"sweep={name}", timeout=600)
    assert done.returncode == 0, (told, done.stderr)
    results = sandbox.results(name)
    assert sorted(r["outcome"] for r in results.values()) == ["finished"] * 2
    runs = sandbox.runs(name)
    assert sorted(r.data.tags["trial_id"] for r in runs) == sorted(results), told
    assert {(r.info.status, r.data.tags["outcome"]) for r in runs} == {("FINISHED", "finished")}
    assert len(sandbox.runs(name, kind="sweep")) == 1
    for folder in sandbox.folders(name):
        for journal in ("worker.jsonl", "runner.jsonl"):
            lines = (folder / journal).read_text().splitlines()
            torn = [line for line in lines if not line.endswith("}")]
            assert len(torn) <= kills
            assert all(json.loads(line) for line in lines if line not in torn)
        run = next(r for r in runs if r.data.tags["trial_id"] == folder.name)
        written = {k for k in results[folder.name]["metrics"] if k.startswith(("eval/", "delta/", "train/"))}
        assert written <= set(run.data.metrics), "MLflow lacks what was measured"
