"""Runs one trial: starts its process, watches and samples it, decides the outcome, keeps the books."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from harness.base.records import Outcome, Trial, TrialResult
from harness.base.world import World
from harness.config.devices import compute_device
from harness.runner import forkserver
from harness.runner.books import close_books, close_open_attempt, open_book
from harness.runner.decide_mode import Decision, decide_mode
from harness.runner.display import Display
from harness.runner.gpus import Taken, taken
from harness.runner.supervise import Attended, attend
from harness.store import checkpoints
from harness.store.cache import cache_dir
from harness.store.journal import Tail
from harness.store.memory_metrics import Expected, out_of_memory
from harness.store.mlflow_sync import Projector
from harness.store.modelcard import write_card
from harness.store.past import result_of
from harness.telemetry.inventory import device_levels
from harness.trial.assemble import Setup
from harness.trial.identify import folder_of
from harness.trial.job import Job


@dataclass(frozen=True)
class Runner:
    """The ``runner`` group.

    Attributes:
        timeout_s: a trial that takes longer is ended with outcome ``timeout``.
        threads: torch's threads in the trial; null leaves torch's default (all cores).
        device: where trials compute; ``auto`` is CUDA where torch sees it.
        sample_hz: memory samples per second.
        fail_fast: stop the sweep at the first trial that does not finish.
        skip_invalid: run the valid rest of a sweep in which some trials are impossible.
        memory_limit_mb: cap on the address space a trial may claim beyond its start.
        preflight: take one step of the longest rows in a process of its own before a trial begins, so that one that
            would run out of memory does so in its first seconds.
        predict: predict each trial's peak memory before the first one starts (seconds per distinct recipe, cached).
        memory_snapshot: record every allocation on CUDA while training, as ``artifacts/memory_snapshot.pickle`` for
            https://pytorch.org/memory_viz; it slows training down.
        stop_losing: stop a trial whose interval at a share of its budget (``eval.at``) lies wholly below that of the
            best finished trial of the sweep at that share, on validation rows; its outcome is ``stopped``.
        skip_unfit: do not start a trial that is predicted not to fit; its outcome is ``unfit``. ``auto``: one that is
            predicted to need more than twice what there is, which no error of a prediction explains, and which would
            take the memory of all that runs beside it before it fails.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    timeout_s: Annotated[float, Gt(0)] | None = None
    threads: Annotated[int, Gt(0)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sample_hz: Annotated[float, Ge(1), Le(200)] = 20.0
    fail_fast: bool = False
    skip_invalid: bool = False
    memory_limit_mb: Annotated[int, Gt(0)] | None = None
    preflight: bool = False
    predict: bool = True
    skip_unfit: Literal["auto"] | bool = "auto"
    stop_losing: bool = False
    memory_snapshot: bool = False


def run_trial(
    setup: Setup,
    trial: Trial,
    runner: Runner,
    projector: Projector | None,
    *,
    position: str = "",
    expected: Expected | None = None,
) -> tuple[Outcome, TrialResult]:
    """Bring a trial to its end; an interruption by the user is recorded and raised again.

    Args:
        setup: the trial's components.
        trial: its keys.
        runner: how to run it.
        projector: follows it into MLflow.
        position: in the sweep, for the display.
        expected: its predicted memory.

    Returns:
        the outcome of this start (``reused`` for a trial that was finished before) and the trial's result.
    """
    from filelock import FileLock

    folder = folder_of(setup, trial)
    folder.mkdir(parents=True, exist_ok=True)
    display = Display(f"{position} {trial.trial_id}".strip())
    with FileLock(folder / ".lock"):
        close_open_attempt(folder)
        again = bool(setup.plain.get("resume", True))
        decided = decide_mode(folder, trial, setup, resume=again, stop_losing=runner.stop_losing)
        if decided.mode == "reuse":
            result = result_of(folder)
            assert result is not None
            display.finish(f"reused: {decided.why}" if result.outcome.succeeded else decided.why)
            if projector is not None:
                projector.follow(folder)
                projector.flush()
            return Outcome.REUSED if result.outcome.succeeded else result.outcome, result
        if decided.why != "first attempt":
            display.say(f"{display.label} · {decided.why}")
        return _attempt(setup, trial, runner, projector, folder, decided, display, expected)


def _attempt(
    setup: Setup,
    trial: Trial,
    runner: Runner,
    projector: Projector | None,
    folder: Path,
    decided: Decision,
    display: Display,
    expected: Expected | None,
) -> tuple[Outcome, TrialResult]:
    decided_at = time.time()
    if decided.from_checkpoint and (left := checkpoints.newest(folder / "checkpoints")) is not None:
        checkpoints.keep_alone(left)  # where the disk was full, the half of one is in the way of the next
    elif decided.mode == "train":
        checkpoints.clear(folder / "checkpoints")
        for stale in ("checkpoints", "artifacts"):  # of another training; nothing may continue from them or judge them
            shutil.rmtree(folder / stale, ignore_errors=True)
    book = open_book(
        folder, trial, setup.unused, setup.plain, mode=decided.mode, continues=decided.continues, why=decided.why
    )
    tail = Tail(folder / "worker.jsonl", _size(folder / "worker.jsonl"))
    if expected is not None and decided.mode == "train":
        book.write("metrics", values=expected.metrics)
    if projector is not None:
        projector.follow(folder)
    if expected is not None and decided.mode == "train" and _skips(runner, expected):
        result = close_books(book, folder, [], None, Outcome.UNFIT, _why_unfit(runner, expected))
        return _ended(display, projector, Outcome.UNFIT, result), result
    world = World(0, 1 if decided.mode == "evaluate" else setup.parallel.processes)  # one of them judges
    with taken(world.size, compute_device(runner.device)) as gpus:
        if gpus.said is not None:
            display.say(f"{display.label} · {gpus.said}")
        job = _job(setup, runner, folder, decided, world, gpus, trial.digests["dataset"])
        if mask := job.environment.get("CUDA_VISIBLE_DEVICES"):
            book.write("gpus", mask=mask, chosen=gpus.said is not None)
        if compute_device(runner.device) == "cpu" and (said := forkserver.settle(runner.threads)) is not None:
            display.say(f"{display.label} · {said}")
            book.write("note", message=said)
        levels, done = device_levels(), None
        if runner.preflight and decided.mode == "train" and not decided.from_checkpoint:
            done = _preflight(job, runner, levels, display)
            decided_at = time.time()
        if done is None or done.outcome is Outcome.FINISHED:
            done = attend(
                job,
                display,
                name=trial.trial_id,
                tail=tail,
                book=book,
                began=decided_at,
                timeout_s=runner.timeout_s,
                hz=runner.sample_hz,
                levels=levels,
            )
    result = close_books(
        book, folder, done.events, done.summary, done.outcome, _told(done, expected, runner), done.ranks
    )
    if done.outcome is Outcome.FINISHED:
        write_card(folder, result)
    _ended(display, projector, done.outcome, result)
    if done.raised is not None:
        raise done.raised
    return done.outcome, result


def _preflight(job: Job, runner: Runner, levels: Any, display: Display) -> Attended:
    """Take the heaviest step of a trial in a process of its own, below the trial's folder."""
    folder = Path(job.folder) / "preflight"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    display.say(f"{display.label} · preflight: one step of the longest rows")
    done = attend(
        replace(job, folder=str(folder), mode="preflight", world=World(), environment=_of_one(job)),
        display,
        name="preflight",
        tail=Tail(folder / "worker.jsonl", 0),
        book=None,
        began=time.time(),
        timeout_s=runner.timeout_s,
        hz=runner.sample_hz,
        levels=levels,
    )
    return replace(done, reason=f"in preflight, one step of the longest rows: {done.reason}" if done.reason else None)


def _of_one(job: Job) -> dict[str, str]:
    """The environment of a process that does by itself what several will do: it sees the first of their GPUs."""
    mask = job.environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return {**job.environment, **({"CUDA_VISIBLE_DEVICES": mask} if mask else {})}


def _skips(runner: Runner, expected: Expected) -> bool:
    """Whether a trial is not started, by what it was predicted to need."""
    return expected.hopeless if runner.skip_unfit == "auto" else runner.skip_unfit and not expected.fits


def _why_unfit(runner: Runner, expected: Expected) -> str:
    hint = " (runner.skip_unfit=false starts it all the same)" if runner.skip_unfit == "auto" else ""
    return expected.why_unfit + hint


def _told(done: Attended, expected: Expected | None, runner: Runner) -> str | None:
    """The reason of an outcome; of running out of memory with its figures."""
    if done.outcome is not Outcome.OOM or done.reason is None:
        return done.reason
    return out_of_memory(done.reason, expected, done.summary, runner.memory_limit_mb)


def _ended(display: Display, projector: Projector | None, outcome: Outcome, result: TrialResult) -> Outcome:
    display.finish(_closing_line(outcome, result.reason, result))
    if projector is not None:
        projector.flush()
    return outcome


def _job(setup: Setup, runner: Runner, folder: Path, decided: Decision, world: World, gpus: Taken, rows: str) -> Job:
    passed = (
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "OMP_NUM_THREADS",
        "PYTORCH_CUDA_ALLOC_CONF",
        "HARNESS_CACHE",
    )
    environment = {**{name: os.environ[name] for name in passed if name in os.environ}, **gpus.environment}
    if runner.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # neither torch nor the sampler is to look at a GPU
    return Job(
        folder=str(folder.resolve()),
        plain=setup.plain,
        cache_dir=str(cache_dir(setup.plain)),
        mode="evaluate" if decided.mode == "evaluate" else "train",
        resume_checkpoint=decided.from_checkpoint,
        device=runner.device,
        threads=runner.threads,
        memory_limit_mb=runner.memory_limit_mb,
        snapshot=runner.memory_snapshot,
        stop_losing=runner.stop_losing,
        environment=environment,
        world=world,
        rows=rows,
    )


def _closing_line(outcome: Outcome, reason: str | None, result: TrialResult) -> str:
    if outcome is Outcome.FINISHED:
        seconds, peak = result.metrics.get("time/total_s"), result.metrics.get("memory/peak_mb")
        took = f" in {seconds:.0f} s" if seconds is not None else ""
        return f"finished{took}" + (f", peak {peak:,.0f} MB" if peak is not None else "")
    return f"{outcome}: {reason}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
