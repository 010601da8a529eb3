"""The MLflow store of a sweep: settings, reachability, experiment and parent run. No torch here.

``projection.py`` brings the trials' journals into it.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import UserError

REACH_S = 5.0


@dataclass(frozen=True)
class Tracking:
    """The ``tracking`` group.

    Attributes:
        uri: MLflow store; a bare ``mlflow ui`` in the working directory opens the default.
        experiment: MLflow experiment.
        required: an unreachable store is an error at the start; false makes it a warning.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "harness"
    required: bool = True

    @property
    def resolved_uri(self) -> str:
        """The URI with a relative SQLite path made absolute, so that jobs in other folders agree on it."""
        prefix = "sqlite:///"
        if self.uri.startswith(prefix) and not self.uri.startswith(prefix + "/"):
            return prefix + str(Path(self.uri.removeprefix(prefix)).resolve())
        return self.uri


@dataclass(frozen=True)
class SweepRun:
    """Where the runs of a sweep hang: store, experiment and parent run."""

    uri: str
    experiment_id: str
    parent_id: str


def client(uri: str) -> Any:
    """An MLflow client that gives up within seconds instead of MLflow's own minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it reports every table of a new store
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def check_reachable(tracking: Tracking) -> None:
    """Raise ``UserError`` within seconds if a tracking server does not answer."""
    if not tracking.uri.startswith(("http://", "https://")):
        if tracking.uri.startswith("sqlite:///"):
            folder = Path(tracking.resolved_uri.removeprefix("sqlite:///")).parent
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise _unreachable(tracking, f"the folder {folder} cannot be written")
        return
    try:
        with urllib.request.urlopen(tracking.uri.rstrip("/") + "/health", timeout=REACH_S):
            return
    except urllib.error.HTTPError:
        return  # it answers; a proxy may guard /health
    except (OSError, ValueError) as error:
        raise _unreachable(tracking, str(getattr(error, "reason", error))) from None


def open_sweep(tracking: Tracking, sweep: str, description: Mapping[str, str] | None = None) -> SweepRun:
    """Create database, experiment and parent run, before any trial starts; found again if they exist.

    Several processes that initialise one SQLite at once crash, so this is the command line's to do.
    """
    check_reachable(tracking)
    uri = tracking.resolved_uri
    try:
        api = client(uri)
        found = api.get_experiment_by_name(tracking.experiment)
        experiment_id = (
            found.experiment_id
            if found
            else api.create_experiment(
                # The UI then opens on training runs, and not on traces.
                tracking.experiment,
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )
        existing = api.search_runs(
            [experiment_id],
            filter_string=f"tags.kind = 'sweep' and tags.sweep = '{_quoted(sweep)}'",
            max_results=1,
        )
        if existing:
            api.update_run(existing[0].info.run_id, status="RUNNING")
            return SweepRun(uri, experiment_id, existing[0].info.run_id)
        run = api.create_run(
            experiment_id,
            run_name=sweep,
            tags={"kind": "sweep", "sweep": sweep, **(description or {})},
        )
        return SweepRun(uri, experiment_id, run.info.run_id)
    except UserError:
        raise
    except Exception as error:  # MLflow raises many kinds; each means that the store cannot be used
        raise _unreachable(tracking, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def close_sweep(run: SweepRun, *, succeeded: bool) -> None:
    """End the parent run."""
    client(run.uri).set_terminated(run.parent_id, status="FINISHED" if succeeded else "FAILED")


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def _unreachable(tracking: Tracking, why: str) -> UserError:
    return UserError(
        f"the MLflow store cannot be reached ({why})",
        key="tracking.uri",
        value=tracking.uri,
        fix="start it (mlflow server), name another, or run without: tracking.required=false, then `harness sync`",
    )
