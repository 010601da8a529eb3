"""Runs in MLflow: one per trial and per stage, looked for before one is made.

A runner may be killed, or an answer lost, between the making of a run and the note of its id; the file with that note
may be lost. So a run is known by what it is of (parent, trial, when its attempt began) and not by the note alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.records import Event
from harness.store import journal
from harness.store.columns import tags_of
from harness.store.mlflow_store import SweepRun, quoted, source_tags

ENDED = ("FINISHED", "FAILED", "KILLED")


def trial_run(api: Any, sweep: SweepRun, trial: Mapping[str, Any], folder: Path, began: float, known: str = "") -> str:
    """The one active run of a trial's attempt: the one that is there, or a new one.

    Of several the one that has ended is kept, else the ``known`` one; the rest, and runs of other attempts, leave the
    table. An attempt is known by when it began, which is when its run did.
    """
    own, others = [], []
    for run in _active(api, sweep, trial["trial_id"]):
        (own if run.info.start_time == _stamp(began) else others).append(run)
    own.sort(key=lambda run: (run.info.status not in ENDED, run.info.run_id != known, run.info.run_id))
    kept = own[0].info.run_id if own else _create_run(api, sweep, trial, folder, began)
    for run in [*own[1:], *others]:
        retire(api, run.info.run_id)
    return kept


def _active(api: Any, sweep: SweepRun, trial_id: str) -> list[Any]:
    wanted = {"kind": "trial", "trial_id": trial_id, "mlflow.parentRunId": sweep.parent_id}
    query = " and ".join(f"tags.`{name}` = {quoted(value)}" for name, value in wanted.items())
    return list(api.search_runs([sweep.experiment_id], query, max_results=500))


def _stamp(seconds: float) -> int:
    return int(seconds * 1000)


def _create_run(api: Any, sweep: SweepRun, trial: Mapping[str, Any], folder: Path, began: float) -> str:
    environment = trial["environment"]
    tags = {
        **tags_of(trial),
        "mlflow.parentRunId": sweep.parent_id,
        "kind": "trial",
        "outcome": "running",
        "folder": str(folder),
        **source_tags(environment.get("trial_command"), environment["git_sha"]),
    }
    run = api.create_run(sweep.experiment_id, start_time=_stamp(began), run_name=trial["trial_id"], tags=tags)
    return run.info.run_id


def stage_run(api: Any, sweep: SweepRun, event: Event, trial: Mapping[str, Any]) -> str:
    """The run of a stage: the one that is there, or a new one. One that was left half made is completed."""
    key = event.data["key"]
    found = api.search_runs(
        [sweep.experiment_id], f"tags.stage_key = {quoted(key)}", max_results=1, order_by=["attributes.start_time ASC"]
    )
    if found and found[0].info.status in ENDED:
        return found[0].info.run_id
    run_id = found[0].info.run_id if found else _create_stage_run(api, sweep, event, trial)
    data, end = event.data, _stamp(event.time)
    for name, value in {**(data.get("metrics") or {}), "time/total_s": data["seconds"]}.items():
        number = journal.number(value)
        if number is not None:
            api.log_metric(run_id, name, number, timestamp=end)
    api.set_terminated(run_id, end_time=end)
    return run_id


def _create_stage_run(api: Any, sweep: SweepRun, event: Event, trial: Mapping[str, Any]) -> str:
    data = event.data
    run = api.create_run(
        sweep.experiment_id,
        start_time=_stamp(event.time) - (0 if data["hit"] else int(data["seconds"] * 1000)),
        run_name=f"stage {data['stage']}",
        tags={
            "mlflow.parentRunId": sweep.parent_id,
            "kind": "stage",
            "stage": data["stage"],
            "stage_key": data["key"],
            "sweep": trial["sweep"],
            "built_for": "an earlier sweep" if data["hit"] else trial["trial_id"],
            "why": data.get("why") or "",
        },
    )
    return run.info.run_id


def retire(api: Any, run_id: str) -> None:
    """An attempt that a newer one replaces leaves the table; MLflow can restore it."""
    api.set_tag(run_id, "superseded", "true")
    api.delete_run(run_id)


def exists(api: Any, run_id: str) -> bool:
    """Whether a run is there and active."""
    from mlflow.exceptions import MlflowException, RestException

    try:
        return api.get_run(run_id).info.lifecycle_stage == "active"
    except (RestException, MlflowException) as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
