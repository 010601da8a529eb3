"""Plots of recipes: quality against memory and against drift, over a knob, memory by phase, reliability.

Each function returns False, and writes nothing, where the recipes lack the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.base.records import PHASES
from harness.base.stats import Interval
from harness.report.figures import labelling
from harness.report.figures.drawing import (
    FAINT,
    GREY,
    MARKERS,
    PHASE_COLOURS,
    colour_of,
    cycle,
    figure,
    handle,
    legend,
    looks,
    one_line,
    quality_axis,
    reach,
    save,
    styled,
)
from harness.report.intervals import LENGTH, length_rule
from harness.report.leaderboard import known, shared_value, value_of
from harness.report.recipes import Recipe
from harness.report.standings import Standings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 24
"""Points that get a name; the best come first."""
MOST_BARS = 24
MOST_CURVES = 14
MOST_TICKS = 12
KNOBS = {"beta": ("β", re.compile(r"-b[\d.e+-]+(?=-|$| )")), "rank": ("rank of the adapter", re.compile(r"-r\d+"))}
"""Swept knob -> its words, and where a recipe's label holds it."""


@styled
def quality_against_memory(standings: Standings, path: Path) -> bool:
    """Each recipe: peak memory against quality over its seeds; the front is ringed."""
    name, memory = standings.metric, "memory/peak_mb"
    points = [(r, x, y) for r, x, y in _measured(standings, memory) if x.mean > 0]
    if name is None or not points:
        return False
    drawn = figure(4.2)
    axes = drawn.add_subplot()
    kinds: dict[tuple[str, str], list[Any]] = {}
    for point in points:
        kinds.setdefault((_setting(point[0], "algo"), _setting(point[0], "adapter")), []).append(point)
    algos, adapters = (sorted({kind[i] for kind in kinds}) for i in (0, 1))
    for (algo, adapter), own in sorted(kinds.items()):
        axes.errorbar(
            [x.mean for _, x, _ in own], [y.mean for *_, y in own], yerr=reach([y for *_, y in own]),
            fmt=cycle(MARKERS, adapters, adapter), color=colour_of(algo), markersize=6,
            elinewidth=0.9, capsize=2.5, zorder=3, rasterized=len(points) > 10 * NAMED,
        )  # fmt: skip
    ringed = [(x.mean, y.mean) for r, x, y in points if r.label in standings.front]
    handles = [handle(color=colour_of(a), marker="o", linestyle="", label=one_line(a)) for a in algos]
    if len(adapters) > 1:
        handles += [
            handle(color=GREY, marker=cycle(MARKERS, adapters, a), linestyle="", label=one_line(a)) for a in adapters
        ]
    if ringed and len(points) > 1:
        ring: Any = {
            "marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black",
            "markeredgewidth": 0.9, "linestyle": "",
        }  # fmt: skip
        axes.plot(*zip(*ringed, strict=True), zorder=4, **ring)
        handles.append(handle(label="nothing beats it", **ring))
    _reference(axes, standings, handles)
    axes.set_xlabel("peak memory of the trial (MB)")
    axes.set_ylabel(f"{quality_axis(name)[0]} (95 % interval)")
    axes.margins(x=0.12, y=0.12)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    if len(points) > NAMED:
        axes.set_title(f"the best {NAMED} of {len(points):,} recipes are named", loc="left", color=GREY)
    legend(drawn, handles)
    labelling.place(drawn, axes, [(r.label, x.mean, y) for r, x, y in points], NAMED)
    return save(drawn, path)


@styled
def quality_against_drift(standings: Standings, path: Path) -> bool:
    """Each recipe: KL to the reference against quality, over seeds with intervals; a line runs over beta."""
    from matplotlib.ticker import LogLocator, NullFormatter

    points = [(r, x, y) for r, x, y in _measured(standings, "eval/kl_per_sequence") if x.mean > 0]
    if len(points) < 2 or standings.metric is None:
        return False
    curves = _curves(points, "beta")
    drawn = figure(4.2)
    axes = drawn.add_subplot()
    handles = []
    styles = looks(curves)
    for label, own in curves.items():
        style = {k: styles[label][k] for k in ("color", "marker")}
        axes.plot([x.mean for _, x, _ in own], [y.mean for *_, y in own], color=style["color"], linewidth=1.1,
                  alpha=0.7, zorder=2)  # fmt: skip
        axes.errorbar(
            [x.mean for _, x, _ in own], [y.mean for *_, y in own], xerr=reach([x for _, x, _ in own]),
            yerr=reach([y for *_, y in own]), linestyle="", markersize=5, elinewidth=0.8, capsize=2, zorder=3,
            rasterized=len(points) > 10 * NAMED, **style,
        )  # fmt: skip
        for recipe, x, y in own if 1 < len(own) <= MOST_TICKS else []:
            axes.annotate(
                f"{_number(recipe, 'beta') or 0:g}", (x.mean, y.mean), xytext=(4, 4), textcoords="offset points",
                fontsize=7, color=style["color"],
            )  # fmt: skip
        handles.append(handle(linewidth=1.1, label=one_line(label), **style))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("KL to the reference (nats per sequence, log scale)")
    axes.set_ylabel(f"{quality_axis(standings.metric)[0]} (95 % interval)")
    _reference(axes, standings, handles)
    numbered = any(1 < len(own) <= MOST_TICKS for own in curves.values())
    said = ["numbers at the points: β"] * numbered + _left_out(points)
    axes.set_title("; ".join(said), loc="left", color=GREY)
    legend(drawn, handles)
    return save(drawn, path)


@styled
def responses(standings: Standings, path: Path) -> bool:
    """Quality over every knob that was swept (``KNOBS``), a curve for each way in which the rest differ."""
    from matplotlib.ticker import NullFormatter

    if standings.metric is None:
        return False
    panels: dict[str, dict[str, list[tuple[Recipe, float, Interval]]]] = {}
    for knob in KNOBS:
        points = [
            (r, x, y)
            for r in standings.recipes
            if (x := _number(r, knob)) and (y := r.estimate(standings.metric)) is not None
        ]
        curves = {label: own for label, own in _curves(points, knob).items() if len({x for _, x, _ in own}) > 1}
        if any(len({x for _, x, _ in own}) > 2 for own in curves.values()):
            panels[knob] = curves
    if not panels:
        return False
    drawn = figure(3.6 * len(panels))
    grid = drawn.subplots(len(panels), 1, squeeze=False)
    for axes, (knob, curves) in zip(grid.flat, panels.items(), strict=True):
        styles = looks(curves)
        for i, (label, own) in enumerate(curves.items()):
            aside = 1.02 ** (i - (len(curves) - 1) / 2)  # so that error bars do not cover one another
            axes.errorbar(
                [x * aside for _, x, _ in own], [y.mean for *_, y in own], yerr=reach([y for *_, y in own]),
                markersize=5, elinewidth=0.8, capsize=2, label=one_line(label), **styles[label],
            )  # fmt: skip
        handles: list[Any] = list(axes.get_legend_handles_labels()[0])
        _reference(axes, standings, handles)
        ticks = sorted({x for own in curves.values() for _, x, _ in own})
        ticks = ticks[:: -(-len(ticks) // MOST_TICKS)]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{KNOBS[knob][0]} (log scale)")
        axes.set_ylabel(f"{quality_axis(standings.metric)[0]} (95 % interval)")
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return save(drawn, path)


@styled
def memory_by_phase(standings: Standings, path: Path) -> bool:
    """What each phase added to the peak so far, stacked to the peak of the trial; means over seeds.

    A phase in which a trial built something for the cache reaches above the trial's peak, which leaves that out; it is
    cut there.
    """
    found = standings.recipes[:MOST_BARS]
    rows = [(r, parts) for r in found if any(parts := _added(r))]
    if not rows:
        return False
    drawn = figure(1.1 + 0.24 * len(rows))
    axes = drawn.add_subplot()
    left = [0.0] * len(rows)
    for i, phase in enumerate(PHASES):
        added = [parts[i] for _, parts in rows]
        if any(added):
            axes.barh(range(len(rows)), added, left=left, color=PHASE_COLOURS[phase], label=phase, height=0.7)
        left = [before + more for before, more in zip(left, added, strict=True)]
    axes.set_yticks(range(len(rows)), [one_line(r.label, 36) for r, _ in rows])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("peak memory (MB): what each phase added to the highest before it")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    if len(rows) < len(standings.recipes):
        axes.set_title(f"the best {len(rows)} of {len(standings.recipes):,} recipes", loc="left", color=GREY)
    legend(drawn, axes.get_legend_handles_labels()[0])
    return save(drawn, path)


@styled
def reliability(bins: Mapping[str, pd.DataFrame], path: Path) -> bool:
    """Confidence in the preferred side of held-out pairs against how often it was right; bins of all seeds together.

    Args:
        bins: recipe -> rows of ``low``, ``count``, ``predicted`` and ``observed``, one for each bin of each seed.
        path: of the PNG.
    """
    if not any(len(table) for table in bins.values()):
        return False
    drawn = figure(4.0)
    axes = drawn.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, zorder=1)
    handles = [handle(color=FAINT, linewidth=1, label="calibrated")]
    styles = looks(bins)
    for label, table in bins.items():
        counts: Any = table["count"]
        weighted = table[["predicted", "observed"]].multiply(counts, axis=0).assign(count=counts)
        pooled: Any = weighted.groupby(table["low"]).sum()
        x, y = pooled["predicted"] / pooled["count"], pooled["observed"] / pooled["count"]
        style = {k: styles[label][k] for k in ("color", "marker")}
        share = pooled["count"] / pooled["count"].sum()
        axes.plot(x, y, color=style["color"], linewidth=1.1, zorder=2)
        axes.scatter(x, y, s=8 + 120 * share, color=style["color"], marker=style["marker"], zorder=3)
        handles.append(handle(linewidth=1.1, label=one_line(label), **style))
    axes.set_xlabel("confidence that the preferred side is better (size: share of pairs)")
    axes.set_ylabel("share of pairs where it is")
    legend(drawn, handles)
    return save(drawn, path)


def _added(recipe: Recipe) -> list[float]:
    """By phase: what it added to the highest before it, in MB; mean over the seeds."""
    seeds = []
    for row in recipe.frame.filter(like="memory/").to_dict("records"):
        peak, high, parts = value_of(row, "memory/peak_mb"), 0.0, []
        for phase in PHASES:
            top = value_of(row, f"memory/{phase}_peak_mb") or 0.0
            before, high = high, max(high, top if peak is None else min(top, peak))
            parts.append(high - before)
        seeds.append(parts)
    return [sum(column) / len(seeds) for column in zip(*seeds, strict=True)]


def _measured(standings: Standings, metric: str) -> list[tuple[Recipe, Interval, Interval]]:
    """Recipes with their estimates of ``metric`` and of quality, where they have both."""
    if standings.metric is None or metric not in standings.frame:
        return []
    return [
        (r, x, y)
        for r in standings.recipes
        if (x := r.estimate(metric)) is not None and (y := r.estimate(standings.metric)) is not None
    ]


def _curves(points: Sequence[tuple[Recipe, Any, Interval]], knob: str) -> dict[str, list[tuple[Recipe, Any, Interval]]]:
    """Points by what their recipes have in common but the knob, in its order; the best curves alone."""
    curves: dict[str, list[tuple[Recipe, Any, Interval]]] = {}
    for point in points:
        curves.setdefault(KNOBS[knob][1].sub("", point[0].label), []).append(point)
    kept = list(curves.items())[:MOST_CURVES]
    return {label: sorted(own, key=lambda p: _number(p[0], knob) or 0.0) for label, own in sorted(kept)}


def _left_out(points: Sequence[tuple[Recipe, Any, Any]]) -> list[str]:
    """A word about curves that are not drawn."""
    curves = len({KNOBS["beta"][1].sub("", r.label) for r, *_ in points})
    return [f"the best {MOST_CURVES} of {curves:,} curves"] if curves > MOST_CURVES else []


def _reference(axes: Axes, standings: Standings, handles: list[Any]) -> None:
    """A line at the figure that quality is held against, where all trials agree on it."""
    if standings.metric is None:
        return
    _, name, label = quality_axis(standings.metric)
    if name == LENGTH:
        found, rule = length_rule(standings.frame)
        value, label = (None if found is None else found.mean), f"{label} ({rule})"
    else:
        value = shared_value(standings.frame, name)
    if value is not None:
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1, zorder=1)
        handles.append(handle(color=GREY, linestyle="--", linewidth=1, label=label))


def _number(recipe: Recipe, column: str) -> float | None:
    values = known(recipe.frame, column)
    return float(values[0]) if values else None


def _setting(recipe: Recipe, column: str) -> str:
    return str(recipe.frame[column].iloc[0])
