"""Plots of a sweep as PNG: colours that colour-blind readers can tell apart, readable at the width of a page.

Each function returns False, and writes nothing, where the trials have not got what it shows.
"""

from __future__ import annotations

import functools
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
    "legend.frameon": False, "text.parse_math": False,
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
    return True
