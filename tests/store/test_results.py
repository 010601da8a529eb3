"""Runs and result.json files -> one table. The store here is made by ``projection.project`` from real journals."""

from __future__ import annotations

import functools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.base.records import Outcome
from harness.store import results
from harness.store.mlflow_store import SweepRun, Tracking, client, open_sweep
from harness.store.mlflow_sync import project
from harness.store.result import write_result

BEGAN = 1_800_000_000.0
INJECTION = "</td><script>alert(1)</script> | `ticks`\nsecond line"


@dataclass(frozen=True)
class Fake:
    """A trial as runner and worker would have left it.

    Attributes:
        values: metrics written at the end.
        series: name -> values at steps 10, 20, ...
        memory: samples, one a second, in MB.
        tables: name -> rows.
        files: artifacts that are texts.
    """

    name: str
    algo: str = "dpo"
    adapter: str = "lora"
    rank: int | None = 16
    seed: int = 0
    sweep: str = "study"
    began: float = BEGAN
    outcome: Outcome = Outcome.FINISHED
    reason: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    memory: Sequence[float] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    dataset: str = "data-1"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, outputs: Path) -> Path:
        """Journals, ``trial.json`` and ``result.json`` below ``outputs/<sweep>``."""
        folder = outputs / self.sweep / self.name
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "algo": {"name": self.algo, "beta": 0.1},
            "adapter": {"name": self.adapter, "rank": self.rank},
            "model": {"name": "tiny"},
            "task": {"name": "arithmetic"},
            "train": {"steps": 30, **self.settings},
            "eval": {"split": "test"},
            "seed": self.seed,
            "beta": 0.1,
            "rank": self.rank,
        }
        trial = {
            "trial_id": self.name,
            "sweep": self.sweep,
            "config": config,
            "train_key": f"train-{self.name}",
            "eval_key": f"eval-{self.name}",
            "digests": {"dataset": self.dataset, "base": "base-1"},
            "environment": {
                "python": "3.11.7",
                "processor": "AMD EPYC",
                "cpu_count": 2,
                "versions": {"torch": "2.13.0+cpu", "trl": "1.16.0"},
                "git_sha": "abc123",
                "command": "/srv/harness/__main__.py -m algo=dpo,grpo sweep=study",
                "trial_command": f"python -m harness algo={self.algo} adapter={self.adapter}",
            },
        }
        (folder / "trial.json").write_text(json.dumps(trial))
        kind = "none" if self.algo in ("none", "sft") else "own" if self.adapter == "full" else "base"
        worker = [
            (0.5, "device", {"device": "cpu", "name": "AMD EPYC", "precision": "fp32"}),
            (0.6, "training", {"reference": kind, "quantized": self.adapter == "qlora"}),
        ]
        steps = max((len(v) for v in self.series.values()), default=0)
        for i in range(steps):
            point = {name: v[i] for name, v in self.series.items() if i < len(v)}
            worker.append((1.0 + i, "series", {"step": 10 * (i + 1), "values": point}))
        end = 2.0 + max(steps, len(self.memory))
        worker.append((end, "metrics", {"values": dict(self.values)}))
        worker += [(end, "table", {"name": n, "rows": list(rows)}) for n, rows in self.tables.items()]
        for name, words in self.files.items():
            (folder / "artifacts").mkdir(exist_ok=True)
            (folder / "artifacts" / name).write_text(words)
            worker.append((end, "artifact", {"path": name}))
        keys = {"train_key": trial["train_key"], "eval_key": trial["eval_key"]}
        runner = [(0.0, "attempt", {"mode": "train", "continues": False, **keys})]
        for i, used in enumerate(self.memory):
            sample = {"t": self.began + i, "used_mb": used, "lens": "private", "phase": "train", "n": 20}
            runner.append((float(i), "sample", sample))
        runner.append((end, "memory", {"lens": "private"}))
        runner.append((end + 1, "outcome", {"outcome": str(self.outcome), "reason": self.reason}))
        for name, events in (("worker", worker), ("runner", runner)):
            lines = [json.dumps({"time": self.began + t, "kind": kind, **data}) for t, kind, data in events]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        write_result(folder, self.outcome, self.reason, trial)
        return folder


def track(root: Path, fakes: Sequence[Fake], experiment: str = "harness") -> str:
    """Write the trials below ``root/outputs`` and project them into ``root/mlflow.db``; returns the store's URI."""
    tracking = Tracking(uri=f"sqlite:///{root / 'mlflow.db'}", experiment=experiment)
    runs: dict[str, SweepRun] = {}
    for fake in fakes:
        if fake.sweep not in runs:
            command = f"/srv/harness/__main__.py -m algo=dpo,grpo sweep={fake.sweep}"
            runs[fake.sweep] = open_sweep(tracking, fake.sweep, {"command": command})
        project(fake.write(root / "outputs"), runs[fake.sweep])
    return tracking.uri


def samples(*completions: str) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{i}+1=", "completion": c, "reward": 0.25 * i, "correct": bool(i), "tokens": 3, "ended": True}
        for i, c in enumerate(completions)
    ]


def finished(true_reward: float, peak_mb: float, **more: float) -> dict[str, float]:
    """The metrics of a finished trial."""
    return {
        "baseline/true_reward": 0.125,
        "baseline/true_reward_stderr": 0.0211,
        "baseline/correct": 0.25,
        "baseline/correct_stderr": 0.02,
        "eval/true_reward": true_reward,
        "eval/true_reward_stderr": 0.026,
        "eval/correct": 0.5,
        "eval/correct_stderr": 0.03,
        "eval/preference_accuracy": 0.8125,
        "eval/preference_accuracy_stderr": 0.0187,
        "eval/length_only_accuracy": 0.36,
        "eval/length_only_accuracy_stderr": 0.0224,
        "baseline/letters/exact_match": 1.0,
        "eval/letters/exact_match": 0.975,
        "eval/letters/exact_match_stderr": 0.011,
        "memory/peak_mb": peak_mb,
        "memory/train_peak_mb": peak_mb,
        "memory/evaluate_peak_mb": peak_mb - 100,
        "time/train_s": 25.04,
        "time/evaluate_s": 3.5,
        "time/total_s": 130.2,
        "throughput/train_tokens_per_s": 5109.3,
        **more,
    }


STUDY = (
    Fake(
        "dpo-lora-b0.1-r16-s0-11111111",
        values=finished(0.375, 577.1),
        series={"train/loss": [0.69, 0.6, 0.5], "train/rewards/accuracies": [0.5, 0.7, 0.8]},
        memory=[300.0, 577.1, 560.0],
        tables={"baseline_samples": samples("17", "18", "x" * 10_000), "eval_samples": samples("1", INJECTION, "3")},
        began=BEGAN,
    ),
    Fake(
        "grpo-qlora-b0.1-r16-s0-22222222",
        algo="grpo",
        adapter="qlora",
        values=finished(0.5, 640.0, **{"eval/preference_accuracy": 0.625, "eval/preference_ece": 0.1}),
        series={"train/loss": [0.01, 0.02, 0.01], "train/reward": [0.1, 0.3, 0.5], "train/kl": [0.0, 0.02, 0.05]},
        memory=[310.0, 640.0, 600.0],
        tables={
            "baseline_samples": samples("17", "18", "19"),
            "eval_samples": samples("1", INJECTION, "3"),
            "eval_reliability": [
                {"low": 0.5, "high": 0.75, "count": 30, "predicted": 0.6, "observed": 0.7},
                {"low": 0.75, "high": 1.0, "count": 10, "predicted": 0.9, "observed": 0.8},
            ],
        },
        files={"data_card.md": "# Data of arithmetic\n\n## Notes\n\n- made by a test\n"},
        began=BEGAN + 100,
    ),
    Fake(
        "dpo-full-b0.1-s0-33333333",
        adapter="full",
        rank=None,
        outcome=Outcome.OOM,
        reason="OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB | <b>now</b>",
        values={"memory/peak_mb": 79_900.0, "memory/train_peak_mb": 79_900.0},
        memory=[40_000.0, 79_900.0],
        began=BEGAN + 200,
    ),
    Fake(
        "kto-lora-b0.1-r16-s0-44444444",
        algo="kto",
        outcome=Outcome.FAILED,
        reason="ValueError: no rows",
        began=BEGAN + 300,
    ),
)


@functools.cache
def study_root(session: Path) -> Path:
    """A folder in the session's with ``mlflow.db`` and ``outputs/``: an older sweep of one trial, and the study.

    Made once for this module and ``test_report``, since MLflow takes seconds to create a database.
    """
    root = session / "study-store"
    root.mkdir()
    older = Fake("dpo-lora-b0.1-r16-s0-00000000", sweep="older", values=finished(0.2, 500.0), began=BEGAN - 9_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # MLflow puts artifacts below the working directory
        track(root, [older, *STUDY])
    return root


@pytest.fixture
def root(tmp_path_factory) -> Path:
    return study_root(tmp_path_factory.getbasetemp())


@pytest.fixture
def uri(root) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def test_the_newest_sweep_is_the_default_and_every_trial_is_one_row(uri):
    frame = results.from_mlflow(uri)
    assert list(frame["trial_id"]) == sorted(f.name for f in STUDY)
    assert set(frame["sweep"]) == {"study"}


def test_a_row_holds_texts_numbers_metrics_and_settings(uri):
    row = results.from_mlflow(uri, "older").iloc[0]
    assert (row["outcome"], row["algo"], row["adapter"], row["device"]) == ("finished", "dpo", "lora", "cpu")
    assert (row["beta"], row["rank"], row["seed"]) == (0.1, 16.0, 0.0)
    assert row["eval/true_reward"] == 0.2
    assert row["delta/true_reward"] == pytest.approx(0.075)
    assert row["params.train.steps"] == "30"
    assert row["started"] == BEGAN - 9_000


def test_what_a_trial_does_not_have_is_missing_and_never_zero(uri):
    frame = results.from_mlflow(uri, "study").set_index("trial_id")
    oom = frame.loc["dpo-full-b0.1-s0-33333333"]
    assert math.isnan(oom["rank"]) and math.isnan(oom["eval/true_reward"])
    assert oom["memory/peak_mb"] == 79_900.0
    assert frame["reason"].isna().tolist() == [False, True, True, False]


def test_a_folder_gives_the_same_table_as_mlflow(uri, root):
    tracked = results.from_mlflow(uri, "study")
    read = results.from_folder(root / "outputs" / "study")
    assert list(read.columns) == list(tracked.columns)
    from pandas.testing import assert_frame_equal

    assert_frame_equal(read.drop(columns=["run_id"]), tracked.drop(columns=["run_id"]))
    assert read["run_id"].isna().all()


def test_a_new_attempt_replaces_the_row_even_if_the_old_run_was_restored(root, uri, monkeypatch):
    monkeypatch.chdir(root)
    once = Fake("a", sweep="twice", outcome=Outcome.FAILED, reason="once", values={"eval/true_reward": 0.1})
    track(root, [once], experiment="retry")
    first = results.from_mlflow(uri, experiment="retry").iloc[0]
    track(root, [Fake("a", sweep="twice", values={"eval/true_reward": 0.9}, began=BEGAN + 50)], experiment="retry")
    client(uri).restore_run(first["run_id"])
    frame = results.from_mlflow(uri, experiment="retry")
    assert frame[["outcome", "eval/true_reward"]].values.tolist() == [["finished", 0.9]]


def test_rows_are_read_past_the_first_page(uri, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 1)
    assert len(results.from_mlflow(uri, "study")) == len(STUDY)


def test_a_wrong_sweep_is_told_the_known_ones_newest_first(uri):
    with pytest.raises(UserError, match="no such sweep\n  fix: known, newest first: study, older"):
        results.from_mlflow(uri, "studdy")


def test_a_sweep_without_trials_is_an_error_of_its_own(root, uri, monkeypatch):
    monkeypatch.chdir(root)
    open_sweep(Tracking(uri=uri, experiment="empty"), "it's empty")
    with pytest.raises(UserError, match="no trial of this sweep has started"):
        results.from_mlflow(uri, "it's empty", experiment="empty")
    with pytest.raises(UserError, match="holds no trial yet"):
        results.from_mlflow(uri, experiment="empty")


def test_a_missing_store_is_an_error_and_is_not_created(tmp_path):
    with pytest.raises(UserError, match="there is no such MLflow store"):
        results.from_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_experiment_is_told_the_known_ones(uri):
    with pytest.raises(UserError, match="known: .*harness"):
        results.from_mlflow(uri, experiment="other")


def test_a_folder_without_results_is_told_its_neighbours(root):
    with pytest.raises(UserError, match="is not a folder\n  fix: sweeps in .*older, study"):
        results.from_folder(root / "outputs" / "studdy")


def test_an_unreadable_result_is_passed_over(root, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(root / "outputs" / "study", folder)
    (folder / STUDY[0].name / "result.json").write_text("{torn")
    assert len(results.from_folder(folder)) == len(STUDY) - 1


def test_a_setting_that_was_renamed_is_one_column_of_old_and_new_trials(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = Fake("old", sweep="both", settings={"recipe": "tiny"})
    new = Fake("new", sweep="both", settings={"preset": "tiny"}, seed=1)
    for frame in (
        results.from_mlflow(track(tmp_path, [old, new]), "both"),
        results.from_folder(tmp_path / "outputs" / "both"),
    ):
        assert frame["params.train.preset"].tolist() == ["tiny", "tiny"] and "params.train.recipe" not in frame


def test_series_come_in_long_form_with_seconds(uri):
    frame = results.from_mlflow(uri, "study").set_index("trial_id")
    run_id = frame.loc[STUDY[0].name, "run_id"]
    points = results.series(uri, [run_id], ["train/loss", "train/kl"])
    assert list(points.columns) == ["run_id", "name", "step", "time", "value"]
    assert points[["step", "time", "value"]].values.tolist() == [
        [10, BEGAN + 1, 0.69],
        [20, BEGAN + 2, 0.6],
        [30, BEGAN + 3, 0.5],
    ]


def test_tables_and_the_result_document_come_back_as_written(uri):
    frame = results.from_mlflow(uri, "study").set_index("trial_id")
    found = results.tables(uri, frame.loc[STUDY[0].name, "run_id"])
    assert sorted(found) == ["baseline_samples", "eval_samples"]
    assert list(found["eval_samples"]["completion"]) == ["1", INJECTION, "3"]
    document = results.result_document(uri, frame.loc[STUDY[0].name, "run_id"])
    assert document["environment"]["versions"]["trl"] == "1.16.0"
    assert results.tables(uri, frame.loc[STUDY[3].name, "run_id"]) == {}


def test_the_command_of_a_sweep_is_known(uri):
    assert results.sweep_command(uri, "older") == "/srv/harness/__main__.py -m algo=dpo,grpo sweep=older"


def test_reading_results_imports_no_torch():
    code = "import sys, harness.cli.report, harness.report.gather; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
