"""The end of a sweep: table, report and the way to the UI; the exit code from the folders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import UserError
from harness.base.records import Outcome, TrialResult
from harness.launchers.elsewhere import what_hosts_lack
from harness.runner.display import say
from harness.store import views
from harness.store.mlflow_store import SweepRun, client, close_sweep, in_one_line
from harness.store.modelcard import way_to
from harness.store.past import result_of, trial_folders
from harness.sweep.expand import Sweep

if TYPE_CHECKING:
    import pandas as pd

SERVER_BACK_S = 60.0
"""For this long a sweep that is over waits for a tracking server that does not answer."""


def conclude(sweep: Sweep, run: SweepRun | None, started: float) -> int:
    """Table, report and the way to the UI; the exit code from the folders."""
    from harness.report.table import render_terminal
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
    for lack in () if sweep.own_process else what_hosts_lack(sweep.folder):
        say(f"note: {lack}")
    for trial_id in not_started:
        print(f"not started: {trial_id}")
    tracked = _report(sweep, run, succeeded) if run is not None else _report_of_folders(sweep)
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
    from harness.report import markdown, recipes
    from harness.report.sections import uses
    from harness.report.standings import find
    from harness.store import results

    found = find(frame, lambda rows, name: results.examples_from_folder(folder, rows, name))
    if recipes.several_seeds(found.recipes):
        print("\n" + recipes.render_terminal(found.recipes, found.verdicts))
    if said := markdown.advice(found):
        print("\nadvice:  " + " ".join(said))
    if found.recipes:
        first, note = found.recipes[0], "the first of the table"
        if found.base is not None and (caveat := found.base.caveat(first.label)):
            note = f"{note}; {caveat}"
        print(way_to(folder / str(uses.best_seed(first, found.metric)["trial_id"]), note), end="")


def _report_of_folders(sweep: Sweep) -> bool:
    """Write the report of a sweep that no store has, and say where it is; there is nothing that MLflow lacks."""
    from harness.report.gather import write_report
    from harness.report.sources import Folder

    if not any(sweep.folder.glob("*/result.json")):
        return True
    try:
        print(f"report:  {write_report(Folder(sweep.folder), Path('reports') / sweep.name).path}")
    except Exception as error:  # the trials are safe on disk
        say(f"warning: no report ({in_one_line(error)}); try `harness report --from-folder {sweep.folder}`")
    return True


def _report(sweep: Sweep, run: SweepRun, succeeded: bool) -> bool:
    """Catch up with MLflow, write the report, say where both are; whether MLflow has all trials."""
    from harness.report.gather import write_report
    from harness.report.sources import Stored

    behind = _catch_up(trial_folders(sweep.folder), run)
    try:
        close_sweep(run, succeeded=succeeded and not behind)
        if not any(True for _ in trial_folders(sweep.folder)):  # ended before the first of them began
            return not behind
        out_dir = Path("reports") / sweep.name
        path = write_report(Stored(run.uri, sweep.name, sweep.tracking.experiment), out_dir).path
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
