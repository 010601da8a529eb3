"""Where a report's material comes from: MLflow, or the folders of a sweep's trials. Either gives the same."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.base.records import Event
from harness.store import journal, results
from harness.store.points import points_of
from harness.store.result import read_result, since_attempt

DATA_CARD = "data_card.md"


class Source(ABC):
    """The trials of a report, and what is known of each beyond its row.

    Attributes:
        frame: a row per trial, as ``results`` gives it; ``run_id`` names a trial to the other methods.
        title: what the trials are, without its capital: ``sweep study``.
        words: where the numbers come from.
        selected: the options of ``report`` that say the same; empty where that is not told.
    """

    frame: pd.DataFrame
    title: str
    words: str
    selected: Sequence[str] = ()

    @abstractmethod
    def examples(self, rows: pd.DataFrame, name: str | None) -> dict[str, pd.DataFrame]:
        """Results per example of trials, by trial id."""

    @abstractmethod
    def environment(self, run_id: str) -> Mapping[str, Any]:
        """Of a trial, as in ``result.json``; empty where it is not known."""

    @abstractmethod
    def tables(self, run_id: str) -> Mapping[str, pd.DataFrame]:
        """All tables of a trial, by name."""

    @abstractmethod
    def table(self, run_id: str, name: str) -> pd.DataFrame | None:
        """One table of a trial."""

    @abstractmethod
    def text(self, run_id: str, path: str) -> str | None:
        """A text among the artifacts of a trial."""

    @abstractmethod
    def series(self, run_ids: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
        """Points of series, in long form (``results.SERIES_COLUMNS``)."""

    @abstractmethod
    def command(self) -> str | None:
        """The command line that opened the sweep, where the trials are of one."""

    def as_results(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The same rows as ``results`` gives them."""
        return frame


class Stored(Source):
    """Trials in MLflow."""

    words = "MLflow"

    def __init__(
        self,
        uri: str,
        sweep: str | None = None,
        experiment: str = "harness",
        *,
        runs: Sequence[str] = (),
        whole: bool = False,
    ):
        """A sweep (None: the latest), or runs of trials by their ids, or a whole experiment.

        Raises:
            UserError: as ``results.from_mlflow``.
        """
        self.uri, self.experiment = uri, experiment
        if runs:
            self.frame, self.selected = results.from_runs(uri, runs), ["--runs", *runs]
            self.title = _runs_named(self.frame)
        elif whole:
            self.frame, self.selected = results.from_experiment(uri, experiment), ["--experiment", experiment]
            self.title = f"experiment {experiment}"
        else:
            self.frame = results.from_mlflow(uri, sweep, experiment)
            name = str(self.frame["sweep"].iloc[0])
            self.selected, self.title = ["--sweep", name], f"sweep {name}"

    def examples(self, rows: pd.DataFrame, name: str | None) -> dict[str, pd.DataFrame]:
        """From the runs' artifacts."""
        return results.examples(self.uri, rows, name)

    def environment(self, run_id: str) -> Mapping[str, Any]:
        """From the run's ``result.json``."""
        return results.result_document(self.uri, run_id).get("environment", {})

    def tables(self, run_id: str) -> Mapping[str, pd.DataFrame]:
        """Of the run."""
        return results.tables(self.uri, run_id)

    def table(self, run_id: str, name: str) -> pd.DataFrame | None:
        """Of the run."""
        return results.table(self.uri, run_id, name)

    def text(self, run_id: str, path: str) -> str | None:
        """Of the run."""
        return results.artifact_text(self.uri, run_id, path)

    def series(self, run_ids: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
        """Of the runs."""
        return results.series(self.uri, run_ids, names)

    def command(self) -> str | None:
        """As the parent run recorded it."""
        sweeps = sorted(set(map(str, self.frame["sweep"])))
        return results.sweep_command(self.uri, sweeps[0], self.experiment) if len(sweeps) == 1 else None


class Folder(Source):
    """Trials below ``outputs/<sweep>``: their results and their journals."""

    words = "the trials' folders"

    def __init__(self, path: str | Path):
        """The trials of a folder; a trial's id stands for the run that it may not have.

        Raises:
            UserError: as ``results.from_folder``.
        """
        self.path = Path(path)
        found = results.from_folder(path)
        self.frame, self.selected = found.assign(run_id=found["trial_id"]), ["--from-folder", str(path)]
        self.title = f"sweep {found['sweep'].iloc[0]}"

    def examples(self, rows: pd.DataFrame, name: str | None) -> dict[str, pd.DataFrame]:
        """From the trials' artifacts."""
        return results.examples_from_folder(self.path, rows, name)

    def environment(self, run_id: str) -> Mapping[str, Any]:
        """From the trial's ``result.json``."""
        found = read_result(self.path / run_id)
        return {} if found is None else found.environment

    def tables(self, run_id: str) -> Mapping[str, pd.DataFrame]:
        """The last of each name in the journals."""
        return {name: _framed(rows) for name, rows in self._rows(run_id).items()}

    def table(self, run_id: str, name: str) -> pd.DataFrame | None:
        """The last of this name."""
        rows = self._rows(run_id).get(name)
        return None if rows is None else _framed(rows)

    def text(self, run_id: str, path: str) -> str | None:
        """Of the trial's artifacts."""
        file = self.path / run_id / "artifacts" / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def series(self, run_ids: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
        """From the journals."""
        wanted = {name: i for i, name in enumerate(names)}
        points = [
            (run_id, p.name, p.step, p.time, p.value)
            for run_id in run_ids
            for p in sorted(
                (p for p in points_of(*self._events(run_id)) if p.name in wanted),
                key=lambda p: (wanted[p.name], int(p.time * 1000), p.step),
            )
        ]
        return pd.DataFrame(points, columns=list(results.SERIES_COLUMNS))

    def command(self) -> str | None:
        """As the first trial's environment has it."""
        return self.environment(str(self.frame["trial_id"].iloc[0])).get("command")

    def as_results(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Without the ids that stood in for runs."""
        return frame.assign(run_id=pd.Series(None, index=frame.index, dtype="str"))

    def _rows(self, trial_id: str) -> dict[str, list[dict[str, Any]]]:
        worker, runner = self._events(trial_id)
        return {e.data["name"]: e.data["rows"] for e in (*worker, *runner) if e.kind == "table" and e.data["rows"]}

    @functools.lru_cache(maxsize=8)  # noqa: B019 a report's source lives as long as the report is written
    def _events(self, trial_id: str) -> tuple[list[Event], list[Event]]:
        """Of the trial's latest attempt, and those that it continues: the worker's and the runner's."""
        folder = self.path / trial_id
        runner = journal.latest_attempt(journal.read(folder / "runner.jsonl"))
        return since_attempt(journal.read(folder / "worker.jsonl"), runner), runner


def _framed(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(rows[0]))


def _runs_named(frame: pd.DataFrame) -> str:
    """What a report on chosen runs is called: never as the one on their sweep is."""
    sweeps = sorted(set(map(str, frame["sweep"])))
    return f"{formatting.count(len(frame), 'run')} of " + (
        f"sweep {sweeps[0]}" if len(sweeps) == 1 else f"{len(sweeps)} sweeps"
    )
