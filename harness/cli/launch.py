"""From a planned sweep to its table: track, launch through Hydra, read the folders, report."""

from __future__ import annotations

import json
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError, UserErrors, without_login
from harness.base.formatting import count
from harness.base.records import Outcome, TrialResult
from harness.config import identity
from harness.config.compose import hydra_application
from harness.config.train import Train
from harness.runner import forkserver
from harness.runner.display import say, spell
from harness.store import views
from harness.store.mlflow_store import SweepRun, Tracking, client, close_sweep, in_one_line, open_sweep
from harness.store.mlflow_sync import Projector
from harness.store.modelcard import way_to
from harness.store.past import result_of, trial_folders
from harness.sweep.expand import Sweep, named, plan_sweep, write_manifest
from harness.tasks.audit import few_prompts
from harness.trial.data import cache_of, load_data

if TYPE_CHECKING:
    import pandas as pd

    from harness.store.memory_metrics import Expected
    from harness.trial.assemble import Setup

STOP = ".stopped"
SERVER_BACK_S = 60.0
"""For this long a sweep that is over waits for a tracking server that does not answer."""


def run_sweep(arguments: Sequence[str]) -> int:
    """Run a Hydra command line; returns the exit code, derived from what is on disk afterwards."""
    return swept(arguments)[0]


def swept(arguments: Sequence[str]) -> tuple[int, Path]:
    """The same, with the folder of the sweep."""
    options = _parse(arguments)
    overrides = named(options.overrides)
    if not any(o.lstrip("+").startswith("hydra/launcher=") for o in overrides):
        forkserver.warm_up()  # its imports take seconds; the sweep is planned meanwhile
    try:
        return _run(options, overrides)
    finally:
        forkserver.stop()


def _run(options: Any, overrides: list[str]) -> tuple[int, Path]:
    from harness.sweep.deep_checks import check

    config_dirs = [options.config_dir] if options.config_dir else []
    sweep = plan_sweep(overrides, multirun=options.multirun, config_dirs=config_dirs)
    started = time.time()
    signal.signal(signal.SIGTERM, _as_interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it goes on; else the books are closed first
        signal.signal(signal.SIGHUP, _as_interrupt)
    sweep = _without_invalid(sweep, check(sweep))  # before tracking: a refused sweep leaves no run behind
    check_writable(sweep.folder)
    run = _track(sweep)
    overrides = _without_credentials(overrides, sweep.tracking)
    _announce(sweep)
    write_manifest(sweep, run)
    (sweep.folder / STOP).unlink(missing_ok=True)
    interrupted = False
    try:
        write_manifest(sweep, run, {trial_id: vars(e) for trial_id, e in _expected(sweep).items()})
        if not sweep.own_process:
            forkserver.stop()  # other processes will have their own
        _hydra(options, overrides)
    except KeyboardInterrupt:
        interrupted = True
    code = _conclude(sweep, run, started)
    if interrupted:
        print(f"resume:  {resume_command(options, overrides)}")
    return 1 if interrupted else code, sweep.folder


def check_writable(folder: Path) -> None:
    """Raise ``UserError`` where the folder of a sweep, or one of its trials', cannot be written; found by trying."""
    place = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    for where in (place, *(trial_folders(folder) if place == folder else ())):
        try:
            with tempfile.TemporaryFile(dir=where) as probe:
                probe.write(b"\0" * 4096)
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror})",
                key="outputs",
                value=str(where),
                fix="outputs=/some/other/folder",
            ) from None


def _without_credentials(overrides: Sequence[str], tracking: Tracking) -> list[str]:
    """Overrides for Hydra, which writes what it is given to disk: a store's user and password are no part of them."""
    if without_login(tracking.uri) == tracking.uri:
        return list(overrides)
    kept = [o for o in overrides if not o.lstrip("+").startswith("tracking.uri=")]
    return [*kept, f"tracking.uri='{tracking.resolved_uri}'"]


def resume_command(options: Any, overrides: Sequence[str]) -> str:
    """The line that goes on with a sweep that was interrupted, as a shell takes it."""
    flags = ["-m"] if options.multirun else []
    for flag in ("config_dir", "config_path", "config_name"):
        if value := getattr(options, flag, None):
            flags += [f"--{flag.replace('_', '-')}", value]
    kept = [o for o in overrides if not o.lstrip("+").startswith("resume=")]  # resume=false would start over
    return shlex.join(["python", "-m", "harness", *flags, *kept])


def job(config: Any) -> None:
    """One Hydra job: one trial. Failures are outcomes in the folder, never exceptions."""
    from omegaconf import OmegaConf

    from harness.config.compose import build
    from harness.runner.run_trial import Runner, run_trial
    from harness.store.memory_metrics import Expected
    from harness.trial.assemble import assemble, with_baseline
    from harness.trial.checks import check_data
    from harness.trial.identify import identify

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    plain = {str(k): v for k, v in plain.items()}
    folder = Path(str(plain["outputs"])) / str(plain["sweep"])
    if (folder / STOP).exists():
        return
    manifest = json.loads((folder / "sweep.json").read_text())
    runner = build(plain["runner"], path="runner", base=Runner)
    try:
        setup = assemble(plain)
        trial = identify(setup, data := check_data(setup))
        predicted = manifest.get("expected", {}).get(trial.trial_id)
        expected = None if predicted is None else Expected(**predicted)
        setup = with_baseline(setup, (expected.baseline if expected is not None else None) or "deployed")
        trial = identify(setup, data)
    except UserErrors as errors:
        if not runner.skip_invalid:
            say(f"error: {errors}")
        return
    run = None if manifest["tracking"] is None else SweepRun(**manifest["tracking"])
    known = manifest["trials"]
    position = f"[{known.index(trial.trial_id) + 1}/{len(known)}]" if trial.trial_id in known else ""
    projector = None if run is None else Projector(run)
    try:
        outcome, _ = run_trial(setup, trial, runner, projector, position=position, expected=expected)
    except OSError as error:  # the disk is full or gone: this trial's books stay open, and `harness sync` closes them
        say(f"error: {trial.trial_id}: {in_one_line(error)}")
        return
    _tell_rest(folder, known, trial.trial_id)
    if projector is not None and projector.failure:
        say(f"warning: MLflow is behind ({projector.failure}); `harness sync` catches up")
    if runner.fail_fast and not outcome.succeeded:
        (folder / STOP).write_text(f"{trial.trial_id}: {outcome}")


def _tell_rest(folder: Path, known: Sequence[str], done: str) -> None:
    """How long the trials will take that are not done, as long as those did that are: said once the first is over."""
    left = known[known.index(done) + 1 :] if done in known else []
    over = [r for t in known if t not in left and (r := result_of(folder / t)) is not None]
    took = [s for r in over if r.outcome is Outcome.FINISHED and (s := r.metrics.get("time/total_s"))]
    if left and took:
        mean = sum(took) / len(took)
        so_far = "the first took" if len(took) == 1 else f"the {len(took)} so far took, on average,"
        say(f"{count(len(left), 'trial')} left, about {spell(mean * len(left))} ({so_far} {spell(mean)})")


def _track(sweep: Sweep) -> SweepRun | None:
    """Database and parent run, before any trial; importing MLflow runs beside the forkserver's imports."""
    try:
        return open_sweep(sweep.tracking, sweep.name, {"command": identity.command_line()})
    except UserError as error:
        if sweep.tracking.required:
            raise
        say(f"warning: {error}")
        return None


def _expected(sweep: Sweep) -> dict[str, Expected]:
    """What each trial is predicted to need, by its id; nothing where it cannot be said, or was not asked for."""
    from harness.plan.sweeps import expectations

    if not (sweep.expanded and sweep.runner.predict):
        return {}
    found = expectations(sweep.points, sweep.runner, say)
    for problem in dict.fromkeys(str(e) for e in found.values() if isinstance(e, UserError)):
        say(f"note: no prediction of memory: {problem}")
    known = {trial_id: e for trial_id, e in found.items() if not isinstance(e, UserError)}
    if in_4_bits := [trial_id for trial_id, e in known.items() if e.baseline == "quantized"]:
        few = ", ".join(in_4_bits[:3]) + (f" and {len(in_4_bits) - 3} more" if len(in_4_bits) > 3 else "")
        where = known[in_4_bits[0]].where
        say(f"note: the base is judged in 4 bits for {few}: unquantized it is predicted not to fit {where}")
    return known


def _without_invalid(sweep: Sweep, problems: dict[str, UserErrors]) -> Sweep:
    """Drop the trials that the deeper check found impossible, or raise with all of it."""
    if not problems:
        return sweep
    good = tuple(p for p in sweep.points if p.trial.trial_id not in problems)
    bad = tuple((p.overrides, problems[p.trial.trial_id]) for p in sweep.points if p.trial.trial_id in problems)
    if not (sweep.runner.skip_invalid and good):
        raise UserErrors([e for _, errors in bad for e in errors.errors])
    return replace(sweep, points=good, invalid=(*sweep.invalid, *bad))


def _announce(sweep: Sweep) -> None:
    """What is about to run, what is not and why."""
    for overrides, errors in sweep.invalid:
        say(f"skipped (invalid): {' '.join(overrides)}\n  {str(errors).replace(chr(10), chr(10) + '  ')}")
    for overrides, twin in sweep.duplicates:
        say(f"same trial: {' '.join(overrides)} is {twin}, runs once")
    if sweep.expanded:
        say(f"sweep {sweep.name}: {len(sweep.points)} trial{'s' if len(sweep.points) != 1 else ''} in {sweep.folder}")
    for note in dict.fromkeys(note for point in sweep.points for note in _noted(point.setup)):
        say(f"note: {note}")
    for point in sweep.points:
        setup, train = point.setup, point.setup.train
        unused = f"; unused: {', '.join(setup.unused)}" if setup.unused and setup.unused != ("reward",) else ""
        recipe = (
            f"recipe {train.recipe}: lr {train.learning_rate:g}, {_length(train)} of {train.batch_size}"
            if setup.algo.trains
            else "evaluates the model as it is"
        )
        say(f"  {point.trial.trial_id}  {recipe}{unused}")


def _noted(setup: Setup) -> list[str]:
    """What a trial's data makes of its settings."""
    data = load_data(setup.task, cache_of(setup))
    return [
        *(setup.algo.notes(data, setup.train) if setup.algo.trains else ()),
        *(few_prompts(data, setup.eval.split) if setup.eval.active else ()),
    ]


def _length(train: Train) -> str:
    """How long training goes on, in words."""
    if named := train.budget.named:
        return f"{named[1]:,g} {named[0]}, in steps" if named[0] != "steps" else f"{named[1]:g} steps"
    amount, unit = (train.steps, "step") if train.steps else (train.epochs, "epoch")
    return f"{amount:g} {unit}" + ("" if amount == 1 else "s")


def _hydra(options: Any, overrides: Sequence[str]) -> None:
    """Hand over to Hydra, which launches what it enumerates."""
    flags = ["--multirun"] * options.multirun
    flags += ["--config-dir", options.config_dir] if options.config_dir else []
    hydra_application(job, [*flags, *overrides])  # Hydra's own parser wants all overrides in one piece


def _conclude(sweep: Sweep, run: SweepRun | None, started: float) -> int:
    """Table, report and the way to the UI; the exit code from the folders."""
    from harness.report.leaderboard import render_terminal
    from harness.store import results

    known = [p.trial.trial_id for p in sweep.points] if sweep.expanded else _trials_on_disk(sweep.folder)
    outcomes: dict[str, Outcome | None] = {}
    for trial_id in known:
        _settle(sweep.folder / trial_id)
        result = result_of(sweep.folder / trial_id)
        outcomes[trial_id] = None if result is None else result.outcome
        if result is not None and result.outcome.succeeded and not _fresh(sweep.folder / trial_id, result, started):
            outcomes[trial_id] = Outcome.REUSED
    not_started = [t for t, o in outcomes.items() if o is None]
    succeeded = bool(known) and all(o is not None and o.succeeded for o in outcomes.values())
    if any((sweep.folder / t / "result.json").is_file() for t in known):
        frame = results.from_folder(sweep.folder)
        frame = frame.loc[frame["trial_id"].isin(known)].reset_index(drop=True)
        frame["outcome"] = [str(outcomes[t]) for t in frame["trial_id"]]
        print(render_terminal(frame))
        _print_recipes(sweep.folder, frame)
    for trial_id in not_started:
        print(f"not started: {trial_id}")
    tracked = run is None or _report(sweep, run, succeeded)
    return 0 if succeeded and (tracked or not sweep.tracking.required) else 1


def _settle(folder: Path) -> None:
    """Make what a full disk kept from being written, if there is room by now and no other command is at it."""
    from filelock import FileLock, Timeout

    from harness.runner.books import close_open_attempt

    if not folder.is_dir():
        return
    try:
        with FileLock(folder / ".lock", timeout=0):
            close_open_attempt(folder)
    except Timeout:
        return
    except OSError as error:
        say(f"warning: {folder.name}: {in_one_line(error)}; `harness sync` makes its files once that is mended")


def _fresh(folder: Path, result: TrialResult, started: float) -> bool:
    """Whether a result is of this start: of an older file, which does not say, when it was written."""
    if result.attempt is not None:
        return result.attempt >= started - 1
    return (folder / "result.json").stat().st_mtime >= started - 1


def _print_recipes(folder: Path, frame: pd.DataFrame) -> None:
    """Where recipes were trained with several seeds, a row for each of them; then what follows from it."""
    from harness.report import choice, markdown, recipes
    from harness.report.findings import find
    from harness.store import results

    found = find(frame, lambda rows, name: results.examples_from_folder(folder, rows, name))
    if recipes.several_seeds(found.recipes):
        print("\n" + recipes.render_terminal(found.recipes, found.verdicts))
    if said := markdown.advice(found):
        print("\nadvice:  " + " ".join(said))
    if found.recipes:
        first, note = found.recipes[0], "the first of the table"
        if found.metric is not None and not choice.is_above(first, found.metric, found.base):
            note = f"not shown to be better than the base; {note}"
        print(way_to(folder / str(first.frame.iloc[0]["trial_id"]), note), end="")


def _report(sweep: Sweep, run: SweepRun, succeeded: bool) -> bool:
    """Catch up with MLflow, write the report, say where both are; whether MLflow has all trials."""
    from harness.report.gather import write_report

    behind = _catch_up(trial_folders(sweep.folder), run)
    try:
        close_sweep(run, succeeded=succeeded and not behind)
        out_dir = Path("reports") / sweep.name
        path = write_report(run.uri, sweep.name, out_dir, experiment=sweep.tracking.experiment).path
        client(run.uri).log_artifacts(run.parent_id, str(path.parent), "report")
        print(f"report:  {path}")
    except UserError:
        raise
    except Exception as error:  # the trials are safe on disk; say what is missing and how to get it
        behind[""] = in_one_line(error)
        say(f"warning: no report ({behind['']}); try `harness sync`, then `harness report`")
    if late := [name for name in behind if name]:
        say(f"warning: MLflow lacks {len(late)} of the trials ({behind[late[0]]}); `harness sync` catches up")
    print(f"compare: {views.ui_command(sweep.tracking)}   then open {views.link_to(run, sweep.name)}")
    return not behind


def _catch_up(folders: Sequence[Path], run: SweepRun) -> dict[str, str]:
    """Project what MLflow lacks, and name the trials that it would not take, with the reason.

    A server that is on its way back is waited for; a full disk or a database in a file is not.
    """
    from harness.store.mlflow_sync import project

    said = False
    until = time.monotonic() + (SERVER_BACK_S if run.uri.startswith(("http://", "https://")) else 0)
    while True:
        behind: dict[str, str] = {}
        for folder in folders:
            try:
                project(folder, run)
            except Exception as error:  # of the store or the disk: the journals hold everything for the next try
                behind[folder.name] = in_one_line(error)
        if not behind or time.monotonic() >= until:
            return behind
        if not said:
            say(f"waiting for the store, {SERVER_BACK_S:.0f} s at most ({next(iter(behind.values()))})")
            said = True
        folders = [folder for folder in folders if folder.name in behind]
        time.sleep(1)


def _trials_on_disk(folder: Path) -> list[str]:
    return [p.name for p in trial_folders(folder)]


def _parse(arguments: Sequence[str]) -> Any:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    try:
        return parser.parse_intermixed_args(list(arguments))
    except SystemExit as ended:
        if ended.code:
            raise UserError("unknown option", fix="see `python -m harness --help`") from None
        raise


def _as_interrupt(*_: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
