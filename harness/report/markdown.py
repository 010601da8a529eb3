"""A report's text. Pure: what it is made of comes from ``gather``, or from a DataFrame of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.base.records import PHASES
from harness.report import choice, effects, recipes
from harness.report.comparability import differences
from harness.report.intervals import LEGEND, known, measured, value_of
from harness.report.leaderboard import (
    BASE_LABEL,
    QUALITY,
    SHARED,
    Price,
    finished,
    hours_heading,
    hours_of,
    predicted,
    succeeded,
)
from harness.report.sections import forgetting, lenses, merging, peaks, provenance, uses
from harness.report.sections.evaluation import evaluations
from harness.report.standings import Standings, find
from harness.report.table import render_markdown

SHOWN = 100
"""Trials that the tables show, the best first."""
SAMPLE_ROWS = 8
SAMPLE_CHARACTERS = 160
QUALITY_WORDS = {
    "eval/true_reward": "mean true reward",
    "eval/preference_accuracy": "held-out preference accuracy",
    "eval/correct": "share of correct completions",
}
MEMORY_COLUMNS = {**{p: f"memory/{p}_peak_mb" for p in PHASES}, "peak": "memory/peak_mb"}
TIME_COLUMNS = {**{p: f"time/{p}_s" for p in PHASES}, "total": "time/total_s"}


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        title: without its capital: ``sweep study``.
        standings: trials, recipes, verdicts.
        source: of the numbers, in words.
        samples: label -> the tables ``baseline_samples`` and ``eval_samples`` of the trials shown.
        environment: of one trial, as in ``result.json``.
        command: that started the sweep.
        again: the command that writes this report.
        card: the data card of one trial, markdown.
        price: of an hour of the device.
        plots: names of the plots that could be drawn.
        points: of the trials' curves (``peaks.points``); None without any.
        chosen: of best-of-n (``peaks.chosen``).
        rest: what has the trials that are too many to be shown, in words.
    """

    title: str
    standings: Standings
    source: str
    samples: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    again: str | None = None
    card: str | None = None
    price: Price | None = None
    plots: Collection[str] = ()
    points: pd.DataFrame | None = None
    chosen: pd.DataFrame = field(default_factory=pd.DataFrame)
    rest: str = "the table"


def compose(material: Material) -> str:
    """The report's text."""
    found, plot = material.standings, _Plots(material.plots)
    frame, shown = found.frame, found.frame.head(SHOWN)
    several = recipes.several_seeds(found.recipes)
    rows, kind = (recipes.averages(found.recipes[:SHOWN]), "recipe") if several else (shown, "trial")
    marked = {str(r.frame["trial_id"].iloc[0]) for r in found.recipes if r.label in found.front}
    if several or len(found.recipes) == 1:
        marked = set()
    foreseen = {"predicted": predicted} if known(rows, "memory/predicted_peak_mb") else {}
    sections = [
        f"# {formatting.escape(material.title[:1].upper() + material.title[1:])}",
        summary(found),
        uses.policy(found.recipes, found.metric),
        *_warnings(differences(frame)),
        *recipes.section(
            found.recipes,
            found.metric,
            found.verdicts,
            found.front,
            most=SHOWN,
            price=material.price,
            hours=hours_heading(frame),
        ),
        "## Trials" if several else "## Leaderboard",
        render_markdown(frame, material.price, SHOWN, marked, found.metric if found.ranked_by else None),
        _legend(frame, bool(marked), bool(found.verdicts), material.rest),
        *effects.section(effects.effects(frame, found.metric), found.metric),
        plot("quality_against_memory", "Quality against peak memory", "no finished trial has both"),
        plot(
            "quality_against_drift",
            "Quality against drift from the reference",
            "fewer than two recipes have a measured KL",
        ),
        plot("responses", "Quality over each knob that was swept", "no knob has three values"),
        "## Training",
        plot("learning_curves", "Training series by step", "no training series in this source"),
        *_over_training(material),
        "## Memory and time",
        _spent(frame, material.price),
        plot("memory_by_phase", "What each phase added to the peak memory", "no finished trial has it"),
        plot("memory_over_time", "Memory over time", "no memory series in this source"),
        plot("memory_timelines", "Memory of single trials, phase by phase", "no table of phases in this source"),
        _phases(rows, kind, "Peak memory by phase (MB)", formatting.whole, MEMORY_COLUMNS, foreseen),
        *lenses.section(rows, kind),
        _phases(rows, kind, "Time by phase (s)", formatting.seconds, TIME_COLUMNS),
        *forgetting.section(frame, found.recipes, SHOWN),
        *evaluations(rows, several),
        *merging.section(rows, kind),
        plot("reliability", "Confidence against how often it was right", "no reliability in this source"),
        *_samples(material),
        *uses.absent(frame),
        *_unfinished(frame, material.rest),
        *provenance.data_card(material.card),
        *provenance.environment(frame, material.environment, material.source, material.command, material.again),
        *provenance.commands(shown),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def report_on(frame: pd.DataFrame, title: str = "trials", price: Price | None = None) -> str:
    """The report's text for a table of trials (as ``results`` gives it), without plots."""
    return compose(Material(title, find(frame), "a DataFrame", price=price))


@dataclass(frozen=True)
class _Plots:
    """Links to plots; a line that says why where one could not be drawn."""

    made: Collection[str]

    def __call__(self, name: str, words: str, why_not: str) -> str:
        return f"![{words}]({name}.png)" if name in self.made else f"*{words}: left out, {why_not}.*"


def _over_training(material: Material) -> list[str]:
    """Curves, with the plots that could be drawn of them."""
    if material.points is None:
        return []
    words = {
        "quality_over_budget": "Quality over the share of the training budget",
        "quality_over_drift": "Quality over the distance from the base",
        "overoptimization": "Proxy and true reward over the distance from the base, with the law",
    }
    figures = [f"![{said}]({name}.png)" for name, said in words.items() if name in material.plots]
    return peaks.section(material.standings.recipes, material.points, material.chosen, figures, SHOWN)


def _warnings(lines: list[str]) -> list[str]:
    """One block of quotation, a paragraph each."""
    return ["\n>\n".join(f"> **Not alike** – {line}" for line in lines)] if lines else []


def _legend(frame: pd.DataFrame, marked: bool, compared: bool, rest: str) -> str:
    said = (
        f"{LEGEND}, over held-out pairs or prompts. Δ is the difference to the base before training. MB are 10⁶ bytes; "
        f"train s includes rollouts; {hours_heading(frame)} are those of the device, start to end, less what was built "
        "for all trials (below)."
    )
    if _without_interval(frame):
        said += " A figure without brackets comes from held-out rows of one prompt: nothing says how far luck reaches."
    if known(frame, "eval/true_reward"):
        said += (
            " True reward is what the task's own rule gives to completions that the model samples; a task of your own "
            "has one where it scores completions (docs/metrics.md)."
        )
    if marked:
        by = "the 95 % interval of each pair" if compared else "the means"
        said += f" {recipes.FRONT}: no other beats it on quality, memory and time together, by {by}."
    if len(frame) > SHOWN:
        said += f" The best {SHOWN} of {len(frame):,} trials are shown, here and below; {rest} has all of them."
    return said


def _without_interval(frame: pd.DataFrame) -> bool:
    """Whether a trial has a figure that ranks and no interval of it."""
    return any(
        (found := measured(row, name)) is not None and found.low is None and value_of(row, f"{name}_stderr") is None
        for row in finished(frame).to_dict("records")
        for name in QUALITY
    )


def _spent(frame: pd.DataFrame, price: Price | None) -> str:
    """Device hours of all trials together, and of what they built for one another."""
    built = math.fsum(known(frame, SHARED)) / 3600
    hours = math.fsum(h for row in frame.to_dict("records") if (h := hours_of(row)) is not None)
    if not hours:
        return ""

    def with_cost(amount: float) -> str:
        cost = f", {price.of(amount)} {formatting.escape(price.currency)}".rstrip() if price else ""
        return f"{formatting.number(amount)} hours{cost}"

    said = f"All trials together had the device for {with_cost(hours)}."
    if built:
        said += (
            " Shared stages (embedded base, baselines, reward models, reference log-probabilities), built once and "
            f"charged to no recipe: {with_cost(built)}. The phases below hold them, in the trial that came first."
        )
    return said


def summary(standings: Standings) -> str:
    """What was found in a few sentences, and what was not."""
    frame, found, verdicts, name = standings.frame, standings.recipes, standings.verdicts, standings.metric
    done = finished(frame)
    counted = f"{len(done)} of {len(frame)} trials finished." if len(frame) > 1 else "One trial, which finished."
    if name is None:
        return counted if len(done) else f"No trial finished (of {len(frame)})."
    told = choice.sentences(found, name, verdicts, quality_words(name), standings.base, standings.length)
    said = [counted, *told, recipes.runner_up(found, name, verdicts) or ""]
    weights = [(mb, r) for r in found if (mb := r.mean("memory/peak_mb")) is not None]
    if weights:
        least, cheap = min(weights, key=lambda pair: pair[0])
        said.append(f"Lowest peak memory: **{formatting.escape(cheap.label)}** with {formatting.whole(least)} MB.")
    seeds = [len(r.frame) for r in found]
    if min(seeds) == 1:
        said.append(
            ("Each recipe was trained with one seed" if max(seeds) == 1 else "Some recipes were trained with one seed")
            + ": no proof of a difference, since held-out rows say nothing of the luck of a seed. A second is missing."
        )
    return " ".join(s for s in said if s)


def quality_words(metric: str) -> str:
    """What a metric that ranks is called in a sentence."""
    return QUALITY_WORDS.get(metric, metric.partition("/")[2].replace("_", " "))


def advice(standings: Standings) -> list[str]:
    """What a terminal says below its table: the base and length alone first, then the choice; plain text."""
    name = standings.metric
    if name is None or not standings.recipes:
        return []
    words = quality_words(name)
    said = choice.sentences(
        standings.recipes, name, standings.verdicts, words, standings.base, standings.length, formatting.printable
    )
    if len(standings.recipes[0].frame) == 1:
        said.append("One seed proves nothing: train at least two more (seed=0,1,2).")
    return said


def _phases(
    frame: pd.DataFrame,
    kind: str,
    title: str,
    form: Callable[[float | None], str],
    names: Mapping[str, str],
    more: Mapping[str, Callable[[dict[Any, Any]], str]] = MappingProxyType({}),
) -> str:
    """Rows of a kind by phases; ``names`` are the columns (heading -> metric), those that nobody has left out.

    ``more`` are columns after them: heading -> cell of a row.
    """
    names = {heading: n for heading, n in names.items() if known(frame, n)}
    rows = [r for r in frame.to_dict("records") if any(value_of(r, n) is not None for n in names.values())]
    if not rows:
        return ""
    body = [[formatting.escape(r["label"]), *(form(value_of(r, n)) for n in names.values())] for r in rows]
    body = [[*line, *(form_row(r) for form_row in more.values())] for line, r in zip(body, rows, strict=True)]
    return f"### {title}\n\n{formatting.table([kind, *names, *more], body)}"


def _samples(material: Material) -> list[str]:
    """The same prompts before and after, side by side; model text is data."""
    shown = {label: t for label, t in material.samples.items() if "eval_samples" in t}
    if not shown:
        return []
    columns: dict[str, pd.DataFrame] = {}
    before = next((t["baseline_samples"] for t in shown.values() if "baseline_samples" in t), None)
    if before is not None:
        columns[BASE_LABEL] = before
    columns.update({formatting.escape(label): tables["eval_samples"] for label, tables in shown.items()})
    first = next(iter(columns.values()))
    keyed = {label: _by_prompt(table) for label, table in columns.items()}
    rows = [
        [
            formatting.escape(prompt, SAMPLE_CHARACTERS),
            *(found.get((prompt, n), formatting.MISSING) for found in keyed.values()),
        ]
        for prompt, n in list(_by_prompt(first))[:SAMPLE_ROWS]
    ]
    paid = any("reward" in table and table["reward"].notna().any() for table in columns.values())
    reward = ", with their reward" if paid else ""
    head = f"Sampled completions of the same prompts{reward}; ↵ is a line break, … where text was cut."
    return ["## Samples", head, formatting.table(["prompt", *columns], rows, left=1 + len(columns))]


def _by_prompt(table: pd.DataFrame) -> dict[tuple[str, int], str]:
    """(prompt, how often it came before) -> completion and reward, as a finished cell."""
    found: dict[tuple[str, int], str] = {}
    counts: dict[str, int] = {}
    for row in table.to_dict("records"):
        prompt = str(row["prompt"])
        counts[prompt] = counts.get(prompt, -1) + 1
        reward = value_of(row, "reward")
        said = formatting.escape(row["completion"], SAMPLE_CHARACTERS) or "_empty_"
        found[prompt, counts[prompt]] = said if reward is None else f"{said} ({formatting.number(reward)})"
    return found


def _unfinished(frame: pd.DataFrame, rest: str) -> list[str]:
    lost = pd.DataFrame(frame[[not succeeded(o) for o in frame["outcome"]]])
    rows = lost.head(SHOWN).to_dict("records")
    if not rows:
        return []
    body = [
        [
            formatting.escape(r["label"]),
            formatting.escape(r["outcome"]),
            formatting.escape("not recorded" if pd.isna(r["reason"]) else r["reason"], 300),
        ]
        for r in rows
    ]
    more = f"{len(lost) - SHOWN:,} more are in {rest}." if len(lost) > SHOWN else ""
    return ["## Trials that did not finish", formatting.table(["trial", "outcome", "reason"], body, left=3), more]
