"""A report on ten thousand tracked runs, each of 40 metrics, 60 parameters and one series of 50 points.

    python bench/report_many.py            # or --runs 1000

Prints the seconds and the peak memory of ``python -m harness report``. The store is filled through SQL, since MLflow's
client would take an hour.
"""

from __future__ import annotations

import argparse
import random
import resource
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from common import workdir

from harness.store.mlflow_store import Tracking, open_sweep

BEGAN = 1_800_000_000_000
SEEDS = 3
ALGOS, ADAPTERS = ("ppo", "dpo", "ipo", "kto", "grpo"), ("full", "lora", "qlora")
KNOWN = {
    "eval/true_reward": 0.6, "eval/true_reward_stderr": 0.02, "eval/preference_accuracy": 0.8,
    "eval/preference_accuracy_stderr": 0.02, "eval/correct": 0.7, "eval/correct_stderr": 0.02,
    "eval/kl_per_sequence": 1.5, "eval/letters/exact_match": 0.98, "baseline/letters/exact_match": 0.99,
    "delta/letters/exact_match": -0.01, "delta/true_reward": 0.4, "memory/peak_mb": 500.0,
    "memory/prepare_peak_mb": 100.0, "memory/train_peak_mb": 500.0, "memory/evaluate_peak_mb": 200.0,
    "time/train_s": 40.0, "time/rollout_s": 10.0, "time/evaluate_s": 9.0, "time/total_s": 60.0,
    "throughput/train_tokens_per_s": 5000.0, "train/loss": 0.5,
}  # fmt: skip
METRICS, PARAMETERS, POINTS = 40, 60, 50


def fill(store: Path, runs: int) -> None:
    """A sweep ``many`` of so many trials."""
    sweep = open_sweep(Tracking(uri=f"sqlite:///{store}"), "many", {"command": "python -m harness -m sweep=many"})
    rng, database = random.Random(0), sqlite3.connect(store)
    for number in range(runs):
        recipe, seed = divmod(number, SEEDS)
        run_id, began = uuid.UUID(int=rng.getrandbits(128)).hex, BEGAN + 1000 * number
        algo, adapter = ALGOS[recipe % 5], ADAPTERS[recipe // 5 % 3]
        beta = round(0.01 * (1 + recipe // 15), 4)
        name = f"{algo}-{adapter}-b{beta:g}-r16-s{seed}-{number:08x}"
        outcome = "failed" if number % 50 == 49 else "finished"
        _insert(database, "runs", [(
            run_id, name, "UNKNOWN", "", "", "bench", "FINISHED", began, began + 60_000, "", "active",
            f"{store.parent}/artifacts/{run_id}", sweep.experiment_id, None,
        )], "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
            "source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time")  # fmt: skip
        tags = {
            "mlflow.runName": name, "mlflow.parentRunId": sweep.parent_id, "kind": "trial", "trial_id": name,
            "sweep": "many", "outcome": outcome, "reason": "ValueError: no rows" if outcome == "failed" else "",
            "algo": algo, "adapter": adapter, "model": "tiny", "task": "arithmetic", "device": "cpu",
            "device_name": "a processor", "precision": "fp32", "git_sha": "abc", "dataset_digest": "d",
            "base_digest": "b", "evaluator_digest": "e", "code_digest": "c", "command": "python -m harness",
        }  # fmt: skip
        _insert(database, "tags", [(k, v, run_id) for k, v in tags.items()], "key, value, run_uuid")
        settings = {
            "algo.name": algo, "adapter.name": adapter, "algo.beta": beta, "seed": seed, "beta": beta, "rank": 16,
            "adapter.rank": 16, "train.seed": seed, "train.learning_rate": 0.001, "eval.split": "test",
        }  # fmt: skip
        settings |= {f"train.setting_{i}": i for i in range(PARAMETERS - len(settings))}
        _insert(database, "params", [(k, str(v), run_id) for k, v in settings.items()], "key, value, run_uuid")
        level = random.Random(recipe).gauss(0, 0.1)  # a recipe's own
        metrics = {k: v * (1 + 0.05 * rng.gauss(0, 1)) + level * (k == "eval/true_reward") for k, v in KNOWN.items()}
        metrics |= {f"eval/measure_{i}": rng.random() for i in range(METRICS - len(metrics))}
        rows = [(k, v, began, run_id, 0, 0) for k, v in metrics.items() if outcome == "finished"]
        loss = [("train/loss", 1 / (1 + s), began + s, run_id, s, 0) for s in range(1, POINTS)]
        columns = "key, value, timestamp, run_uuid, step, is_nan"
        _insert(database, "metrics", [*rows, *loss], columns)
        _insert(database, "latest_metrics", [*(r for r in rows if r[0] != "train/loss"), loss[-1]], columns)
    database.commit()
    database.close()


def _insert(database: sqlite3.Connection, table: str, rows: list[tuple[object, ...]], columns: str) -> None:
    places = ", ".join("?" * len(rows[0])) if rows else ""
    database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)


def results_of(runs: int) -> Iterator[str]:
    """Lines: what was done, seconds, memory."""
    folder = workdir()
    started = time.perf_counter()
    fill(folder / "mlflow.db", runs)
    yield f"a store of {runs:,} trials: {time.perf_counter() - started:.0f} s to fill"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "harness", "report", "--sweep", "many"], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    seconds = time.perf_counter() - started
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 10**9
    kilobytes = (folder / "reports" / "many" / "report.md").stat().st_size / 1000
    yield f"report on {runs:,} runs: {seconds:.1f} s, {gigabytes:.2f} GB; report.md has {kilobytes:,.0f} kB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    for line in results_of(parser.parse_args().runs):
        print(line, flush=True)
