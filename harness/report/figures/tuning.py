"""The plot of a tuning: the best that so many trials are expected to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.base import best_of
from harness.report.figures.drawing import COLOURS, DASHES, figure, handle, legend, save, styled


@styled
def expected_best(scores: Mapping[str, Sequence[float]], words: str, path: Path) -> bool:
    """A line per search over the number of its trials, with the band of the luck of its draws.

    Args:
        scores: name of each search -> what its trials scored.
        words: what they scored in.
        path: of the PNG.
    """
    from matplotlib.ticker import MaxNLocator

    drawn = figure(3.4)
    axes = drawn.subplots()
    handles = []
    for place, (name, values) in enumerate(scores.items()):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
        found, trials = best_of.curve(values), range(1, len(values) + 1)
        axes.plot(trials, [f.mean for f in found], color=colour, linestyle=dash, marker="o", markersize=3)
        low, high = ([b for f in found if (b := getattr(f, side)) is not None] for side in ("low", "high"))
        axes.fill_between(trials, low, high, color=colour, alpha=0.15, linewidth=0)
        handles.append(handle(color=colour, linestyle=dash, label=name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trials of the search")
    axes.set_ylabel(f"expected best {words.replace('_', ' ')}")
    legend(drawn, handles)
    return save(drawn, path)
