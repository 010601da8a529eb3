"""A fault before each durable operation of two attempts at a trial; then everything is as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from harness.base.records import Outcome, Trial
from harness.runner import supervise
from harness.runner.books import close_open_attempt
from harness.runner.run_trial import Runner, folder_of, run_trial
from harness.store import journal
from harness.store.journal import Journal
from harness.store.mlflow_store import SweepRun, Tracking, client, open_sweep
from harness.store.mlflow_sync import Projector, project
from harness.store.result import read_result
from harness.telemetry.sampler import MemorySummary
from harness.trial.assemble import Setup
from harness.trial.checks import check_data
from harness.trial.identify import identify
from tests.faults.points import KINDS, Fault

MOST = os.environ.get("HARNESS_FAULT_POINTS", "10")
"""Points per kind of fault, spread evenly; ``all`` of them take half an hour."""
SEEDS = (0, 1)
"""Of the evaluators: the setting that changes between the two attempts."""


@dataclass(frozen=True)
class Scene:
    """A trial under two settings of its evaluators, and a store that knows its sweep.

    Attributes:
        root: holds the trial's folder and the store.
    """

    root: Path
    setups: tuple[Setup, ...]
    trials: tuple[Trial, ...]
    run: SweepRun

    @property
    def folder(self) -> Path:
        return folder_of(self.setups[0], self.trials[0])

    def attempt(self, which: int) -> Outcome:
        """Name the sweep again with one of the settings."""
        with worker(which):
            return run_trial(self.setups[which], self.trials[which], Runner(), Projector(self.run, every_s=1e9))[0]

    def story(self) -> None:
        """Both settings, one after the other; what does not work is left for later, as a command line does."""
        for which in (0, 1):
            with suppress(OSError):
                self.attempt(which)

    def sync(self) -> None:
        close_open_attempt(self.folder)
        project(self.folder, self.run)


class Sampler:
    """Two samples, and no process that is looked at."""

    latest_mb = 100.0

    def __init__(self, pid: int, emit: Callable[[dict[str, Any]], object], **_: Any):
        self.emit = emit

    def __enter__(self) -> Sampler:
        for megabytes in (100.0, 200.0):
            self.emit({"t": time.time(), "phase": "train", "used_mb": megabytes, "lens": "private", "n": 1})
        return self

    def __exit__(self, *_: Any) -> None: ...

    def enter(self, *_: Any) -> None: ...

    def summary(self) -> MemorySummary:
        return MemorySummary("private", 200.0, {"train": 200.0}, "train", 2, 0, None, None)


def worker(which: int) -> Any:
    """A trial's process of a few lines: it trains or only evaluates, and its figure tells under which setting."""

    def start(job: Any, *, name: str) -> Any:
        folder, code = Path(job.folder), 0
        with closing(Journal(folder / "worker.jsonl")) as book:
            try:
                book.write("start", pid=1)
                if job.mode == "train":
                    book.write("note", message="trains", absent="")
                    (folder / "artifacts" / "model").mkdir(parents=True, exist_ok=True)
                book.write("stage", stage="sft", key="k", hit=False, why="first use", seconds=1.0, metrics={"loss": 1})
                book.write("metrics", values={"eval/figure": float(which)})
                book.write("done")
            except OSError:
                code = 1
        return SimpleNamespace(pid=os.getpid(), exitcode=code, is_alive=lambda: False, join=lambda *_: None)

    return patch.multiple(supervise, MemorySampler=Sampler, start=start)


def aside(what: Callable[[], Any]) -> tuple[int, str]:
    """Run in a forked process: its exit status (below zero a signal), and what it printed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout = sys.stderr = os.fdopen(os.dup(writing), "w", buffering=1)
        try:
            what()
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the sweep's parent run, made once."""
    import mlflow.tracking  # noqa: F401  (once, for all forked processes)

    root = tmp_path_factory.mktemp("template")

    def make() -> None:
        run = open_sweep(Tracking(uri=f"sqlite:///{root}/mlflow.db"), "test")
        (root / "run.json").write_text(json.dumps(vars(run)))

    assert aside(make)[0] == 0
    return root


@pytest.fixture
def scene_at(template: Path, assemble: Any) -> Callable[[Path], Scene]:
    few = ("task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4")
    sample = assemble(*few)
    data = check_data(sample)

    def make(root: Path) -> Scene:
        root.mkdir()
        shutil.copy(template / "mlflow.db", root / "mlflow.db")
        known = json.loads((template / "run.json").read_text())
        setups = tuple(assemble(*few, f"outputs={root}", f"eval.seed={seed}") for seed in SEEDS)
        run = SweepRun(f"sqlite:///{root}/mlflow.db", known["experiment_id"], known["parent_id"])
        return Scene(root, setups, tuple(identify(setup, data) for setup in setups), run)

    return make


def check(scene: Scene, which: int) -> None:
    """All is well with the trial under a setting: files, journals and the store agree."""
    result, keys = read_result(scene.folder), scene.trials[which]
    assert result is not None and result.outcome is Outcome.FINISHED
    assert (result.train_key, result.eval_key) == (keys.train_key, keys.eval_key)
    assert result.metrics["eval/figure"] == which
    assert json.loads((scene.folder / "trial.json").read_text())["eval_key"] == keys.eval_key
    api = client(scene.run.uri)
    query = f"tags.kind = 'trial' and tags.trial_id = '{keys.trial_id}'"
    (run,) = api.search_runs([scene.run.experiment_id], query)
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "finished")
    assert run.data.tags["eval_key"] == keys.eval_key
    assert run.data.metrics["eval/figure"] == which
    assert run.data.metrics["memory/peak_mb"] == 200.0
    stages = api.search_runs([scene.run.experiment_id], "tags.kind = 'stage'")
    assert [r.info.status for r in stages] == ["FINISHED"]


def trainings(scene: Scene) -> int:
    return sum(e.data.get("message") == "trains" for e in journal.read(scene.folder / "worker.jsonl"))


def ended_training(scene: Scene) -> bool:
    """Whether training's last word was on disk when the fault came."""
    return any(e.kind == "done" for e in journal.read(scene.folder / "worker.jsonl"))


def recover(scene: Scene, *, sync: bool) -> None:
    """What a user does next: sync, perhaps, and name the sweep again with the newer setting, then with the older."""
    had_trained, before = ended_training(scene), trainings(scene)
    if sync:
        scene.sync()
    scene.attempt(1)
    check(scene, 1)
    scene.attempt(0)
    check(scene, 0)
    if had_trained:
        assert trainings(scene) == before, "a trial that had trained was trained again"
    assert scene.attempt(0) is Outcome.REUSED


def operations(scene: Scene) -> list[str]:
    """The names of all of them, in order, where nothing goes wrong."""

    def count() -> None:
        fault = Fault()
        with fault.installed():
            scene.story()
        print("\n".join(["operations:", *fault.done]))

    code, said = aside(count)
    assert code == 0, said
    return said.partition("operations:\n")[2].split("\n")[:-1]


def chosen(count: int) -> Iterator[int]:
    """The operations at which a fault is tried, spread over all of them."""
    step = 1.0 if MOST == "all" else max(1.0, count / int(MOST))
    yield from sorted({1 + int(i * step) for i in range(int(count / step))})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_operation_loses_nothing(kind, scene_at, tmp_path):
    names = operations(scene_at(tmp_path / "count"))
    assert len(names) > 40
    failed, run = [], 0
    for n in chosen(len(names)):
        if kind == "lost" and not names[n - 1].startswith("store"):
            continue
        run += 1
        scene = scene_at(tmp_path / f"{kind}-{n}")

        def harmed(scene: Scene = scene, n: int = n) -> None:
            with Fault(kind, n).installed():
                scene.story()

        code, said = aside(harmed)
        assert code == (-9 if kind in ("kill", "torn") else 0), (n, names[n - 1], said)
        code, said = aside(lambda scene=scene, n=n: recover(scene, sync=n % 2 == 0))
        if code != 0:
            failed.append(f"{kind} at {n}, {names[n - 1]}:\n{said[-1500:]}")
        shutil.rmtree(scene.root)
    print(f"{kind}: {run} points, {len(failed)} failed")
    assert not failed, "\n\n".join(failed[:5])
