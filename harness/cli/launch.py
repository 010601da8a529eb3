"""From a planned sweep to its table: track, launch through Hydra, read the folders, report."""

from __future__ import annotations

import contextlib
import io
import json
import os
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
from harness.cli.concluding import conclude
from harness.config import identity
from harness.config.compose import hydra_application
from harness.config.devices import gpu_visible
from harness.config.plugins import register
from harness.config.train import Train
from harness.launchers import elsewhere
from harness.runner import forkserver
from harness.runner.display import say, spell
from harness.store.cache import cache_dir
from harness.store.mlflow_store import SweepRun, Tracking, in_one_line, open_sweep
from harness.store.mlflow_sync import Projector
from harness.store.past import result_of, trial_folders
from harness.store.result import SHARED
from harness.sweep.expand import Sweep, named, plan_sweep, write_manifest
from harness.tasks.audit import few_prompts, one_answer
from harness.trial.data import cache_of, load_data

if TYPE_CHECKING:
    from harness.store.memory_metrics import Expected
    from harness.trial.assemble import Setup

STOP = ".stopped"
DRIFT = "a configuration file has changed since; name the sweep again to train what it holds now"
RATES = "real models are trained with 1e-7 to 1e-4, the embedded one with 1e-4 to 2e-3"


def run_sweep(arguments: Sequence[str]) -> int:
    """Run a Hydra command line; returns the exit code, derived from what is on disk afterwards."""
    return swept(arguments)[0]


def swept(arguments: Sequence[str]) -> tuple[int, Sweep]:
    """The same, with the sweep that was run."""
    options = parse(arguments)
    overrides = named(options.overrides)
    if not any(o.lstrip("+").startswith("hydra/launcher=") for o in overrides):
        if not gpu_visible():
            forkserver.settle(None)  # else a trial beside other work would need another server
        forkserver.warm_up()  # its imports take seconds; the sweep is planned meanwhile
    try:
        return _run(options, overrides)
    finally:
        forkserver.stop()


def _run(options: Any, overrides: list[str]) -> tuple[int, Sweep]:
    from harness.sweep.deep_checks import check

    config_dirs = [options.config_dir] if options.config_dir else []
    sweep = plan_sweep(overrides, multirun=options.multirun, config_dirs=config_dirs)
    for target in sweep.plugins:
        register(target)  # before anything is written: what a launcher needs may not be installed
    started = time.time()
    signal.signal(signal.SIGTERM, _as_interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it goes on; else the books are closed first
        signal.signal(signal.SIGHUP, _as_interrupt)
    sweep = _without_invalid(sweep, check(sweep))  # before tracking: a refused sweep leaves no run behind
    check_writable(sweep.folder)
    check_writable(cache_dir(sweep.plain), key="cache.dir")
    run = _track(sweep)
    overrides = _without_credentials(overrides, sweep.tracking)
    _announce(sweep)
    write_manifest(sweep, run)
    (sweep.folder / STOP).unlink(missing_ok=True)
    interrupted, broken = False, None
    try:
        write_manifest(sweep, run, {trial_id: vars(e) for trial_id, e in _expected(sweep).items()})
        if not sweep.own_process:
            forkserver.stop()  # other processes will have their own
        if sweep.own_process:
            _hydra(options, overrides)
        else:
            with elsewhere.probes(sweep.folder, cache_dir(sweep.plain)):
                _hydra(options, [*overrides, *_wherever_it_runs(sweep)])
    except KeyboardInterrupt:
        interrupted = True
    except Exception as error:
        if sweep.own_process or isinstance(error, UserError | UserErrors):
            raise
        broken = error  # of a launcher, which raises whatever became of one of its jobs
        say(f"error: the launcher gave up ({in_one_line(error)}); what its trials wrote is read all the same")
    code = conclude(sweep, run, started)
    if interrupted or broken is not None:
        print(f"resume:  {resume_command(options, overrides)}")
    return 1 if interrupted or broken is not None else code, sweep


def check_writable(folder: Path, key: str = "outputs") -> None:
    """Raise ``UserError`` where the folder of a sweep, or one of its trials', cannot be written; found by trying."""
    place = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    for where in (place, *(trial_folders(folder) if place == folder else ())):
        try:
            with tempfile.TemporaryFile(dir=where) as probe:
                probe.write(b"\0" * 4096)
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror})",
                key=key,
                value=str(where),
                fix=f"{key}=/some/other/folder",
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
    with elsewhere.given_back():
        _trial_of(config)


def _trial_of(config: Any) -> None:
    from omegaconf import OmegaConf

    from harness.config.building import build
    from harness.runner.run_trial import Runner, run_trial
    from harness.store.memory_metrics import Expected
    from harness.trial.assemble import assemble, with_baseline
    from harness.trial.checks import check_data
    from harness.trial.identify import identify

    if elsewhere.FROM in os.environ:
        elsewhere.arrive(config)
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
    if manifest.get("planned") and trial.trial_id not in known:  # Hydra composes each job anew, when its turn comes
        say(f"error: {trial.trial_id} is none of the trials that {plain['sweep']} was planned with: {DRIFT}")
        return
    if elsewhere.FROM in os.environ:
        elsewhere.look_around(folder, cache_dir(plain))
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
    took = [s for r in over if r.outcome is Outcome.FINISHED and (s := _own_seconds(r))]
    if left and took:
        mean = sum(took) / len(took)
        so_far = "the first took" if len(took) == 1 else f"the {len(took)} so far took, on average,"
        say(f"{count(len(left), 'trial')} left, about {spell(mean * len(left))} ({so_far} {spell(mean)})")


def _own_seconds(result: TrialResult) -> float:
    """How long a trial took, less what it built for those after it."""
    return max(0.0, (result.metrics.get("time/total_s") or 0.0) - (result.metrics.get(SHARED) or 0.0))


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
    if quantized := [trial_id for trial_id, e in known.items() if e.baseline == "quantized"]:
        few = ", ".join(quantized[:3]) + (f" and {len(quantized) - 3} more" if len(quantized) > 3 else "")
        where = known[quantized[0]].where
        say(f"note: the base is judged quantized for {few}: unquantized it is predicted not to fit {where}")
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
        named = any(o.startswith("reward=") for o in point.overrides)  # the default one is no matter
        ignored = [knob for knob in setup.unused if knob != "reward" or named]
        unused = f"; unused: {', '.join(ignored)}" if ignored else ""
        how = (
            f"preset {train.preset}: lr {train.learning_rate:g}, {_length(train)} of {train.batch_size}"
            if setup.algo.trains
            else "evaluates the model as it is"
        )
        say(f"  {point.trial.trial_id}  {how}{unused}")


def _noted(setup: Setup) -> list[str]:
    """What a trial's data makes of its settings."""
    data = load_data(setup.task, cache_of(setup))
    rate, split = setup.train.learning_rate, setup.eval.split
    unjudged = setup.eval.active and not (data.eval_pairs.get(split) or data.eval_prompts.get(split))
    return [
        *([f"the data has no held-out rows in split {split}, so nothing says what training does"] if unjudged else []),
        *(
            [f"train.learning_rate={rate:g} moves every weight by as much in a step of Adam: {RATES}"]
            if setup.algo.trains and rate is not None and rate > 0.1
            else []
        ),
        *(setup.algo.notes(data, setup.train) if setup.algo.trains else ()),
        *(line for told in (few_prompts, one_answer) if setup.eval.active for line in told(data, setup.eval.split)),
    ]


def _length(train: Train) -> str:
    """How long training goes on, in words."""
    if named := train.budget.named:
        return f"{named[1]:,g} {named[0]}, in steps" if named[0] != "steps" else f"{named[1]:g} steps"
    amount, unit = (train.steps, "step") if train.steps else (train.epochs, "epoch")
    return f"{amount:g} {unit}" + ("" if amount == 1 else "s")


def _wherever_it_runs(sweep: Sweep) -> list[str]:
    """Overrides by which a job in another folder, or on another machine, means the same paths."""
    start, outputs = Path.cwd(), Path(str(sweep.plain.get("outputs", "outputs"))).resolve()
    return [f"outputs={elsewhere.quoted(outputs)}", f"+hydra.job.env_set.{elsewhere.FROM}={elsewhere.quoted(start)}"]


def _hydra(options: Any, overrides: Sequence[str]) -> None:
    """Hand over to Hydra, which launches what it enumerates."""
    flags = ["--multirun"] * options.multirun
    flags += ["--config-dir", str(Path(options.config_dir).resolve())] if options.config_dir else []
    hydra_application(job, [*flags, *overrides])  # Hydra's own parser wants all overrides in one piece


def parse(arguments: Sequence[str]) -> Any:
    """Hydra's options and the overrides of a command line.

    Raises:
        UserError: there is no such option.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    said = io.StringIO()  # argparse says first how Hydra is used, in ten lines
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_intermixed_args(list(arguments))
    except SystemExit as ended:
        if ended.code:
            words = said.getvalue().strip().rpartition("error: ")[2] or "unknown option"
            raise UserError(words, fix="see `python -m harness --help`") from None
        raise


def _as_interrupt(*_: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
