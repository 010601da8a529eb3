"""Plots of what changed while trials ran: training series by step, quality over the budget, memory by time.

Each function returns False, and writes nothing, where the trials lack the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.base import formatting
from harness.base.records import PHASES
from harness.report import peaks
from harness.report.figures.drawing import (
    COLOURS,
    DASHES,
    FAINT,
    GREY,
    PHASE_COLOURS,
    columns,
    figure,
    handle,
    legend,
    looks,
    one_line,
    patch,
    save,
    styled,
)
from harness.report.leaderboard import succeeded, value_of
from harness.report.standings import Standings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {
    "train/loss": "loss (differs by algorithm)",
    "train/reward": "reward of rollouts",
    "train/true_reward": "true reward of rollouts",
    "train/rewards/accuracies": "share of pairs ranked right",
    "train/kl": "KL from the reference (nats/token)",
    "train/response_tokens": "tokens per completion",
}
LINEAR = 10
"""A series that stays below is drawn on a linear scale, however small most of it is."""
MEMORY_SERIES = ("system/gpu_0_memory_usage_megabytes", "system/system_memory_usage_megabytes")


@styled
def learning_curves(series: pd.DataFrame, standings: Standings, path: Path) -> bool:
    """Small multiples of the training series that exist: a line per recipe, a band from its lowest to highest seed."""
    names = [n for n in CURVES if n in set(series["name"])]
    if not names:
        return False
    rows = -(-len(names) // min(2, len(names)))
    chosen: Any = series[series["name"].isin(names)]
    key = _Legend(_groups(standings, set(chosen["run_id"])))
    drawn = figure(2.3 * rows + key.height_in)
    grid = drawn.subplots(rows, min(2, len(names)), squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        own = chosen[chosen["name"] == name]
        for label, runs in key.groups.items():
            _line(axes, own[own["run_id"].isin(runs)], key.style(label))
        if own["value"].abs().max() > max(LINEAR, 100 * own["value"].abs().median()):  # IPO's loss beside DPO's
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")  # the scale's own writes TeX
        axes.set_title(name, loc="left")
        axes.set_xlabel("step")
        axes.set_ylabel(CURVES[name])
    for axes in list(grid.flat)[len(names) :]:
        axes.remove()
    key.draw(drawn)
    return save(drawn, path)


@styled
def memory_over_time(series: pd.DataFrame, standings: Standings, path: Path) -> bool:
    """Sampled memory of each trial since its start: the GPU's where it was sampled, else the process's."""
    name = next((n for n in MEMORY_SERIES if n in set(series["name"])), None)
    if name is None:
        return False
    chosen: Any = series[series["name"] == name]
    key = _Legend(_groups(standings, set(chosen["run_id"])))
    drawn = figure(3.0 + key.height_in)
    axes = drawn.add_subplot()
    outcomes = dict(zip(standings.frame["run_id"], standings.frame["outcome"], strict=True))
    crossed = False
    for label, runs in key.groups.items():
        for run_id, points in chosen[chosen["run_id"].isin(runs)].groupby("run_id", sort=False):
            points = points.sort_values(["time", "step"])
            elapsed = points["time"] - points["time"].iloc[0]
            axes.plot(elapsed, points["value"], **key.style(label))
            outcome = outcomes[str(run_id)]
            if not succeeded(outcome) and outcome != "running":
                crossed = True
                axes.plot(
                    elapsed.iloc[-1], points["value"].iloc[-1], marker="X", markersize=7,
                    color=key.style(label)["color"], clip_on=False,
                )  # fmt: skip
    axes.set_xlabel("time since the first sample (s)")
    axes.set_ylabel(f"{'GPU memory' if 'gpu' in name else 'memory'} of the trial (MB)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    if crossed:
        axes.set_title("× : the trial did not finish", loc="left", color=GREY)
    key.draw(drawn)
    return save(drawn, path)


@styled
def memory_timelines(
    series: pd.DataFrame, stretches: Mapping[str, pd.DataFrame], standings: Standings, path: Path
) -> bool:
    """Sampled memory of single trials, with their phases shaded; what was predicted as a dashed line.

    Args:
        series: points of the memory series.
        stretches: run id -> table ``phases`` of the trial, for the trials to show.
        standings: names them.
        path: of the PNG.
    """
    name = next((n for n in MEMORY_SERIES if n in set(series["name"])), None)
    rows = {str(r["run_id"]): r for r in standings.frame.to_dict("records")}
    shown: list[tuple[dict[Any, Any], Any, pd.DataFrame]] = []
    for run_id, table in stretches.items():
        points: Any = series[(series["name"] == name) & (series["run_id"] == run_id)]
        points = points.sort_values(["time", "step"])
        if len(points) and len(table):
            shown.append((rows[run_id], points, table))
    if name is None or not shown:
        return False
    high = -(-len(shown) // 2) if len(shown) > 1 else 1
    drawn = figure(1.9 * high + 0.5)
    grid = drawn.subplots(high, min(2, len(shown)), squeeze=False)
    seen = [p for p in PHASES if any((table["phase"] == p).any() for *_, table in shown)]
    for axes, (row, points, table) in zip(grid.flat, shown, strict=False):
        start = table["began"].iloc[0]
        for stretch in table.to_dict("records"):
            colour = PHASE_COLOURS[str(stretch["phase"])]
            left = stretch["began"] - start
            axes.axvspan(left, left + stretch["seconds"], color=colour, alpha=0.22, linewidth=0)
        axes.plot(points["time"] - start, points["value"], color="#000000", linewidth=1.2)
        said = value_of(row, "memory/predicted_peak_mb")
        if said is not None:
            axes.axhline(said, color=GREY, linestyle=DASHES[1], linewidth=1)
        died = "" if succeeded(row["outcome"]) else f" ({row['outcome']})"
        axes.set_title(one_line(f"{row['label']}{died}"), loc="left")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        axes.set_xlabel("s")
        axes.set_ylabel("MB")
    for axes in list(grid.flat)[len(shown) :]:
        axes.remove()
    keys = [patch(PHASE_COLOURS[p], p) for p in seen]
    if any(value_of(row, "memory/predicted_peak_mb") is not None for row, *_ in shown):
        keys.append(handle(color=GREY, linestyle=DASHES[1], label="predicted peak"))
    legend(drawn, keys, "lower")
    return save(drawn, path)


OVER_TRAINING = {
    "curve/true_reward": "true reward",
    "curve/proxy_reward": "proxy reward (what training pays)",
    "curve/preference_accuracy": "preference accuracy",
}
"""Series of points -> the words of their axis."""


@styled
def quality_over_budget(found: pd.DataFrame, standings: Standings, path: Path) -> bool:
    """Small multiples of quality over the share of the budget: a line per recipe, a band over its seeds.

    Args:
        found: points (``peaks.points``).
        standings: names the recipes.
        path: of the PNG.
    """
    return _over_training(found, standings, path, "share of the training budget", _by_budget)


@styled
def quality_over_drift(found: pd.DataFrame, standings: Standings, path: Path) -> bool:
    """The same over the square root of KL: from the base at 0 along the training, means over seeds; ● is its end."""
    if peaks.KL not in found:
        return False
    measured: Any = found.dropna(subset=[peaks.KL])
    return _over_training(measured, standings, path, "√KL from the base (√nats per completion)", _by_drift)


def _over_training(
    found: pd.DataFrame, standings: Standings, path: Path, words: str, draw: Callable[[Axes, Any, dict[str, Any]], None]
) -> bool:
    points: Any = found
    names = [n for n in OVER_TRAINING if n in points and points[n].notna().any()]
    if not names:
        return False
    key = _Legend(_groups(standings, set(points["run_id"])))
    wide = min(2, len(names))
    rows = -(-len(names) // wide)
    drawn = figure(2.6 * rows + key.height_in)
    grid = drawn.subplots(rows, wide, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        own = points.dropna(subset=[name]).assign(value=points[name])
        for label, runs in key.groups.items():
            draw(axes, own[own["run_id"].isin(runs)], key.style(label))
        axes.set_xlabel(words)
        axes.set_ylabel(OVER_TRAINING[name])
    for axes in list(grid.flat)[len(names) :]:
        axes.remove()
    key.draw(drawn)
    return save(drawn, path)


def _by_budget(axes: Axes, own: Any, style: dict[str, Any]) -> None:
    _line(axes, own.assign(step=own[peaks.SPENT]), style)
    axes.set_xlim(-0.02, 1.02)


def _by_drift(axes: Axes, own: Any, style: dict[str, Any]) -> None:
    """An estimate of KL below 0 is drawn at 0."""
    if own.empty:
        return
    means = own.assign(distance=own[peaks.KL].clip(lower=0) ** 0.5).groupby(peaks.SHARE)[["distance", "value"]].mean()
    axes.plot(means["distance"], means["value"], marker=".", **style)
    axes.plot(means["distance"].iloc[-1:], means["value"].iloc[-1:], marker="o", color=style["color"], zorder=4)


def _groups(standings: Standings, run_ids: set[str]) -> dict[str, list[str]]:
    """Label -> runs that share a line: the seeds of a recipe, the best first, then trials that did not finish."""
    found = {r.label: [i for i in r.frame["run_id"] if i in run_ids] for r in standings.recipes}
    placed = {i for runs in found.values() for i in runs}
    rest = standings.frame[standings.frame["run_id"].isin(list(run_ids - placed))]
    names = formatting.without_shared_seed(list(rest["label"]))
    alone = {f"{label} ({o})": [i] for label, o, i in zip(names, rest["outcome"], rest["run_id"], strict=True)}
    return {label: runs for label, runs in {**found, **alone}.items() if runs}


def _line(axes: Axes, points: Any, style: Mapping[str, Any]) -> None:
    """One line: the mean over the runs at the steps that all of them have, and a band over their range."""
    if points.empty:
        return
    runs = points["run_id"].nunique()
    by = points.groupby("step")["value"]
    shown = by.agg(["mean", "min", "max"])[by.count() >= runs]
    if shown.empty:  # runs that logged at other steps: a line each
        for _, own in points.groupby("run_id", sort=False):
            _line(axes, own, style)
        return
    axes.plot(shown.index, shown["mean"], marker="." if len(shown) < 3 else "", **style)
    if runs > 1:
        axes.fill_between(
            shown.index, shown["min"], shown["max"], color=style["color"], alpha=0.15, linewidth=0, zorder=1
        )


class _Legend:
    """Colour (the algorithm's) and dashes of each line, in the leaderboard's order, and what they mean: below the plot.

    Past 28 lines the best 27 have a style of their own and the others share a thin grey one.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]]):
        self.groups = groups
        limit = len(COLOURS) * len(DASHES)
        own = len(groups) if len(groups) <= limit else limit - 1
        self._styles: dict[str, dict[str, Any]] = {}
        for i, (label, look) in enumerate(looks(groups).items()):
            del look["marker"]
            rest = {"color": FAINT, "linewidth": 0.8, "label": "others", "zorder": 2}
            self._styles[label] = {**look, "label": one_line(label), "zorder": 3} if i < own else rest
        self._labels = {s["label"]: s for s in self._styles.values()}
        self.height_in = 0.3 + 0.17 * -(-len(self._labels) // columns(self._labels))

    def style(self, label: str) -> dict[str, Any]:
        """Arguments of ``plot``, without the label, which only the legend shows."""
        return {k: v for k, v in self._styles[label].items() if k != "label"}

    def draw(self, drawn: Figure) -> None:
        """The legend, below the axes."""
        legend(drawn, [handle(**style) for style in self._labels.values()], "lower")
