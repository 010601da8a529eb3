"""Plots of a sweep as PNG and SVG: colours that colour-blind readers can tell apart, readable at the width of a page.

Each function returns False, and writes nothing, where the trials have not got what it shows.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import text
from harness.report.leaderboard import (
    BASE_LABEL,
    LENGTH_LABEL,
    finished,
    known,
    quality_name,
    ranked,
    shared_value,
    succeeded,
    value_of,
)
from harness.report.recipes import recipes
from harness.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without the yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
MARKERS = "osD^vPX*"
GREY = "#666666"
WIDTH_IN = 7.2
DPI = 160
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5,
    "legend.frameon": False, "text.parse_math": False, "svg.hashsalt": "harness",
}  # fmt: skip


def _styled(plot: Callable[..., bool]) -> Callable[..., bool]:
    """Draw in our style, without touching anybody else's settings."""

    @functools.wraps(plot)
    def draw(*arguments: Any) -> bool:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return plot(*arguments)

    return draw


CURVES = {
    "train/loss": "loss (differs by algorithm)",
    "train/reward": "reward of rollouts",
    "train/true_reward": "true reward of rollouts",
    "train/rewards/accuracies": "share of pairs ranked right",
    "train/kl": "KL from the reference (nats/token)",
    "train/response_tokens": "tokens per completion",
}
MEMORY_SERIES = ("system/gpu_0_memory_usage_megabytes", "system/system_memory_usage_megabytes")
QUALITY_AXIS = {
    "eval/true_reward": ("mean true reward", "baseline/true_reward", BASE_LABEL),
    "eval/preference_accuracy": ("held-out preference accuracy", "eval/length_only_accuracy", LENGTH_LABEL),
}


@_styled
def quality_against_memory(frame: pd.DataFrame, path: Path) -> bool:
    """Each successful trial: peak memory against true reward (else preference accuracy), with standard errors."""
    name = quality_name(frame)
    if name is None or "memory/peak_mb" not in frame:
        return False
    trials = ranked(frame)
    trials = finished(trials).dropna(subset=[name, "memory/peak_mb"])
    if trials.empty:
        return False
    figure = _figure(4.2)
    axes = figure.add_subplot()
    algos, adapters = (sorted(set(map(str, known(trials, c)))) for c in ("algo", "adapter"))
    for row in trials.to_dict("records"):
        axes.errorbar(
            row["memory/peak_mb"], row[name], yerr=value_of(row, f"{name}_stderr"),
            fmt=_cycle(MARKERS, adapters, row["adapter"]), color=_cycle(COLOURS, algos, row["algo"]),
            markersize=6, elinewidth=0.9, capsize=2.5, zorder=3,
        )  # fmt: skip
    label, reference, reference_label = QUALITY_AXIS[name]
    handles = [_handle(color=_cycle(COLOURS, algos, a), marker="o", linestyle="", label=a) for a in algos]
    if len(adapters) > 1:
        handles += [_handle(color=GREY, marker=_cycle(MARKERS, adapters, a), linestyle="", label=a) for a in adapters]
    if (value := shared_value(frame, reference)) is not None:
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1, zorder=1)
        handles.append(_handle(color=GREY, linestyle="--", linewidth=1, label=reference_label))
    axes.set_xlabel("peak memory of the trial (MB)")
    axes.set_ylabel(f"{label} (± standard error)")
    axes.margins(x=0.12, y=0.12)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))
    _label_points(figure, axes, trials, name)
    return _save(figure, path)


@_styled
def learning_curves(series: pd.DataFrame, frame: pd.DataFrame, path: Path) -> bool:
    """Small multiples of the training series that exist, one line per trial."""
    names = [n for n in CURVES if n in set(series["name"])]
    if not names:
        return False
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    legend = _Lines(series.loc[series["name"].isin(names), "run_id"], frame)
    figure = _figure(2.3 * rows + legend.height_in)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        lines = _by_run(series, name)
        few = max(len(points) for _, points in lines) < 3
        for run_id, points in lines:
            axes.plot(points["step"], points["value"], marker="." if few else "", **legend.style(run_id))
        axes.set_title(name, loc="left")
        axes.set_xlabel("step")
        axes.set_ylabel(CURVES[name])
    for axes in list(grid.flat)[len(names) :]:
        axes.remove()
    legend.draw(figure)
    return _save(figure, path)


@_styled
def memory_over_time(series: pd.DataFrame, frame: pd.DataFrame, path: Path) -> bool:
    """Sampled memory of each trial since its start: the GPU's where it was sampled, else the process's."""
    name = next((n for n in MEMORY_SERIES if n in set(series["name"])), None)
    if name is None:
        return False
    legend = _Lines(series.loc[series["name"] == name, "run_id"], frame)
    figure = _figure(3.0 + legend.height_in)
    axes = figure.add_subplot()
    outcomes = dict(zip(frame["run_id"], frame["outcome"], strict=True))
    crossed = False
    for run_id, points in _by_run(series, name):
        elapsed = points["time"] - points["time"].iloc[0]
        axes.plot(elapsed, points["value"], **legend.style(run_id))
        if not succeeded(outcomes[run_id]) and outcomes[run_id] != "running":
            crossed = True
            colour = legend.style(run_id)["color"]
            axes.plot(
                elapsed.iloc[-1],
                points["value"].iloc[-1],
                marker="X",
                markersize=7,
                color=colour,
                clip_on=False,
            )
    axes.set_xlabel("time since the first sample (s)")
    axes.set_ylabel(f"{'GPU memory' if 'gpu' in name else 'memory'} of the trial (MB)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    if crossed:
        axes.set_title("× : the trial did not finish", loc="left", color=GREY)
    legend.draw(figure)
    return _save(figure, path)


@_styled
def quality_against_drift(frame: pd.DataFrame, path: Path) -> bool:
    """Each recipe: KL to the reference against quality, over seeds with intervals; a line runs over beta."""
    from matplotlib.ticker import LogLocator, NullFormatter

    name, drift = quality_name(frame), "eval/kl_per_sequence"
    if name is None or drift not in frame:
        return False
    measured = [
        (r, x, y)
        for r in recipes(frame, name)
        if (x := r.estimate(drift)) is not None and (y := r.estimate(name)) is not None and x.mean > 0
    ]
    if len(measured) < 2:
        return False
    figure = _figure(4.2)
    axes = figure.add_subplot()
    curves: dict[str, list[Any]] = {}
    for recipe, x, y in measured:
        curves.setdefault(_without_beta(recipe.label), []).append((recipe, x, y))
    order = sorted(curves)
    for label, points in curves.items():
        points.sort(key=lambda p: (value_of(p[0].frame.iloc[0].to_dict(), "beta") or 0.0, p[1].mean))
        colour, marker = _cycle(COLOURS, order, label), MARKERS[order.index(label) // len(COLOURS) % len(MARKERS)]
        xs, ys = [[p[k].mean for p in points] for k in (1, 2)]
        axes.plot(xs, ys, color=colour, linewidth=1.1, alpha=0.7, zorder=2)
        axes.errorbar(
            xs, ys, xerr=_reach([p[1] for p in points]), yerr=_reach([p[2] for p in points]), fmt=marker, color=colour,
            markersize=5, elinewidth=0.8, capsize=2, zorder=3,
        )  # fmt: skip
        for recipe, x, y in points if len(points) > 1 else []:
            beta = value_of(recipe.frame.iloc[0].to_dict(), "beta")
            axes.annotate(
                f"{beta:g}", (x.mean, y.mean), xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("KL to the reference (nats per sequence, log scale)")
    axes.set_ylabel(QUALITY_AXIS[name][0])
    handles = [
        _handle(
            color=_cycle(COLOURS, order, c), marker=MARKERS[i // len(COLOURS) % len(MARKERS)], linewidth=1.1,
            label=_one_line(c),
        )
        for i, c in enumerate(order)
    ]  # fmt: skip
    _, reference, reference_label = QUALITY_AXIS[name]
    if (value := shared_value(frame, reference)) is not None:
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1, zorder=1)
        handles.append(_handle(color=GREY, linestyle="--", linewidth=1, label=reference_label))
    if any(len(points) > 1 for points in curves.values()):
        axes.set_title("numbers at the points: β", loc="left", color=GREY)
    longest = max(len(h.get_label()) for h in handles)
    figure.legend(handles=handles, loc="outside upper center", ncols=max(1, min(4, 100 // (longest + 7))))
    return _save(figure, path)


def _without_beta(label: str) -> str:
    """A recipe's label with its beta left out."""
    return re.sub(r"-b[\d.e+-]+(?=-|$)", "", label)


def _reach(found: Sequence[Interval]) -> list[list[float]] | None:
    """Lengths of error bars below and above; None where one of them has no bounds."""
    if any(i.low is None or i.high is None for i in found):
        return None
    below, above = zip(*((i.mean - (i.low or 0.0), (i.high or 0.0) - i.mean) for i in found), strict=True)
    return [list(below), list(above)]


class _Lines:
    """Colour and dashes of each trial's line, in the order of the leaderboard, and their legend below the plot.

    Past 28 trials the best 27 have a style of their own and the others share a thin grey one.
    """

    def __init__(self, run_ids: Iterable[str], frame: pd.DataFrame):
        order = ranked(frame)
        order = order[order["run_id"].isin(list(set(run_ids)))]
        names = text.without_shared_seed(list(order["label"]))
        limit = len(COLOURS) * len(DASHES)
        own = len(order) if len(order) <= limit else limit - 1
        self._styles: dict[str, dict[str, Any]] = {}
        for i, (run_id, label) in enumerate(zip(order["run_id"], names, strict=True)):
            self._styles[run_id] = {
                "color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS)], "label": _one_line(label),
                "zorder": 3,
            } if i < own else {"color": "#bbbbbb", "linewidth": 0.8, "label": "other trials", "zorder": 2}  # fmt: skip
        self._labels = {s["label"]: s for s in self._styles.values()}
        longest = max(len(label) for label in self._labels)
        self._columns = max(1, min(4, 108 // (longest + 7), len(self._labels)))
        self.height_in = 0.3 + 0.17 * -(-len(self._labels) // self._columns)

    def style(self, run_id: str) -> dict[str, Any]:
        """Arguments of ``plot``, without the label, which only the legend shows."""
        return {k: v for k, v in self._styles[run_id].items() if k != "label"}

    def draw(self, figure: Figure) -> None:
        """The legend, below the axes."""
        handles = [_handle(**style) for style in self._labels.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=self._columns, handlelength=2.6)


def _label_points(figure: Figure, axes: Axes, trials: pd.DataFrame, name: str) -> None:
    """Put each trial's label where it covers no point and no other label, with a line to it where that is far."""
    from math import cos, pi, sin

    from matplotlib.transforms import Bbox

    figure.canvas.draw()  # the constrained layout is known only now
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixel = figure.dpi / 72
    inside = axes.get_window_extent(renderer)
    taken = []
    for row in trials.to_dict("records"):
        error = value_of(row, f"{name}_stderr") or 0.0
        low, high = (axes.transData.transform((row["memory/peak_mb"], row[name] + s * error)) for s in (-1, 1))
        taken.append(
            Bbox.from_extents(low[0] - 4 * pixel, low[1] - 4 * pixel, high[0] + 4 * pixel, high[1] + 4 * pixel)
        )
    labels = text.without_shared_seed(list(trials["label"]))
    for label, row in zip(labels, trials.to_dict("records"), strict=True):
        point = (row["memory/peak_mb"], row[name])
        note = axes.annotate(
            _one_line(label), point, xytext=(0, 0), textcoords="offset points", fontsize=7.5, ha="center",
            va="center", zorder=4,
        )  # fmt: skip
        size = note.get_window_extent(renderer)
        at = axes.transData.transform(point)
        best, best_cost = (0.0, 0.0), float("inf")
        for ring, turn in ((r, t) for r in range(12) for t in range(16)):
            angle, gap = turn * pi / 8, (7 + 9 * ring) * pixel
            dx = cos(angle) * (gap + size.width / 2)
            dy = sin(angle) * (gap + size.height / 2)
            box = Bbox.from_bounds(at[0] + dx - size.width / 2, at[1] + dy - size.height / 2, size.width, size.height)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            cost = 1000 * outside + 100 * sum(box.overlaps(other) for other in taken) + ring
            if cost < best_cost:
                best, best_cost = (dx, dy), cost
            if cost < 100:
                break
        dx, dy = best
        note.set_position((dx / pixel, dy / pixel))
        taken.append(
            Bbox.from_bounds(at[0] + dx - size.width / 2, at[1] + dy - size.height / 2, size.width, size.height)
        )
        if best_cost % 100 >= 1:  # not in the first ring: too far to be obvious
            end = axes.transData.inverted().transform(_nearest(taken[-1], at))
            axes.plot(
                [point[0], end[0]],
                [point[1], end[1]],
                color=GREY,
                linewidth=0.5,
                zorder=2,
                scalex=False,
                scaley=False,
            )


def _nearest(box: Any, at: Any) -> tuple[float, float]:
    """The point of a box that is nearest to ``at``."""
    return min(max(at[0], box.x0), box.x1), min(max(at[1], box.y0), box.y1)


def _by_run(series: pd.DataFrame, name: str) -> list[tuple[str, pd.DataFrame]]:
    chosen = pd.DataFrame(series[series["name"] == name])
    return [
        (str(run_id), points.sort_values(["time", "step"])) for run_id, points in chosen.groupby("run_id", sort=False)
    ]


def _cycle(values: Sequence[str], names: Sequence[str], name: object) -> str:
    return values[names.index(str(name)) % len(values)] if str(name) in names else values[-1]


def _one_line(label: str, limit: int = 60) -> str:
    return text.printable(label, limit)


def _handle(**style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _figure(height_in: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), format="svg", metadata={"Date": None})
    return True
