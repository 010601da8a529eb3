"""Tracked runs or ``result.json`` files -> one tidy table, one row per trial (its latest attempt).

Columns, the same from either source; what a trial does not have is missing (NaN or None), never 0:

=============================  =========================================================================
``trial_id`` ``sweep``         names; ``run_id`` is MLflow's, missing where the row comes from a folder
``outcome`` ``reason``         as recorded; the reason is missing for trials that finished
``algo`` ``adapter`` ...       the rest of ``columns.TEXTS``: model, task, device, reference, digests, commit
``started``                    seconds since the epoch
``beta`` ``rank`` ``seed``     numbers; missing where the trial has no such knob
``eval/true_reward`` ...       every metric under its own name (they all contain a slash): the last point of a series
``folder``                   where its files are, as the sweep was started
``absent.eval/true_reward`` ...  why a figure could not be measured (``absences``)
``fingerprint.base`` ...       how evaluators and base behave on a fixture, as JSON (``fingerprint``)
``params.algo.beta`` ...       every configuration key as text, prefixed as in ``mlflow.search_runs``
=============================  =========================================================================
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.base import absences, gc_tuning
from harness.base.errors import UserError
from harness.config import fingerprint, renamed
from harness.config.identity import flatten
from harness.store import journal
from harness.store.columns import TEXTS, texts_of
from harness.store.mlflow_store import Tracking, check_reachable, client, quoted
from harness.store.past import past_of, result_of
from harness.store.result import read_result

NUMBERS = ("beta", "rank", "seed")
SERIES_COLUMNS = ("run_id", "name", "step", "time", "value")
PAGE = 500
SHOWN = 12


def from_mlflow(uri: str, sweep: str | None = None, experiment: str = "harness") -> pd.DataFrame:
    """The trials of a sweep, from MLflow.

    Args:
        uri: the store; a relative SQLite path is taken from the working directory.
        sweep: its name; None is the sweep of the trial that started last.
        experiment: MLflow experiment.

    Raises:
        UserError: no such store, experiment or sweep (the known ones are named), or a sweep without a trial.
    """
    api, experiment_id = _open(uri, experiment)
    name = sweep if sweep is not None else _latest_sweep(api, experiment_id, experiment)
    found = _newest(_search(api, experiment_id, f"tags.kind = 'trial' and tags.sweep = {quoted(name)}"))
    if not found:
        raise _no_trials(api, experiment_id, name)
    return _table(map(_from_run, found))


def from_experiment(uri: str, experiment: str) -> pd.DataFrame:
    """The trials of all sweeps of an MLflow experiment; of one that several sweeps have, the newest run.

    Raises:
        UserError: no such store or experiment, or one without a trial.
    """
    api, experiment_id = _open(uri, experiment)
    found = _newest(_search(api, experiment_id, "tags.kind = 'trial'"))
    if not found:
        raise UserError("holds no trial yet", key="tracking.experiment", value=experiment, fix="run a sweep first")
    return _table(map(_from_run, found))


def from_runs(uri: str, run_ids: Sequence[str]) -> pd.DataFrame:
    """Trials by their MLflow run ids.

    Raises:
        UserError: no such store; an id of no run, or of a run that is no trial; two runs of one trial.
    """
    from mlflow.exceptions import MlflowException

    api, found = _client(uri), []
    for run_id in dict.fromkeys(run_ids):
        try:
            run = api.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                "there is no such run", key="--runs", value=run_id, fix="ids stand on a run's page"
            ) from None
        if run.data.tags.get("kind") != "trial":
            raise UserError("is no run of a trial", key="--runs", value=run_id, fix="name the runs below its sweep's")
        if run.data.tags["trial_id"] in {r.data.tags["trial_id"] for r in found}:
            name = run.data.tags["trial_id"]
            raise UserError(f"another run of {name} is named already", key="--runs", value=run_id, fix="leave one out")
        found.append(run)
    return _table(map(_from_run, found))


def from_folder(path: str | Path) -> pd.DataFrame:
    """The trials below ``outputs/<sweep>``, from their ``result.json`` files.

    Raises:
        UserError: the folder does not exist or holds no readable ``result.json``.
    """
    folder = Path(path)
    rows = [row for p in sorted(folder.glob("*/result.json")) if (row := _from_files(p.parent)) is not None]
    if not rows:
        known = sorted(p.name for p in folder.parent.glob("*/") if any(p.glob("*/result.json")))
        raise UserError(
            "holds no <trial>/result.json" if folder.is_dir() else "is not a folder",
            key="folder",
            value=str(path),
            fix=f"sweeps in {folder.parent}: {_listed(known)}" if known else "run a sweep first",
        )
    return _table(rows)


def series(uri: str, run_ids: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """Every point of the named series, in long form.

    Returns:
        columns ``run_id``, ``name``, ``step``, ``time`` (seconds since the epoch) and ``value``, in the order of
        the arguments and of time; no rows for a series that a run does not have.
    """
    api = _client(uri)
    points = [
        (run_id, name, point.step, point.timestamp / 1000, point.value)
        for run_id in run_ids
        for name in names
        for point in sorted(api.get_metric_history(run_id, name), key=lambda p: (p.timestamp, p.step))
    ]
    return pd.DataFrame(points, columns=list(SERIES_COLUMNS))


def table(uri: str, run_id: str, name: str) -> pd.DataFrame | None:
    """One table of a run; None where it has no such one that can be read."""
    content = _artifact_json(_client(uri), run_id, f"tables/{name}.json")
    if content is None or not {"columns", "data"} <= content.keys():
        return None
    return pd.DataFrame(content["data"], columns=content["columns"])


def tables(uri: str, run_id: str) -> dict[str, pd.DataFrame]:
    """The tables of a run (``tables/<name>.json``), by name; empty where it has none that can be read."""
    api = _client(uri)
    names = [a.path for a in _quietly(lambda: api.list_artifacts(run_id, "tables"), []) if a.path.endswith(".json")]
    found = {Path(name).stem: table(uri, run_id, Path(name).stem) for name in names}
    return {name: content for name, content in found.items() if content is not None}


def examples(uri: str, frame: pd.DataFrame, name: str | None) -> dict[str, pd.DataFrame]:
    """Results per example of the trials of ``frame``, from MLflow: trial id -> ``examples/<name>.parquet``.

    Trials that have none that can be read are left out; without a name all are.
    """
    if name is None:
        return {}
    api, path, found = _client(uri), f"examples/{name}.parquet", {}
    for trial_id, run_id in zip(frame["trial_id"], frame["run_id"], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            local = _quietly(functools.partial(api.download_artifacts, run_id, path, folder), None)
            if local is not None and (table := _read_parquet(Path(local))) is not None:
                found[str(trial_id)] = table
    return found


def examples_from_folder(folder: str | Path, frame: pd.DataFrame, name: str | None) -> dict[str, pd.DataFrame]:
    """The same from the trial folders below ``outputs/<sweep>``."""
    paths = {t: Path(folder) / t / "artifacts" / "examples" / f"{name}.parquet" for t in map(str, frame["trial_id"])}
    return {t: table for t, path in paths.items() if name and (table := _read_parquet(path)) is not None}


def result_document(uri: str, run_id: str) -> dict[str, Any]:
    """The run's ``result.json``; empty where it has none (it is still running, or the files are gone)."""
    return _artifact_json(_client(uri), run_id, "result.json") or {}


def artifact_text(uri: str, run_id: str, path: str) -> str | None:
    """A text among the artifacts of a run; None where it has no such one, or none that can be read."""
    with tempfile.TemporaryDirectory() as folder:
        api = _client(uri)
        local = _quietly(lambda: api.download_artifacts(run_id, path, folder), None)
        return None if local is None else Path(local).read_text(encoding="utf-8")


def sweep_command(uri: str, sweep: str, experiment: str = "harness") -> str | None:
    """The command line that opened a sweep, as the parent run recorded it."""
    api, experiment_id = _open(uri, experiment)
    found = _search(api, experiment_id, f"tags.kind = 'sweep' and tags.sweep = {quoted(sweep)}", limit=1)
    return next((run.data.tags.get("command") for run in found), None)


def _newest(runs: Iterator[Any]) -> list[Any]:
    """One run per trial, by trial id; the runs come newest first, and an earlier attempt was restored by hand."""
    found: dict[str, Any] = {}
    with gc_tuning.paused():
        for run in runs:
            found.setdefault(run.data.tags["trial_id"], run)
    return [run for _, run in sorted(found.items())]


# -- rows ----------------------------------------------------------------------------------------------


def _from_run(run: Any) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    row: dict[str, Any] = {name: tags.get(name) or None for name in TEXTS}
    row["run_id"], row["started"] = run.info.run_id, run.info.start_time / 1000
    row.update({name: params.get(name) for name in NUMBERS})
    row.update({f"params.{renamed.key(name)}": value for name, value in params.items()})
    row.update({name: text for name, text in tags.items() if name.startswith((fingerprint.COLUMN, absences.COLUMN))})
    row["folder"] = tags.get("folder")
    # The last sample of a memory series says nothing about the trial; ``series`` has them all.
    row.update({name: value for name, value in run.data.metrics.items() if not name.startswith("system/")})
    return row


def _from_files(folder: Path) -> dict[str, Any] | None:
    result = result_of(folder) if read_result(folder) is not None else None  # lost ones are `harness sync`'s to make
    if result is None:
        return None
    past, config = past_of(folder), result.config
    events = journal.read(folder / "worker.jsonl") + journal.read(folder / "runner.jsonl")
    about = {
        "trial_id": result.trial_id,
        "sweep": past.about.get("sweep") or folder.parent.name,
        "config": config,
        "digests": result.digests,
        "environment": result.environment,
        "train_key": result.train_key or past.about.get("train_key"),
        "eval_key": result.eval_key or past.about.get("eval_key"),
    }
    row: dict[str, Any] = {
        **texts_of(about, events),
        "outcome": str(result.outcome),
        "reason": result.reason or None,
        "started": past.since or None,
        **{name: config.get(name) for name in NUMBERS},
    }
    row.update({f"params.{renamed.key(name)}": str(value) for name, value in flatten(config).items()})
    for name, one in result.fingerprints.items():
        row[fingerprint.COLUMN + name] = fingerprint.as_text(fingerprint.Fingerprint(**one))
    row.update({absences.COLUMN + name: why for name, why in absences.told(journal.latest_attempt(events)).items()})
    return {**row, "folder": str(folder), **result.metrics}


def _table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows))
    fixed = [*TEXTS, "started", *NUMBERS]
    rest = sorted((c for c in frame.columns if c not in fixed), key=lambda c: (c.startswith("params."), c))
    frame = frame.reindex(columns=[*fixed, *rest])
    for name in TEXTS:
        frame[name] = frame[name].astype("str")  # an empty column too, so that sources agree
    for name in ("started", *NUMBERS):
        numbers: Any = pd.to_numeric(frame[name], errors="coerce")  # MLflow keeps texts, "None" included
        frame[name] = numbers.astype(float)
    return frame


# -- MLflow --------------------------------------------------------------------------------------------


def _client(uri: str) -> Any:
    """A client of a store that exists: MLflow would create a missing SQLite file without a word."""
    tracking = Tracking(uri=uri)
    resolved, prefix = tracking.resolved_uri, "sqlite:///"
    if resolved.startswith(prefix) and not Path(resolved.removeprefix(prefix)).is_file():
        raise UserError(
            "there is no such MLflow store", key="tracking.uri", value=uri,
            fix="run a sweep first, or name its store: tracking.uri=sqlite:////path/to/mlflow.db",
        )  # fmt: skip
    check_reachable(tracking)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return client(resolved)


def _open(uri: str, experiment: str) -> tuple[Any, str]:
    api = _client(uri)
    found = api.get_experiment_by_name(experiment)
    if found is None:
        known = [e.name for e in api.search_experiments(max_results=SHOWN)]
        raise UserError(
            "no such MLflow experiment",
            key="tracking.experiment",
            value=experiment,
            fix=f"known: {_listed(known)}",
        )
    return api, found.experiment_id


def _search(api: Any, experiment_id: str, query: str, limit: int | None = None) -> Iterator[Any]:
    """Runs that match, newest first, page by page."""
    token: str | None = None
    while True:
        page = api.search_runs(
            [experiment_id], query, max_results=limit or PAGE, order_by=["attributes.start_time DESC"],
            page_token=token,
        )  # fmt: skip
        yield from page
        token = page.token
        if limit or not token:
            return


def _latest_sweep(api: Any, experiment_id: str, experiment: str) -> str:
    """Of the trial that started last, since a sweep that is resumed keeps its old start."""
    for run in _search(api, experiment_id, "tags.kind = 'trial'", limit=1):
        return run.data.tags["sweep"]
    raise UserError("holds no trial yet", key="tracking.experiment", value=experiment, fix="run a sweep first")


def _no_trials(api: Any, experiment_id: str, sweep: str) -> UserError:
    known = list(dict.fromkeys(r.data.tags["sweep"] for r in _search(api, experiment_id, "tags.kind = 'sweep'")))
    if sweep in known:
        return UserError("no trial of this sweep has started", key="sweep", value=sweep, fix="run it, or name another")
    fix = f"known, newest first: {_listed(known)}" if known else "run a sweep first"
    return UserError("no such sweep", key="sweep", value=sweep, fix=fix)


def _artifact_json(api: Any, run_id: str, path: str) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as folder:
        local = _quietly(lambda: api.download_artifacts(run_id, path, folder), None)
        return None if local is None else _read_json(Path(local))


def _quietly(ask: Any, otherwise: Any) -> Any:
    """What ``ask`` returns; ``otherwise`` where the artifact store has no such thing or cannot be reached."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except (MlflowException, OSError):
        return otherwise


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return dict(content) if isinstance(content, Mapping) else None


def _read_parquet(path: Path) -> pd.DataFrame | None:
    from pyarrow import ArrowInvalid

    try:
        return pd.read_parquet(path)
    except (OSError, ArrowInvalid):
        return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown}, … ({len(names)} in all)" if len(names) > SHOWN else shown
