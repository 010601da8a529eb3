"""A trial has one run, whatever was killed or lost between the making of it and the note of its id."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from harness.base.records import Outcome, Trial
from harness.runner.books import close_books, open_book
from harness.store import mlflow_store, mlflow_sync
from harness.store.journal import Journal
from harness.store.mlflow_store import SweepRun
from harness.store.mlflow_sync import project

NAMES = {"name": "x"}
TRIAL = Trial(
    "dpo-1", "s", {"algo": NAMES, "adapter": NAMES, "model": NAMES, "task": NAMES}, "t1", "e1", {"dataset": "d"}
)
SWEEP = SweepRun("sqlite:////nowhere.db", "1", "parent")


@dataclass
class Store:
    """A store in memory that knows what a projection asks of one; ``lost`` answers never arrive."""

    runs: dict[str, Any] = field(default_factory=dict)
    lost: int = 0
    points: dict[str, Any] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count())

    def create_run(self, experiment_id: str, *, start_time: int, run_name: str, tags: dict[str, str]) -> Any:
        info = SimpleNamespace(
            run_id=f"run{next(self.numbers)}", start_time=start_time, status="RUNNING", lifecycle_stage="active"
        )
        self.runs[info.run_id] = SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(tags)))
        if self.lost:
            self.lost -= 1
            raise ConnectionError("the answer got lost")
        return self.runs[info.run_id]

    def search_runs(self, experiment_ids: list[str], query: str, **_: Any) -> list[Any]:
        wanted = dict(part.split(" = ") for part in query.split(" and "))
        tags = {name.removeprefix("tags.").strip("`"): value.strip("'") for name, value in wanted.items()}
        return [r for r in self.active if all(r.data.tags.get(k) == v for k, v in tags.items())]

    @property
    def active(self) -> list[Any]:
        return [r for r in self.runs.values() if r.info.lifecycle_stage == "active"]

    def get_run(self, run_id: str) -> Any:
        return self.runs[run_id]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].data.tags[key] = value

    def delete_run(self, run_id: str) -> None:
        self.runs[run_id].info.lifecycle_stage = "deleted"

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    def set_terminated(self, run_id: str, status: str = "FINISHED", end_time: int = 0) -> None:
        self.runs[run_id].info.status = status

    def log_batch(self, run_id: str, metrics: Any = (), **_: Any) -> None:
        self.points.setdefault(run_id, []).extend((m.key, m.value) for m in metrics)

    def log_inputs(self, *_: Any, **__: Any) -> None: ...

    log_artifact = log_dict = log_inputs


@pytest.fixture
def store(monkeypatch) -> Store:
    made = Store()
    monkeypatch.setattr(mlflow_sync, "client", lambda uri: made)
    return made


def begin(folder: Path) -> Journal:
    folder.mkdir(exist_ok=True)
    return open_book(folder, TRIAL, (), {}, mode="train", continues=False, why="")


@pytest.fixture
def finished(tmp_path) -> Path:
    book = begin(tmp_path / "trial")
    with closing(Journal(tmp_path / "trial" / "worker.jsonl")) as worker:
        worker.write("done")
    close_books(book, tmp_path / "trial", [], None, Outcome.FINISHED, None)
    return tmp_path / "trial"


def one(store: Store) -> Any:
    (run,) = store.active
    return run


def test_an_answer_that_got_lost_makes_no_second_run(store, finished):
    store.lost = 2
    for _ in range(2):
        with pytest.raises(ConnectionError):
            project(finished, SWEEP)
            raise ConnectionError  # the second time the run is found
    project(finished, SWEEP)
    assert one(store).info.status == "FINISHED"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b'{"uri": 1, "state": {"run_id": 5}}'])
def test_a_lost_or_damaged_note_of_the_id_makes_no_second_run(store, finished, content):
    first = project(finished, SWEEP)
    note = finished / "tracking.json"
    note.unlink() if content is None else note.write_bytes(content)
    assert project(finished, SWEEP) == first == one(store).info.run_id
    assert json.loads(note.read_text())["state"]["run_id"] == first


def test_a_data_set_that_another_sweep_made_at_that_moment_delays_nothing(store, finished, monkeypatch):
    answers = [MlflowException('(psycopg.errors.UniqueViolation) duplicate key value violates "dataset_pk"'), None]

    def log_inputs(*_: Any) -> None:
        if (answer := answers.pop(0) if answers else None) is not None:
            raise answer

    monkeypatch.setattr(store, "log_inputs", log_inputs)
    monkeypatch.setattr(mlflow_store.time, "sleep", lambda s: None)
    project(finished, SWEEP)
    assert one(store).info.status == "FINISHED" and not answers


def test_of_two_runs_of_an_attempt_the_one_that_ended_is_kept(store, finished):
    began = mlflow_sync.past_of(finished).began.time
    tags = {"kind": "trial", "trial_id": "dpo-1", "mlflow.parentRunId": "parent"}
    for _ in range(3):
        store.create_run("1", start_time=int(began * 1000), run_name="dpo-1", tags=tags)
    store.set_terminated("run1")
    assert project(finished, SWEEP) == "run1"
    assert [r.info.run_id for r in store.active] == ["run1"]


def test_the_run_of_an_attempt_that_continues_has_what_was_measured_before(store, tmp_path):
    folder = tmp_path / "trial"
    book = begin(folder)
    with closing(Journal(folder / "worker.jsonl")) as worker:
        worker.write("series", step=1, values={"train/loss": 0.7})
        worker.write("trained")
    close_books(book, folder, [], None, Outcome.FAILED, "the judge fell ill")
    first = project(folder, SWEEP)
    time.sleep(0.01)
    book = open_book(folder, TRIAL, (), {}, mode="evaluate", continues=True, why="")
    second = project(folder, SWEEP)
    assert second != first and one(store).info.status == "RUNNING"  # how the first attempt ended is not how this does
    with closing(Journal(folder / "worker.jsonl")) as worker:
        worker.write("metrics", values={"eval/correct": 0.5})
        worker.write("done")
    close_books(book, folder, [], None, Outcome.FINISHED, None)
    assert project(folder, SWEEP) == second == one(store).info.run_id and one(store).info.status == "FINISHED"
    assert {("train/loss", 0.7), ("eval/correct", 0.5)} <= set(store.points[str(second)])


def test_a_run_that_another_projection_ended_meanwhile_replaces_the_one_at_hand(store, tmp_path):
    folder = tmp_path / "trial"
    book = begin(folder)
    mine = project(folder, SWEEP)
    theirs = store.create_run("1", start_time=one(store).info.start_time, run_name="", tags=one(store).data.tags)
    store.set_terminated(theirs.info.run_id)
    close_books(book, folder, [], None, Outcome.FAILED, "because")
    assert project(folder, SWEEP) == theirs.info.run_id != mine
    assert one(store).data.tags["outcome"] == "failed"


def test_runs_of_earlier_attempts_leave_the_table_even_where_their_id_is_forgotten(store, finished):
    project(finished, SWEEP)
    (finished / "tracking.json").unlink()
    begin(finished).close()
    project(finished, SWEEP)
    assert one(store).info.status == "RUNNING"


def test_runs_of_other_sweeps_and_trials_are_left_alone(store, finished):
    for tags in ({"mlflow.parentRunId": "another"}, {"trial_id": "dpo-2"}):
        same = {"kind": "trial", "trial_id": "dpo-1", "mlflow.parentRunId": "parent"}
        store.create_run("1", start_time=0, run_name="", tags=same | tags)
    project(finished, SWEEP)
    assert len(store.active) == 3


@pytest.mark.parametrize("name", ["trial.json", "result.json"])
def test_lost_files_do_not_stop_a_projection(store, finished, name):
    (finished / name).unlink()
    assert project(finished, SWEEP) is not None
    assert one(store).data.tags["outcome"] == "finished"


def test_a_stage_whose_run_was_left_half_made_is_completed(store, tmp_path):
    folder = tmp_path / "trial"
    book = begin(folder)
    with closing(Journal(folder / "worker.jsonl")) as worker:
        worker.write("stage", stage="sft", key="k", hit=False, why="first use", seconds=1.0)
    half = store.create_run("1", start_time=0, run_name="", tags={"kind": "stage", "stage_key": "k"})
    store.log_metric = lambda *_, **__: None  # type: ignore[attr-defined]
    project(folder, SWEEP)
    assert half.info.status == "FINISHED"
    assert len([r for r in store.active if r.data.tags["kind"] == "stage"]) == 1
    book.close()
