"""From a store or a folder to a report on disk: reads what the report is made of, draws, writes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.base import formatting
from harness.base.errors import UserError
from harness.config import identity
from harness.report.figures import curves, scatter
from harness.report.findings import Findings, find
from harness.report.html import page
from harness.report.leaderboard import Price, finished, known
from harness.report.markdown import SHOWN, Material, compose
from harness.store import results
from harness.store.mlflow_store import Tracking
from harness.store.result import read_result

MOST_SERIES = 120
"""Trials whose series are read, the best first: more lines than that are a grey area."""
MOST_RELIABILITY, MOST_TIMELINES = 7, 6
"""Recipes that have a line of their own, and trials that have a plot of their own."""
DATA_CARD = "data_card.md"


class Written(NamedTuple):
    """The path of ``report.md``, and what it says."""

    path: Path
    findings: Findings


def write_report(
    uri: str,
    sweep: str | None = None,
    out_dir: str | Path | None = None,
    experiment: str = "harness",
    formats: Sequence[str] = ("md",),
    *,
    runs: Sequence[str] = (),
    whole: bool = False,
    price: Price | None = None,
    rank_by: str | None = None,
) -> Written:
    """Write ``report.md`` and its plots from MLflow alone.

    Args:
        uri: the store.
        sweep: its name; None is the latest.
        out_dir: folder to write to; None is ``reports/<sweep>``.
        experiment: MLflow experiment.
        formats: ``html`` adds ``report.html``; ``csv`` and ``parquet`` add ``results.csv`` and ``results.parquet``, a
            row per trial as ``harness.store.results`` gives them.
        runs: MLflow run ids of trials, in place of a sweep.
        whole: every trial of the experiment, in place of a sweep.
        price: of an hour of the device.
        rank_by: the metric that ranks; None is the usual one.

    Raises:
        UserError: as ``results.from_mlflow``, or the folder cannot be written.
    """
    if runs:
        frame, selected = results.from_runs(uri, runs), ["--runs", *runs]
    elif whole:
        frame, selected = results.from_experiment(uri, experiment), ["--experiment", experiment]
    else:
        frame = results.from_mlflow(uri, sweep, experiment)
        selected = ["--sweep", str(frame["sweep"].iloc[0])]
    findings = find(frame, lambda rows, name: results.examples(uri, rows, name), rank_by)
    name = _runs_named(frame) if runs else f"experiment {experiment}" if whole else f"sweep {frame['sweep'].iloc[0]}"
    best = findings.recipes[0].frame["run_id"].iloc[0] if findings.recipes else findings.frame["run_id"].iloc[0]
    document = results.result_document(uri, best)
    sweeps = sorted(set(map(str, frame["sweep"])))
    material = Material(
        name,
        findings,
        "MLflow",
        samples={row["label"]: results.tables(uri, row["run_id"]) for row in _best_and_last(findings.frame)},
        environment=document.get("environment", {}),
        command=results.sweep_command(uri, sweeps[0], experiment) if len(sweeps) == 1 else None,
        again=_again(uri, selected, experiment, price, rank_by),
        card=results.artifact_text(uri, best, DATA_CARD),
        price=price,
    )
    series = _series(uri, findings)
    bins = {
        r.label: pd.concat(found)
        for r in findings.recipes[:MOST_RELIABILITY]
        if "eval/preference_ece" in frame
        and (found := [t for i in r.frame["run_id"] if (t := results.table(uri, i, "eval_reliability")) is not None])
    }
    stretches = {run: t for run in _timed(findings) if (t := results.table(uri, run, "phases")) is not None}
    return _write(material, series, bins, stretches, Path(out_dir or Path("reports") / _folder(name)), formats)


def write_report_from_folder(
    folder: str | Path,
    out_dir: str | Path | None = None,
    formats: Sequence[str] = ("md",),
    *,
    price: Price | None = None,
    rank_by: str | None = None,
) -> Written:
    """Write a report from the ``result.json`` files below ``outputs/<sweep>``, without series and samples."""
    frame = results.from_folder(folder)
    findings = find(frame, lambda rows, name: results.examples_from_folder(folder, rows, name), rank_by)
    first = Path(folder) / str(findings.frame["trial_id"].iloc[0])
    found, card = read_result(first), first / "artifacts" / DATA_CARD
    environment = {} if found is None else found.environment
    material = Material(
        f"sweep {frame['sweep'].iloc[0]}",
        findings,
        "`result.json` files",
        environment=environment,
        command=environment.get("command"),
        card=card.read_text(encoding="utf-8") if card.is_file() else None,
        price=price,
    )
    series = pd.DataFrame(columns=list(results.SERIES_COLUMNS))
    return _write(material, series, {}, {}, Path(out_dir or Path("reports") / _folder(material.title)), formats)


def _write(
    material: Material,
    series: pd.DataFrame,
    bins: dict[str, pd.DataFrame],
    stretches: dict[str, pd.DataFrame],
    out_dir: Path,
    formats: Sequence[str],
) -> Written:
    found = material.findings
    drawn = {
        "quality_against_memory": lambda path: scatter.quality_against_memory(found, path),
        "quality_against_drift": lambda path: scatter.quality_against_drift(found, path),
        "responses": lambda path: scatter.responses(found, path),
        "learning_curves": lambda path: curves.learning_curves(series, found, path),
        "memory_by_phase": lambda path: scatter.memory_by_phase(found, path),
        "memory_over_time": lambda path: curves.memory_over_time(series, found, path),
        "memory_timelines": lambda path: curves.memory_timelines(series, stretches, found, path),
        "reliability": lambda path: scatter.reliability(bins, path),
    }
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        made = []
        for name, draw in drawn.items():
            path = out_dir / f"{name}.png"
            for old in (path, path.with_suffix(".svg")):
                old.unlink(missing_ok=True)  # of an earlier report
            made += [name] * draw(path)
        report, words = out_dir / "report.md", compose(replace(material, plots=made, rest="`results.csv`"))
        report.write_text(words, encoding="utf-8")
        if "html" in formats:
            report.with_suffix(".html").write_text(page(words, material.title), encoding="utf-8")
        if "csv" in formats or len(found.frame) > SHOWN:
            found.frame.to_csv(out_dir / "results.csv", index=False)
        if "parquet" in formats:
            found.frame.to_parquet(out_dir / "results.parquet", index=False)
        return Written(report, found)
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error.strerror or error})", key="--out", value=str(out_dir)
        ) from None


def _series(uri: str, findings: Findings) -> pd.DataFrame:
    """Points of the trials that the plots show; a training series is asked for only where a run has it."""
    best = [i for r in findings.recipes for i in r.frame["run_id"]]
    rest = [i for i in findings.frame["run_id"] if i not in set(best)]
    shown = [*best[:MOST_SERIES], *rest[: MOST_SERIES // 4]]
    frame = pd.DataFrame(findings.frame[findings.frame["run_id"].isin(shown)])
    names = [n for n in curves.CURVES if known(frame, n)]
    return results.series(uri, shown, [*names, *curves.MEMORY_SERIES])


def _timed(findings: Findings) -> list[str]:
    """Runs whose memory is shown phase by phase: what ran out of it, then one of each recipe, the best first."""
    frame = findings.frame
    died = list(frame.loc[frame["outcome"] == "oom", "run_id"])
    return [*died[: MOST_TIMELINES // 2], *(r.frame["run_id"].iloc[0] for r in findings.recipes)][:MOST_TIMELINES]


def _best_and_last(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    done = finished(frame)
    return done.iloc[sorted({0, len(done) - 1})].to_dict("records") if len(done) else []


def _runs_named(frame: pd.DataFrame) -> str:
    """What a report on chosen runs is called: never as the one on their sweep is."""
    sweeps = sorted(set(map(str, frame["sweep"])))
    return f"{formatting.count(len(frame), 'run')} of " + (
        f"sweep {sweeps[0]}" if len(sweeps) == 1 else f"{len(sweeps)} sweeps"
    )


def _folder(name: str) -> str:
    """A report's folder below ``reports``: the sweep's own name, else the title made fit for one."""
    return name.removeprefix("sweep ") if name.startswith("sweep ") else re.sub(r"[^\w.+=-]+", "_", name)


def _again(uri: str, selected: Sequence[str], experiment: str, price: Price | None, rank_by: str | None = None) -> str:
    """The command for this report; a store's password stays out of it."""
    default, words = Tracking(), ["python", "-m", "harness", "report", *selected]
    if uri not in (default.uri, default.resolved_uri):
        words += ["--tracking-uri", identity.without_password(uri)]
    if experiment != default.experiment and "--experiment" not in selected:
        words += ["--experiment", experiment]
    if price is not None:
        words += ["--price", str(price)]
    if rank_by is not None:
        words += ["--rank-by", rank_by]
    return shlex.join(words)
