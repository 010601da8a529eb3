"""Names beside points, where they cover no point and no other name."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin
from typing import TYPE_CHECKING, Any

from harness.base.stats import Interval
from harness.report.figures.drawing import GREY, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RINGS = 12
TURNS = 16


def place(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, Interval]], named: int) -> None:
    """Name the first ``named`` points, with a line from the name to its point where that is far.

    Args:
        figure: finished but for the names; its layout is settled here.
        axes: that hold the points.
        points: name, x, and y with its interval; all of them are kept clear.
        named: how many get their name.
    """
    from matplotlib.transforms import Bbox

    figure.canvas.draw()  # the constrained layout is known only now
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixel = figure.dpi / 72
    inside = axes.get_window_extent(renderer)
    taken = []
    for _, x, y in points[: 10 * named]:  # past that no place is free anyway
        low, high = (axes.transData.transform((x, y.mean if bound is None else bound)) for bound in (y.low, y.high))
        taken.append(
            Bbox.from_extents(low[0] - 4 * pixel, low[1] - 4 * pixel, high[0] + 4 * pixel, high[1] + 4 * pixel)
        )
    for label, x, y in points[:named]:
        note = axes.annotate(
            one_line(label), (x, y.mean), xytext=(0, 0), textcoords="offset points", fontsize=7.5, ha="center",
            va="center", zorder=4,
        )  # fmt: skip
        size, at = note.get_window_extent(renderer), axes.transData.transform((x, y.mean))
        best, best_cost = (0.0, 0.0), float("inf")
        for ring, turn in ((r, t) for r in range(RINGS) for t in range(TURNS)):
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
            axes.plot([x, end[0]], [y.mean, end[1]], color=GREY, linewidth=0.5, zorder=2, scalex=False, scaley=False)


def _nearest(box: Any, at: Any) -> tuple[float, float]:
    """The point of a box that is nearest to ``at``."""
    return min(max(at[0], box.x0), box.x1), min(max(at[1], box.y0), box.y1)
