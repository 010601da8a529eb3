"""Small sub-commands: ui, sync, cache."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.base.errors import UserError
from harness.config.building import build
from harness.config.compose import compose, hydra_config
from harness.store.cache import Cache, default_dir
from harness.store.mlflow_store import SweepRun, Tracking, in_one_line, whole_uri
from harness.store.past import trial_folders

MB = 10**6
SMALL = MB // 10
SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": MB, "GB": 10**9, "TB": 10**12}


def tracking_from(overrides: Sequence[str]) -> Tracking:
    """The tracking group under ``overrides`` (``tracking.uri=...``)."""
    with hydra_config():
        return build(compose(list(overrides))["tracking"], path="tracking", base=Tracking)


def ui(argv: list[str]) -> int:
    """``harness ui``: the MLflow UI on the store in use, on localhost alone."""
    parser = argparse.ArgumentParser(prog="harness ui", description=ui.__doc__)
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--sweep", help="print a link to its trials; default: the latest")
    parser.add_argument("overrides", nargs="*", help="for example tracking.uri=sqlite:///elsewhere.db")
    options = parser.parse_args(argv)
    uri = tracking_from(options.overrides).resolved_uri
    if uri.startswith(("http://", "https://")):
        print(f"the store is a server with a UI of its own: {uri}")
        return 0
    address = f"http://127.0.0.1:{options.port}"
    print(f"MLflow UI on {address} (store {uri}); Ctrl-C ends it", flush=True)
    if (run := _sweep_run(uri, options.sweep)) is not None:
        from harness.store.views import link_to

        print(f"trials:  {link_to(*run, address)}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(options.port)]
    # By the environment: a command line with a password in it is every user's to read.
    return subprocess.call(command, env={**os.environ, "MLFLOW_BACKEND_STORE_URI": whole_uri(uri)})


def _sweep_run(uri: str, name: str | None) -> tuple[SweepRun, str] | None:
    """A sweep's run in the store, and its name; of all sweeps the latest. None where there is none yet."""
    from harness.store.mlflow_store import client, quoted

    api = client(uri)
    where = "tags.kind = 'sweep'" + (f" and tags.sweep = {quoted(name)}" if name else "")
    experiments = [e.experiment_id for e in api.search_experiments()]
    found = api.search_runs(experiments, where, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        if name:
            raise UserError("no such sweep in the store", key="--sweep", value=name, fix="leave it out for the latest")
        return None
    info = found[0].info
    return SweepRun(uri, info.experiment_id, info.run_id), str(found[0].data.tags["sweep"])


def sync(argv: list[str]) -> int:
    """``harness sync``: close what a killed runner left open, and project the trial folders into MLflow."""
    parser = argparse.ArgumentParser(prog="harness sync", description=sync.__doc__)
    parser.add_argument("--outputs", default="outputs", help="the folder that holds the sweeps")
    parser.add_argument("--sweep", help="one sweep; all without it")
    parser.add_argument("overrides", nargs="*", help="for example tracking.uri=sqlite:///elsewhere.db")
    options = parser.parse_args(argv)
    root = Path(options.outputs)
    sweeps = [root / options.sweep] if options.sweep else _sweeps_below(root)
    if not sweeps or not all(s.is_dir() for s in sweeps):
        known = ", ".join(s.name for s in _sweeps_below(root)) or "none"
        raise UserError(f"no such sweep below {root}", key="--sweep", value=options.sweep, fix=f"known sweeps: {known}")
    tracking = tracking_from(options.overrides)
    failed = sum(_sync_sweep(folder, tracking) for folder in sweeps)
    return 1 if failed else 0


def _sweeps_below(root: Path) -> list[Path]:
    """Folders that hold a manifest or trials: a manifest may be lost."""
    return sorted(p for p in root.glob("*") if (p / "sweep.json").is_file() or trial_folders(p))


def _sync_sweep(folder: Path, tracking: Tracking) -> int:
    """Bring one sweep into MLflow, each trial by itself; returns how many could not be."""
    from filelock import FileLock, Timeout

    from harness.runner.books import close_open_attempt
    from harness.store.mlflow_store import close_sweep, open_sweep
    from harness.store.mlflow_sync import project
    from harness.store.past import result_of

    run = open_sweep(tracking, folder.name)
    trials = trial_folders(folder)
    done, all_well, failed, busy = 0, 0, 0, False
    for trial in trials:
        try:
            with FileLock(trial / ".lock", timeout=0):
                if close_open_attempt(trial):
                    print(f"{trial.name}: its runner was killed; closed")
                if project(trial, run) is not None:
                    done += 1
                else:
                    print(f"{trial.name}: no attempt that can be read, left out")
                result = result_of(trial)
                all_well += bool(result and result.outcome.succeeded)
        except Timeout:
            busy = True
            print(f"{trial.name}: in use by a runner, left alone")
        except Exception as error:  # of the disk, the store, or what a file holds: the other trials have theirs
            failed += 1
            print(f"{trial.name}: not synced: {in_one_line(error)}", file=sys.stderr)
    if not busy and not failed:
        close_sweep(run, succeeded=all_well == len(trials))
    print(f"{folder.name}: {done} of {len(trials)} trials in {tracking.resolved_uri}")
    return failed


def cache(argv: list[str]) -> int:
    """``harness cache``: list the stages that are kept, or delete the least recently used."""
    parser = argparse.ArgumentParser(prog="harness cache", description=cache.__doc__)
    parser.add_argument("--dir", help="default: $HARNESS_CACHE, else the user's cache folder")
    parser.add_argument("--all", action="store_true", help=f"list entries below {SMALL / MB:g} MB one by one as well")
    parser.add_argument("--prune-to", metavar="SIZE", help="keep at most this much, for example 5GB or 0")
    options = parser.parse_args(argv)
    store = Cache(Path(options.dir) if options.dir else default_dir())
    if options.prune_to is not None:
        gone = store.prune(parse_size(options.prune_to))
        print(f"deleted {len(gone)} entries, {sum(e['bytes'] for e in gone) / MB:,.1f} MB")
    entries = store.entries()
    shown = [e for e in entries if options.all or e["bytes"] >= SMALL or e["state"] != "whole"]
    for entry in shown:
        state = "" if entry["state"] == "whole" else f"  ({entry['state']})"
        print(f"{entry['bytes'] / MB:10,.1f} MB  {entry['stage']:<22} {entry['key']}{state}")
    if small := len(entries) - len(shown):
        rest = sum(e["bytes"] for e in entries) - sum(e["bytes"] for e in shown)
        print(f"{rest / MB:10,.1f} MB  in {small} small ones (--all lists them)")
    print(f"{sum(e['bytes'] for e in entries) / MB:10,.1f} MB  in {len(entries)} entries, {store.root}")
    return 0


def parse_size(text: str) -> int:
    """``5GB`` -> 5,000,000,000 bytes."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([kKmMgGtT]?[bB]?)\s*", text)
    unit = match.group(2).upper() if match else ""
    if match is None or (unit and unit not in SIZES and unit + "B" not in SIZES):
        raise UserError("is no size", key="--prune-to", value=text, fix="for example --prune-to 5GB")
    return int(float(match.group(1)) * SIZES.get(unit, SIZES.get(unit + "B", 1)))
