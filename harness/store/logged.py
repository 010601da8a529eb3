"""What MLflow knows as things of their own: a run's recipe, its data, and its policy with the figures of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.records import Event
from harness.config.identity import flatten
from harness.store import journal
from harness.store.mlflow_store import SweepRun

KIND = "policy"
BATCH = 900
"""Points of one call; MLflow takes a thousand."""
FORBIDDEN = str.maketrans(dict.fromkeys("/:.%\"'", "_"))
"""Characters that MLflow takes in no model's name."""
UNKNOWN = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED")
"""What a server answers that does not know logged models."""
RECIPE = ("algo", "adapter", "beta", "rank", "seed")


def describe_run(api: Any, sweep: SweepRun, run_id: str, trial: Mapping[str, Any]) -> None:
    """Parameters, and the data set, which the sweep's run has too; safe to repeat."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    params = [Param(k, str(v)[:6000]) for k, v in sorted(flatten(trial["config"]).items())]
    for chunk in chunks(params, 100):
        api.log_batch(run_id, params=chunk)
    name, digest = dataset_of(trial)
    source = json.dumps(trial["config"]["task"], default=str)[:60000]
    dataset = Dataset(name=name, digest=digest, source_type="harness", source=source)
    for one in (run_id, sweep.parent_id):
        api.log_inputs(one, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_policy(api: Any, sweep: SweepRun, run_id: str, folder: Path, trial: Mapping[str, Any]) -> str | None:
    """One logged model per run with a policy in its folder; found again where it is there. Safe to repeat.

    Returns:
        its id; None where no policy was kept, or the store is a server from before MLflow had such things.
    """
    from mlflow.exceptions import MlflowException

    model = folder / "artifacts" / "model"
    if not model.is_dir():
        return None
    try:
        return _log(api, sweep, run_id, model, folder, trial)
    except MlflowException as error:
        if error.error_code in UNKNOWN:
            return None
        raise


def _log(api: Any, sweep: SweepRun, run_id: str, model: Path, folder: Path, trial: Mapping[str, Any]) -> str:
    from mlflow.entities import LoggedModelOutput

    found = api.search_logged_models([sweep.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    if found:
        model_id = found[0].model_id
    else:
        config = trial["config"]
        named = {k: config.get(k) for k in RECIPE}
        params = {k: str(v["name"] if isinstance(v, Mapping) else v) for k, v in named.items() if v is not None}
        made = api.create_logged_model(
            sweep.experiment_id,
            name=str(trial["trial_id"]).translate(FORBIDDEN),
            source_run_id=run_id,
            tags={"trial_id": trial["trial_id"], "sweep": trial["sweep"], "folder": str(model)},
            params=params,
            model_type=KIND,
        )
        model_id = made.model_id
        api.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    points = linked(journal.latest_attempt(journal.read(folder / "worker.jsonl")), model_id, trial)
    for chunk in chunks(points, BATCH):
        api.log_batch(run_id, metrics=chunk)
    api.finalize_logged_model(model_id, "READY")
    return model_id


def linked(events: Sequence[Event], model_id: str, trial: Mapping[str, Any]) -> list[Any]:
    """The figures of evaluation as the run has them, by time and value, with their model and data."""
    from mlflow.entities import Metric

    name, digest = dataset_of(trial)
    return [
        Metric(key, number, int(event.time * 1000), 0, model_id=model_id, dataset_name=name, dataset_digest=digest)
        for event in events
        if event.kind == "metrics"
        for key, value in event.data["values"].items()
        if key.startswith("eval/") and (number := journal.number(value)) is not None
    ]


def dataset_of(trial: Mapping[str, Any]) -> tuple[str, str]:
    """Name and digest of a trial's data, as its run has them."""
    task = trial["config"]["task"]
    return str(task.get("path") or task.get("name")), trial["digests"]["dataset"]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items, at most ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
