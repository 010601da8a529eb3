"""From a store or a folder to a report on disk: reads what the report is made of, draws, writes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.base.errors import UserError
from harness.config import identity
from harness.report import peaks
from harness.report.figures import curves, overoptimization, scatter
from harness.report.html import page
from harness.report.leaderboard import Price, finished, known
from harness.report.markdown import SHOWN, Material, compose
from harness.report.sources import DATA_CARD, Source, Stored
from harness.report.standings import Standings, find
from harness.store.mlflow_store import Tracking

MOST_SERIES = 120
"""Trials whose series are read, the best first: more lines than that are a grey area."""
MOST_RELIABILITY, MOST_TIMELINES = 7, 6
"""Recipes that have a line of their own, and trials that have a plot of their own."""


class Written(NamedTuple):
    """The path of ``report.md``, and what it says."""

    path: Path
    standings: Standings


def write_report(
    source: Source,
    out_dir: str | Path | None = None,
    formats: Sequence[str] = ("md",),
    *,
    price: Price | None = None,
    rank_by: str | None = None,
) -> Written:
    """Write ``report.md`` and its plots.

    Args:
        source: of the trials.
        out_dir: folder to write to; None is ``reports/<sweep>``.
        formats: ``html`` adds ``report.html``; ``csv`` and ``parquet`` add ``results.csv`` and ``results.parquet``, a
            row per trial as ``harness.store.results`` gives them.
        price: of an hour of the device.
        rank_by: the metric that ranks; None is the usual one.

    Raises:
        UserError: the folder cannot be written.
    """
    standings = find(source.frame, source.examples, rank_by)
    best = str((standings.recipes[0].frame if standings.recipes else standings.frame)["run_id"].iloc[0])
    material = Material(
        source.title,
        standings,
        source.words,
        samples={row["label"]: source.tables(row["run_id"]) for row in _best_and_last(standings.frame)},
        environment=source.environment(best),
        command=source.command(),
        again=_again(source, price, rank_by),
        card=source.text(best, DATA_CARD),
        price=price,
    )
    bins = {
        r.label: pd.concat(found)
        for r in standings.recipes[:MOST_RELIABILITY]
        if "eval/preference_ece" in source.frame
        and (found := [t for i in r.frame["run_id"] if (t := source.table(i, "eval_reliability")) is not None])
    }
    stretches = {run: t for run in _timed(standings) if (t := source.table(run, "phases")) is not None}
    out = Path(out_dir or Path("reports") / _folder(source.title))
    return _write(material, source, _series(source, standings), bins, stretches, out, formats)


def _write(
    material: Material,
    source: Source,
    series: pd.DataFrame,
    bins: dict[str, pd.DataFrame],
    stretches: dict[str, pd.DataFrame],
    out_dir: Path,
    formats: Sequence[str],
) -> Written:
    found = material.standings
    points, chosen = peaks.points(series), peaks.chosen(series)
    drawn = {
        "quality_against_memory": lambda path: scatter.quality_against_memory(found, path),
        "quality_against_drift": lambda path: scatter.quality_against_drift(found, path),
        "responses": lambda path: scatter.responses(found, path),
        "learning_curves": lambda path: curves.learning_curves(series, found, path),
        "quality_over_budget": lambda path: curves.quality_over_budget(points, found, path),
        "quality_over_drift": lambda path: curves.quality_over_drift(points, found, path),
        "overoptimization": lambda path: overoptimization.rewards_over_distance(points, chosen, found, path),
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
        report, words = (
            out_dir / "report.md",
            compose(replace(material, plots=made, points=points, chosen=chosen, rest="`results.csv`")),
        )
        report.write_text(words, encoding="utf-8")
        if "html" in formats:
            report.with_suffix(".html").write_text(page(words, material.title, out_dir), encoding="utf-8")
        if "csv" in formats or len(found.frame) > SHOWN:
            source.as_results(found.frame).to_csv(out_dir / "results.csv", index=False)
        if "parquet" in formats:
            source.as_results(found.frame).to_parquet(out_dir / "results.parquet", index=False)
        return Written(report, found)
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error.strerror or error})", key="--out", value=str(out_dir)
        ) from None


def _series(source: Source, standings: Standings) -> pd.DataFrame:
    """Points of the trials that the plots show; a training series is asked for only where a run has it."""
    best = [i for r in standings.recipes for i in r.frame["run_id"]]
    rest = [i for i in standings.frame["run_id"] if i not in set(best)]
    shown = [*best[:MOST_SERIES], *rest[: MOST_SERIES // 4]]
    frame = pd.DataFrame(standings.frame[standings.frame["run_id"].isin(shown)])
    names = [n for n in curves.CURVES if known(frame, n)]
    points = [n for n in (*peaks.SERIES, *peaks.CHOSEN) if known(frame, n)]
    return source.series(shown, [*names, *points, *curves.MEMORY_SERIES])


def _timed(standings: Standings) -> list[str]:
    """Runs whose memory is shown phase by phase: what ran out of it, then one of each recipe, the best first."""
    frame = standings.frame
    died = list(frame.loc[frame["outcome"] == "oom", "run_id"])
    return [*died[: MOST_TIMELINES // 2], *(r.frame["run_id"].iloc[0] for r in standings.recipes)][:MOST_TIMELINES]


def _best_and_last(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    done = finished(frame)
    return done.iloc[sorted({0, len(done) - 1})].to_dict("records") if len(done) else []


def _folder(name: str) -> str:
    """A report's folder below ``reports``: the sweep's own name, else the title made fit for one."""
    return name.removeprefix("sweep ") if name.startswith("sweep ") else re.sub(r"[^\w.+=-]+", "_", name)


def _again(source: Source, price: Price | None, rank_by: str | None) -> str:
    """The command for this report; a store's password stays out of it."""
    default, words = Tracking(), ["python", "-m", "harness", "report", *source.selected]
    if isinstance(source, Stored):
        if source.uri not in (default.uri, default.resolved_uri):
            words += ["--tracking-uri", identity.without_password(source.uri)]
        if source.experiment != default.experiment and "--experiment" not in source.selected:
            words += ["--experiment", source.experiment]
    if price is not None:
        words += ["--price", str(price)]
    if rank_by is not None:
        words += ["--rank-by", rank_by]
    return shlex.join(words)
