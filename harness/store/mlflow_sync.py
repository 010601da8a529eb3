"""Projects the journals of a trial into its MLflow run; projecting twice changes nothing.

What has been projected is remembered in the trial's ``tracking.json`` (run id and byte offsets), so a server that
goes away delays the projection and loses nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base import absences, formatting
from harness.base.records import Event, Outcome
from harness.config import fingerprint
from harness.store.cache import HELD_OUT
from harness.store.columns import tags_from
from harness.store.journal import Tail
from harness.store.logged import BATCH, chunks, describe_run, log_policy
from harness.store.mlflow_store import SweepRun, client, in_one_line, patiently
from harness.store.past import past_of, result_of
from harness.store.points import AT_THE_END, points_of
from harness.store.result import document, write_json
from harness.store.runs import exists, stage_run, trial_run

STATUS = {Outcome.FINISHED: "FINISHED", Outcome.REUSED: "FINISHED", Outcome.INTERRUPTED: "KILLED"}


@dataclass
class _State:
    """What has been projected of a trial's folder."""

    run_id: str = ""
    described: bool = False
    attempt: float = 0.0
    worker: int = 0
    runner: int = 0
    samples: int = 0
    stages: dict[str, str] = field(default_factory=dict)


class Projector:
    """Projects one trial's folder at a time, in the background while the trial runs.

    Args:
        sweep: where runs hang.
        every_s: seconds between two projections.
    """

    def __init__(self, sweep: SweepRun, every_s: float = 5.0):
        """Connect lazily: importing MLflow takes seconds that the trial need not wait for."""
        self.sweep, self.every_s = sweep, every_s
        self.failure: str | None = None
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, folder: Path) -> None:
        """Project ``folder`` every few seconds from now on."""
        self._folder = folder
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)
        self._thread.start()

    def flush(self) -> bool:
        """Stop following and project what is left; False if the store is not reachable now."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._try()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self._try()

    def _try(self) -> bool:
        with self._lock:
            if self._folder is None:
                return True
            try:
                project(self._folder, self.sweep)
                self.failure = None
                return True
            except Exception as error:  # kept and shown; the journals hold everything for the next try
                self.failure = in_one_line(error)
                return False


def project(folder: Path, sweep: SweepRun) -> str | None:
    """Bring MLflow up to date with one trial's journals; returns the run id (None before the first attempt).

    Safe to repeat: points carry the journal's own time stamps, and offsets advance only after success. Of two at once
    one waits, since each would make a run; where another sweep made a row of the store at the same moment (two that
    read the same data set), it is done again.
    """
    from filelock import FileLock

    with FileLock(folder / ".projection.lock"):
        return patiently(lambda: _project(folder, sweep))


def _project(folder: Path, sweep: SweepRun) -> str | None:
    past = past_of(folder)
    if past.began is None or not past.about:
        return None
    api = client(sweep.uri)
    state_path = folder / "tracking.json"
    state = _load_state(state_path, sweep)
    trial, began = past.about, past.began.time
    if state.run_id and not exists(api, state.run_id):
        state = _State()  # another database, or a deleted run: project everything anew
    if state.attempt != began:
        state = _State(
            run_id=trial_run(api, sweep, trial, folder, began),
            attempt=began,
            worker=_offset_at(folder / "worker.jsonl", past.since),
            runner=_offset_at(folder / "runner.jsonl", past.since),
        )
        _save_state(state_path, state, sweep)
    if not state.described:
        describe_run(api, sweep, state.run_id, trial)
        state.described = True
        _save_state(state_path, state, sweep)
    worker_tail = Tail(folder / "worker.jsonl", state.worker)
    runner_tail = Tail(folder / "runner.jsonl", state.runner)
    worker, runner = worker_tail.read(), runner_tail.read()
    if not worker and not runner:
        return state.run_id
    _log_points(api, state, worker, runner)
    for event in worker:
        _log_event(api, sweep, state, event, trial, folder)
    for event in runner:
        _log_event(api, sweep, state, event, trial, folder)
    closing = [e for e in runner if e.kind == "outcome" and e.time >= began]  # not of an attempt that is continued
    if closing:
        kept = trial_run(api, sweep, trial, folder, began, known=state.run_id)  # nothing may stand beside it
        if kept != state.run_id:
            _save_state(state_path, _State(), sweep)
            return _project(folder, sweep)
        _finish_run(api, state.run_id, folder, closing[-1])
        log_policy(api, sweep, state.run_id, folder, trial)
    elif any(e.kind == "attempt" for e in runner):
        api.update_run(state.run_id, status="RUNNING")
    state.worker, state.runner = worker_tail.offset, runner_tail.offset
    _save_state(state_path, state, sweep)
    return state.run_id


# -- pieces --------------------------------------------------------------------------------------------


def _log_points(api: Any, state: _State, worker: Sequence[Event], runner: Sequence[Event]) -> None:
    from mlflow.entities import Metric

    points = [Metric(p.name, p.value, int(p.time * 1000), p.step) for p in points_of(worker, runner, state.samples)]
    state.samples += sum(event.kind == "sample" for event in runner)
    for chunk in chunks(points, BATCH):
        api.log_batch(state.run_id, metrics=chunk)


def _log_event(api: Any, sweep: SweepRun, state: _State, event: Event, trial: Mapping[str, Any], folder: Path) -> None:
    data = event.data
    for name, text in tags_from(event).items():
        api.set_tag(state.run_id, name, text)
    if event.kind == "table":
        _log_table(api, state.run_id, data["name"], data["rows"])
    elif event.kind == "artifact" and (place := _artifact_place(data["path"])) is not None:
        file = folder / "artifacts" / data["path"]
        if file.is_file():
            api.log_artifact(state.run_id, str(file), place or None)
    elif event.kind == "fingerprint":
        for name, one in fingerprint.told([event]).items():
            api.set_tag(state.run_id, fingerprint.COLUMN + name, fingerprint.as_text(one))
    elif event.kind == "note":
        for name, why in absences.told([event]).items():
            api.set_tag(state.run_id, absences.COLUMN + name, why[:4000])
    elif event.kind == "stage":
        _log_stage(api, sweep, state, event, trial)
    elif event.kind == "attempt":
        for key in ("train_key", "eval_key"):
            api.set_tag(state.run_id, key, str(data.get(key)))


def _artifact_place(path: str) -> str | None:
    """The folder in MLflow of an artifact small enough to go there; models stay where they are."""
    return {"examples": "examples", "data_card.md": ""}.get(path.partition("/")[0])


def _log_table(api: Any, run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table that MLflow's UI shows; written whole, so that repeating changes nothing (log_table appends)."""
    if not rows:
        return
    columns = list(rows[0])
    file = f"tables/{name}.json"
    api.log_dict(run_id, {"columns": columns, "data": [[row.get(c) for c in columns] for row in rows]}, file)
    tag = "mlflow.loggedArtifacts"
    listed = json.loads(api.get_run(run_id).data.tags.get(tag, "[]"))
    if {"path": file, "type": "table"} not in listed:
        api.set_tag(run_id, tag, json.dumps([*listed, {"path": file, "type": "table"}]))


def _log_stage(api: Any, sweep: SweepRun, state: _State, event: Event, trial: Mapping[str, Any]) -> None:
    """One run per stage, next to the trials of the sweep that built it; every trial that used it points there.

    A stage that an earlier store has seen built gets a run here too, or its figures would be nowhere to be found.
    """
    data = event.data
    if data["stage"].startswith(("baseline-", HELD_OUT)):
        return  # the figures of an untrained model are on the trial itself
    run_id = state.stages.get(data["key"]) or stage_run(api, sweep, event, trial)
    state.stages[data["key"]] = run_id
    api.set_tag(state.run_id, f"stage.{data['stage']}", run_id)


def _finish_run(api: Any, run_id: str, folder: Path, closing: Event) -> None:
    from mlflow.entities import Metric

    outcome = Outcome(closing.data["outcome"])
    result = result_of(folder)
    assert result is not None, "an attempt that has ended has a result"
    stamp = int(closing.time * 1000)
    final = [Metric(k, float(v), stamp, 0) for k, v in result.metrics.items() if k.startswith(AT_THE_END)]
    for chunk in chunks(final, BATCH):
        api.log_batch(run_id, metrics=chunk)
    api.set_tag(run_id, "outcome", str(outcome))
    api.set_tag(run_id, "reason", closing.data.get("reason") or "")
    api.set_tag(run_id, "mlflow.note.content", _describe(document(result)))
    for name in ("config.yaml", "result.json", "worker.log"):
        if (folder / name).is_file():
            api.log_artifact(run_id, str(folder / name))
    api.set_terminated(run_id, status=STATUS.get(outcome, "FAILED"), end_time=stamp)


def _describe(result: Mapping[str, Any]) -> str:
    """Headline numbers, as markdown for the run's page."""
    metrics, lines = result["metrics"], [f"**{result['trial_id']}** — {result['outcome']}"]
    if command := result["environment"].get("trial_command"):
        lines.append(formatting.code(command))
    if result["reason"]:
        lines.append(f"reason: {result['reason']}")
    for name in (
        "eval/true_reward",
        "delta/true_reward",
        "eval/preference_accuracy",
        "memory/peak_mb",
        "time/train_s",
    ):
        if name in metrics:
            lines.append(f"- `{name}` {metrics[name]:.4g}")
    return "\n".join(lines)


def _offset_at(path: Path, moment: float) -> int:
    """Byte offset of the first event at or after ``moment``."""
    offset = 0
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["time"] >= moment - 1e-3:
                    return offset
            except (ValueError, KeyError, TypeError):
                pass  # a torn line carries no event
            offset += len(line)
    return offset


def _load_state(path: Path, sweep: SweepRun) -> _State:
    try:
        data = json.loads(path.read_bytes())
        here = data["uri"] == sweep.uri and data.get("parent", sweep.parent_id) == sweep.parent_id
        state = _State(**data["state"])
        whole = all(
            isinstance(value, type(default))
            for value, default in zip(vars(state).values(), vars(_State()).values(), strict=True)
        )
        return state if here and whole else _State()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _State()


def _save_state(path: Path, state: _State, sweep: SweepRun) -> None:
    write_json(path, {"uri": sweep.uri, "parent": sweep.parent_id, "state": vars(state), "time": time.time()})
