"""How our plots look, and what they share: colours that colour-blind readers can tell apart, PNG and SVG, legends."""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import formatting
from harness.base.records import PHASES
from harness.base.stats import Interval
from harness.config.compose import conf_dir
from harness.report.intervals import LENGTH
from harness.report.leaderboard import BASE_LABEL, LENGTH_LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without the yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Tol's muted scheme, those that nobody takes for an algorithm's: a phase has its colour in every plot.
PHASE_COLOURS: dict[str, str] = dict(
    zip(PHASES, ("#BBBBBB", "#332288", "#DDCC77", "#882255", "#44AA99", "#999933"), strict=True)
)
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
MARKERS = "osD^vPX*"
GREY = "#666666"
FAINT = "#bbbbbb"
WIDTH_IN = 7.2
DPI = 160
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5,
    "legend.frameon": False, "text.parse_math": False, "svg.hashsalt": "harness",
}  # fmt: skip
QUALITY_AXIS = {
    "eval/true_reward": ("mean true reward", "baseline/true_reward", BASE_LABEL),
    "eval/preference_accuracy": ("held-out preference accuracy", LENGTH, LENGTH_LABEL),
}
"""Metric -> its words, the metric to hold it against, and what that is called."""


def quality_axis(metric: str) -> tuple[str, str, str]:
    """The same for any metric that ranks; what is not listed is held against the base."""
    tail = metric.partition("/")[2]
    return QUALITY_AXIS.get(metric, (tail.replace("_", " "), f"baseline/{tail}", BASE_LABEL))


def styled(plot: Callable[..., bool]) -> Callable[..., bool]:
    """Draw in our style, without touching anybody else's settings."""

    @functools.wraps(plot)
    def draw(*arguments: Any) -> bool:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return plot(*arguments)

    return draw


def figure(height_in: float) -> Figure:
    """An empty one at the width of a page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(drawn: Figure, path: Path) -> bool:
    """As PNG, and as SVG beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.draw_without_rendering()
    drawn.set_layout_engine(None)  # it is laid out now; else each file would be laid out and drawn twice
    drawn.savefig(path, format="png", metadata={"Software": None})
    drawn.savefig(path.with_suffix(".svg"), format="svg", metadata={"Date": None})
    return True


def handle(**style: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def patch(colour: str, label: str) -> Any:
    """An entry of a legend for a shaded area."""
    from matplotlib.patches import Patch

    return Patch(color=colour, alpha=0.22, linewidth=0, label=label)


def legend(drawn: Figure, handles: Sequence[Any], place: str = "upper") -> None:
    """Above the axes (or ``lower``: below them), in as many columns as the longest entry leaves room for."""
    shape: Any = {"loc": f"outside {place} center", "ncols": columns(h.get_label() for h in handles)}
    drawn.legend(handles=list(handles), handlelength=2.6, **shape)


def columns(labels: Iterable[str]) -> int:
    """Columns of a legend with these entries."""
    names = list(labels)
    return max(1, min(4, 108 // (max(map(len, names)) + 7), len(names)))


@functools.cache
def colour_of(algo: str) -> str:
    """The one colour of an algorithm, in every plot of every report."""
    known = sorted(p.stem for p in (conf_dir() / "algo").glob("*.yaml"))
    place = known.index(algo) if algo in known else len(known) + zlib.crc32(algo.encode()) % len(COLOURS)
    return shade(COLOURS[place % len(COLOURS)], place // len(COLOURS))


def shade(colour: str, lighter: int) -> str:
    """A colour mixed with white, step by step."""
    white = min(0.7, 0.3 * lighter)
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(p + (255 - p) * white):02X}" for p in parts)


def looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each recipe: the algorithm's colour, and what tells its recipes apart.

    Where there is one algorithm only, its colour would tell nothing: then each recipe has a colour of its own.
    """
    names = list(labels)
    alone = len({name.partition("-")[0] for name in names}) == 1
    found: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for label in names:
        algo = label.partition("-")[0]
        nth = seen[algo]
        seen[algo] += 1
        own = colour_of(algo)
        colours = (own, *(c for c in COLOURS if c != own)) if alone else (own,)
        found[label] = {
            "color": shade(colours[nth % len(colours)], nth // max(len(colours), len(DASHES))),
            "linestyle": DASHES[nth % len(DASHES)],
            "marker": MARKERS[nth % len(MARKERS)],
        }
    return found


def cycle(values: Sequence[Any], names: Sequence[str], name: object) -> Any:
    """The value that belongs to ``name``, by its place in ``names``; the last for what is not there."""
    return values[names.index(str(name)) % len(values)] if str(name) in names else values[-1]


def one_line(label: str, limit: int = 60) -> str:
    """A label as matplotlib may show it."""
    return formatting.printable(label, limit)


def reach(found: Sequence[Interval]) -> list[list[float]] | None:
    """Lengths of error bars below and above; none for one that has no bounds, None where nothing has any."""
    sides = [
        (float("nan"), float("nan")) if i.low is None or i.high is None else (i.mean - i.low, i.high - i.mean)
        for i in found
    ]
    if all(below != below for below, _ in sides):
        return None
    return [[below for below, _ in sides], [above for _, above in sides]]
