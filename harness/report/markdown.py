"""A sweep as a markdown report with plots, from what was tracked alone.

``write_report`` gathers and writes; ``compose`` and the sections below it are pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from harness import results, stats, text
from harness.errors import UserError
from harness.outcome import read_result
from harness.records import PHASES
from harness.report import choice, effects, plots, recipes
from harness.report.comparability import differences
from harness.report.evaluation import evaluations
from harness.report.html import page
from harness.report.leaderboard import (
    BASE_LABEL,
    finished,
    known,
    quality_name,
    ranked,
    render_markdown,
    shared_value,
    succeeded,
    value_of,
)
from harness.tracking import Tracking

SAMPLE_ROWS = 8
SAMPLE_CHARACTERS = 160
QUALITY_WORDS = {"eval/true_reward": "mean true reward", "eval/preference_accuracy": "held-out preference accuracy"}
LENSES = {
    "private": "private resident memory of the trial's processes",
    "nvml_process": "GPU memory of the trial's processes, from the driver",
    "nvml_device_delta": "GPU memory in use on the device beyond what was in use at the start",
}
MEMORY_COLUMNS = {**{p: f"memory/{p}_peak_mb" for p in PHASES}, "peak": "memory/peak_mb"}
TIME_COLUMNS = {**{p: f"time/{p}_s" for p in PHASES}, "total": "time/total_s"}


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        frame: trials as ``results`` gives them, in the leaderboard's order.
        examples: trial id -> results per example of the metric that ranks (``recipes.UNITS``).
        samples: label -> the tables ``baseline_samples`` and ``eval_samples`` of the trials shown.
        environment: of one trial, as in ``result.json``.
        command: that started the sweep.
        again: the command that writes this report.
        source: of the numbers, in words.
        plots: file name -> whether the plot could be drawn.
    """

    sweep: str
    frame: pd.DataFrame
    source: str
    samples: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    examples: recipes.Examples = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    again: str | None = None
    plots: Mapping[str, bool] = field(default_factory=dict)


def write_report(
    uri: str,
    sweep: str | None = None,
    out_dir: str | Path | None = None,
    experiment: str = "harness",
    formats: Sequence[str] = ("md",),
) -> Path:
    """Write ``report.md`` and its plots from MLflow alone.

    Args:
        uri: the store.
        sweep: its name; None is the latest.
        out_dir: folder to write to; None is ``reports/<sweep>``.
        experiment: MLflow experiment.
        formats: ``html`` adds ``report.html``; ``csv`` and ``parquet`` add ``results.csv`` and ``results.parquet``, a
            row per trial as ``harness.results`` gives them.

    Returns:
        the path of ``report.md``.

    Raises:
        UserError: as ``results.from_mlflow``, or the folder cannot be written.
    """
    frame = ranked(results.from_mlflow(uri, sweep, experiment))
    name = str(frame["sweep"].iloc[0])
    series = results.series(uri, list(frame["run_id"]), [*plots.CURVES, *plots.MEMORY_SERIES])
    done = finished(frame)
    samples = {}
    for row in [r for i, r in enumerate(done.to_dict("records")) if i in (0, len(done) - 1)]:  # the best and the last
        samples[row["label"]] = results.tables(uri, row["run_id"])
    examples = results.examples(uri, done, recipes.UNITS.get(quality_name(frame) or ""))
    first = [*done["run_id"], *frame["run_id"]][0]
    environment = results.result_document(uri, first).get("environment", {})
    command = results.sweep_command(uri, name, experiment) or environment.get("command")
    again = _again(uri, name, experiment)
    material = Material(name, frame, "MLflow", samples, examples, environment, command, again)
    return _write(material, series, Path(out_dir or Path("reports") / name), formats)


def write_report_from_folder(
    folder: str | Path, out_dir: str | Path | None = None, formats: Sequence[str] = ("md",)
) -> Path:
    """Write a report from the ``result.json`` files below ``outputs/<sweep>``, without series and samples."""
    frame = ranked(results.from_folder(folder))
    name = str(frame["sweep"].iloc[0])
    found = read_result(Path(folder) / str(frame["trial_id"].iloc[0]))
    environment = {} if found is None else found.environment
    examples = results.examples_from_folder(folder, frame, recipes.UNITS.get(quality_name(frame) or ""))
    material = Material(
        name, frame, "`result.json` files", {}, examples, environment, command=environment.get("command")
    )
    series = pd.DataFrame(columns=list(results.SERIES_COLUMNS))
    return _write(material, series, Path(out_dir or Path("reports") / name), formats)


def _write(material: Material, series: pd.DataFrame, out_dir: Path, formats: Sequence[str]) -> Path:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        drawn = {
            "quality_against_memory.png": lambda path: plots.quality_against_memory(material.frame, path),
            "quality_against_drift.png": lambda path: plots.quality_against_drift(material.frame, path),
            "learning_curves.png": lambda path: plots.learning_curves(series, material.frame, path),
            "memory_over_time.png": lambda path: plots.memory_over_time(series, material.frame, path),
        }
        found = {}
        for name, draw in drawn.items():
            for suffix in (".png", ".svg"):
                (out_dir / name).with_suffix(suffix).unlink(missing_ok=True)  # of an earlier report
            found[name] = draw(out_dir / name)
        report, words = out_dir / "report.md", compose(replace(material, plots=found))
        report.write_text(words, encoding="utf-8")
        if "html" in formats:
            report.with_suffix(".html").write_text(page(words, f"Sweep {material.sweep}"), encoding="utf-8")
        if "csv" in formats:
            material.frame.to_csv(out_dir / "results.csv", index=False)
        if "parquet" in formats:
            material.frame.to_parquet(out_dir / "results.parquet", index=False)
        return report
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error.strerror or error})", key="--out", value=str(out_dir)
        ) from None


# -- pure ----------------------------------------------------------------------------------------------


def compose(material: Material) -> str:
    """The report's text."""
    frame, metric = material.frame, quality_name(material.frame)
    found = recipes.recipes(frame, metric)
    verdicts = recipes.compared(found, metric, material.examples)
    sections = [
        f"# Sweep {text.escape(material.sweep)}",
        summary(frame, found, verdicts),
        *[f"> **Not alike** – {line}" for line in differences(frame)],
        "## Leaderboard",
        render_markdown(frame),
        "± is one standard error over held-out pairs or prompts. Δ is the difference to the base before training. "
        "MB are 10⁶ bytes; train s includes rollouts.",
        *recipes.section(found, metric, verdicts, choice.front(found, metric, verdicts) if metric else ()),
        *effects.section(effects.effects(frame, metric), metric),
        _plot(material, "quality_against_memory.png", "Quality against peak memory", "no finished trial has both"),
        _plot(
            material,
            "quality_against_drift.png",
            "Quality against drift from the reference",
            "fewer than two recipes have a measured KL",
        ),
        "## Training",
        _plot(material, "learning_curves.png", "Training series by step", "no training series in this source"),
        "## Memory and time",
        _plot(material, "memory_over_time.png", "Memory over time", "no memory series in this source"),
        _phases(frame, "Peak memory by phase (MB)", text.whole, MEMORY_COLUMNS),
        _phases(frame, "Time by phase (s)", text.seconds, TIME_COLUMNS),
        *evaluations(frame),
        *_samples(material),
        *_unfinished(frame),
        "## Environment",
        _environment(material),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary(
    frame: pd.DataFrame,
    found: Sequence[recipes.Recipe],
    verdicts: Mapping[tuple[str, str], stats.Comparison],
) -> str:
    """What was found in a few sentences, and what was not."""
    done = finished(frame)
    name = quality_name(frame)
    counted = f"{len(done)} of {len(frame)} trials finished." if len(frame) > 1 else "One trial, which finished."
    if name is None:
        return counted if len(done) else f"No trial finished (of {len(frame)})."
    base = shared_value(frame, name.replace("eval/", "baseline/", 1))
    first, *others = choice.sentences(found, name, verdicts, QUALITY_WORDS[name], base)
    said = [counted, first, recipes.runner_up(found, name, verdicts) or "", *others]
    weights = [(mb, r) for r in found if (mb := r.mean("memory/peak_mb")) is not None]
    if weights:
        least, cheap = min(weights, key=lambda pair: pair[0])
        said.append(f"Lowest peak memory: **{text.escape(cheap.label)}** with {text.whole(least)} MB.")
    seeds = [len(r.frame) for r in found]
    if min(seeds) == 1:
        said.append(
            ("Each recipe was trained with one seed" if max(seeds) == 1 else "Some recipes were trained with one seed")
            + ": no proof of a difference, since held-out rows say nothing of the luck of a seed."
        )
    return " ".join(s for s in said if s)


def _plot(material: Material, name: str, words: str, why_not: str) -> str:
    return f"![{words}]({name})" if material.plots.get(name) else f"_{words}: left out, {why_not}._"


def _phases(frame: pd.DataFrame, title: str, form: Callable[[float | None], str], names: Mapping[str, str]) -> str:
    """Trials by phases; ``names`` are the columns (heading -> metric), of which those that nobody has are left out."""
    names = {heading: n for heading, n in names.items() if known(frame, n)}
    rows = [r for r in frame.to_dict("records") if any(value_of(r, n) is not None for n in names.values())]
    if not rows:
        return ""
    body = [[text.escape(r["label"]), *(form(value_of(r, n)) for n in names.values())] for r in rows]
    return f"**{title}**\n\n{text.table(['trial', *names], body)}"


def _samples(material: Material) -> list[str]:
    """The same prompts before and after, side by side; model text is data."""
    shown = {label: t for label, t in material.samples.items() if "eval_samples" in t}
    if not shown:
        return []
    columns: dict[str, pd.DataFrame] = {}
    before = next((t["baseline_samples"] for t in shown.values() if "baseline_samples" in t), None)
    if before is not None:
        columns[BASE_LABEL] = before
    columns.update({text.escape(label): tables["eval_samples"] for label, tables in shown.items()})
    first = next(iter(columns.values()))
    keyed = {label: _by_prompt(table) for label, table in columns.items()}
    rows = [
        [text.escape(prompt, SAMPLE_CHARACTERS), *(found.get((prompt, n), text.MISSING) for found in keyed.values())]
        for prompt, n in list(_by_prompt(first))[:SAMPLE_ROWS]
    ]
    head = "Sampled completions of the same prompts, with their reward; ↵ is a line break, … where text was cut."
    return ["## Samples", head, text.table(["prompt", *columns], rows, left=1 + len(columns))]


def _by_prompt(table: pd.DataFrame) -> dict[tuple[str, int], str]:
    """(prompt, how often it came before) -> completion and reward, as a finished cell."""
    found: dict[tuple[str, int], str] = {}
    counts: dict[str, int] = {}
    for row in table.to_dict("records"):
        prompt = str(row["prompt"])
        counts[prompt] = counts.get(prompt, -1) + 1
        reward = value_of(row, "reward")
        said = text.escape(row["completion"], SAMPLE_CHARACTERS) or "_empty_"
        found[prompt, counts[prompt]] = said if reward is None else f"{said} ({text.number(reward)})"
    return found


def _unfinished(frame: pd.DataFrame) -> list[str]:
    rows = [r for r in frame.to_dict("records") if not succeeded(r["outcome"])]
    if not rows:
        return []
    body = [
        [text.escape(r["label"]), text.escape(r["outcome"]), text.escape(_known(r["reason"]) or "not recorded", 300)]
        for r in rows
    ]
    return ["## Trials that did not finish", text.table(["trial", "outcome", "reason"], body, left=3)]


def _environment(material: Material) -> str:
    frame, environment = material.frame, material.environment
    facts: dict[str, str] = {
        "source": material.source,
        "device": _values(frame, "device_name") or str(environment.get("processor") or ""),
        "precision": _values(frame, "precision"),
        "memory is": ", ".join(LENSES.get(v, v) for v in _values(frame, "memory_lens").split(", ") if v),
        "commit": _values(frame, "git_sha"),
        "data digest": _values(frame, "dataset_digest"),
        "base digest": _values(frame, "base_digest"),
        "platform": str(environment.get("platform") or ""),
        "python": str(environment.get("python") or ""),
        **{str(k): str(v) for k, v in dict(environment.get("versions") or {}).items()},
    }
    if started := known(frame, "started"):
        facts["trials started"] = f"{_stamp(min(started))} to {_stamp(max(started))} UTC"
    rows = [[text.escape(k), v if k == "source" else text.escape(v, 300)] for k, v in facts.items() if v]
    parts = [text.table(["what", "value"], rows, left=2)]
    if material.command:
        parts += ["To run the sweep again:", _code(shown_command(material.command))]
    if material.again:
        parts += ["To write this report again:", _code(material.again)]
    return "\n\n".join(parts)


def shown_command(command: str) -> str:
    """A recorded ``sys.argv`` as one would type it: ``python -m harness ...``."""
    typed = re.sub(r"^\S*harness/__main__\.py(?=\s|$)", "python -m harness", command)
    return re.sub(r"^\S*/bin/harness(?=\s|$)", "harness", typed)


def _again(uri: str, sweep: str, experiment: str) -> str:
    """The command for this report; a store's password stays out of it."""
    default, words = Tracking(), ["python", "-m", "harness", "report", "--sweep", sweep]
    if uri not in (default.uri, default.resolved_uri):
        words += ["--tracking-uri", re.sub(r"//[^/@]*@", "//…@", uri)]
    if experiment != default.experiment:
        words += ["--experiment", experiment]
    return shlex.join(words)


def _code(line: str) -> str:
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text.printable(line)}\n{fence}"


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


def _values(frame: pd.DataFrame, column: str) -> str:
    return ", ".join(sorted(set(map(str, known(frame, column)))))


def _known(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(value)
