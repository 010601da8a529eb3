"""The trained policy in MLflow: one logged model per run, its figures linked to their data, whatever is repeated."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from harness.store.journal import Journal
from harness.store.logged import describe_run, log_policy
from harness.store.mlflow_store import Tracking, client, open_sweep

TRIAL: dict[str, Any] = {
    "trial_id": "dpo-lora-b0.1-r16-s0-abc",
    "sweep": "s",
    "config": {
        "algo": {"name": "dpo"}, "adapter": {"name": "lora"}, "beta": 0.1, "seed": 0,
        "task": {"name": "preferences", "path": "p.jsonl"},
    },
    "digests": {"dataset": "d"},
}  # fmt: skip


def trial_folder(folder: Path, *, kept: bool = True) -> Path:
    (folder / "artifacts" / "model").mkdir(parents=True) if kept else folder.mkdir()
    with closing(Journal(folder / "worker.jsonl")) as worker:
        worker.write("metrics", values={"eval/true_reward": 0.5, "time/train_s": 3.0})
    return folder


def test_a_policy_is_logged_once_with_its_figures_and_their_data(tmp_path):
    sweep = open_sweep(Tracking(uri=f"sqlite:///{tmp_path}/m.db"), "s")
    api = client(sweep.uri)
    run_id = api.create_run(sweep.experiment_id).info.run_id
    folder = trial_folder(tmp_path / "t")
    first = log_policy(api, sweep, run_id, folder, TRIAL)
    assert first is not None and log_policy(api, sweep, run_id, folder, TRIAL) == first
    (model,) = api.search_logged_models([sweep.experiment_id])
    assert model.name == "dpo-lora-b0_1-r16-s0-abc" and model.params["algo"] == "dpo" and model.params["beta"] == "0.1"
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_name, metric.dataset_digest) == (
        "eval/true_reward", 0.5, "p.jsonl", "d",
    )  # fmt: skip
    assert len(api.get_metric_history(run_id, "eval/true_reward")) == 1


def test_trial_and_sweep_name_the_data_once_however_often_they_are_told(tmp_path):
    sweep = open_sweep(Tracking(uri=f"sqlite:///{tmp_path}/m.db"), "s")
    api = client(sweep.uri)
    for _ in range(2):
        run_id = api.create_run(sweep.experiment_id).info.run_id
        describe_run(api, sweep, run_id, TRIAL)
        describe_run(api, sweep, run_id, TRIAL)
        for one in (run_id, sweep.parent_id):
            (data,) = api.get_run(one).inputs.dataset_inputs
            assert (data.dataset.name, data.dataset.digest) == ("p.jsonl", "d")


def test_a_trial_that_kept_no_policy_has_none(tmp_path):
    sweep = open_sweep(Tracking(uri=f"sqlite:///{tmp_path}/m.db"), "s")
    api = client(sweep.uri)
    run_id = api.create_run(sweep.experiment_id).info.run_id
    assert log_policy(api, sweep, run_id, trial_folder(tmp_path / "t", kept=False), TRIAL) is None
    assert len(api.search_logged_models([sweep.experiment_id])) == 0
