"""The plot of over-optimization: what a reward that pays or chooses makes of itself, and of the true one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.base.overoptimization import Law
from harness.report import peaks
from harness.report.figures.drawing import columns, figure, handle, legend, looks, one_line, save, styled
from harness.report.recipes import Recipe
from harness.report.standings import Standings

MOST = 12
"""Recipes that are drawn, the best first."""
Fit = Callable[[Recipe, pd.DataFrame, str], Law | str | None]


@styled
def rewards_over_distance(points: pd.DataFrame, chosen: pd.DataFrame, standings: Standings, path: Path) -> bool:
    """Change of proxy and true reward over the square root of KL: means over seeds, and the law where it was fitted.

    A row of plots for training, one for best-of-n; nothing where no reward stands beside the true one.

    Args:
        points: ``peaks.points``.
        chosen: ``peaks.chosen``.
        standings: names the recipes.
        path: of the PNG.
    """
    ways = [
        ("in training", points, "curve/", peaks.SHARE, peaks.law),
        ("best of n", chosen, peaks.BEST_OF, "step", peaks.law_of_choice),
    ]
    shown = [way for way in ways if _measured(way[1], way[2])]
    recipes = [r for r in standings.recipes if any(_own(r, way[1]) is not None for way in shown)][:MOST]
    if not recipes:
        return False
    styles = looks([r.label for r in recipes])
    labels = [one_line(r.label) for r in recipes]
    drawn = figure(2.7 * len(shown) + 0.3 + 0.17 * -(-len(labels) // columns(labels)))
    grid = drawn.subplots(len(shown), len(peaks.REWARDS), squeeze=False, sharex="row", sharey="row")
    for row, (words, found, prefix, by, law) in zip(grid, shown, strict=True):
        for axes, (name, reward) in zip(row, peaks.REWARDS.items(), strict=True):
            for recipe in recipes:
                _draw(axes, recipe, found, (prefix, by, name), law, styles[recipe.label])
            axes.axhline(0, linewidth=0.6, color="0.7", zorder=0)
            axes.set_title(f"{reward}, {words}")
            axes.set_xlabel("√KL from the base (√nats per completion)")
        row[0].set_ylabel("change since the base")
    legend(drawn, [handle(**styles[r.label], label=label) for r, label in zip(recipes, labels, strict=True)], "lower")
    return save(drawn, path)


def _measured(found: pd.DataFrame, prefix: str) -> bool:
    names = [f"{prefix}{n}" for n in ("kl_per_sequence", "proxy_reward", "true_reward")]
    return all(name in found for name in names) and not found.dropna(subset=names).empty


def _own(recipe: Recipe, found: pd.DataFrame) -> Any:
    own: Any = found[found["run_id"].isin(list(recipe.frame["run_id"]))]
    return None if own.empty else own


def _draw(
    axes: Any, recipe: Recipe, found: pd.DataFrame, names: Sequence[str], law: Fit, style: dict[str, Any]
) -> None:
    """Points of a recipe as markers, means over seeds; the law as a line."""
    (prefix, by, name), own = names, _own(recipe, found)
    if own is None:
        return
    kl, value = f"{prefix}kl_per_sequence", f"{prefix}{name.partition('/')[2]}"
    own = own.dropna(subset=[kl, value])
    if own.empty:
        return
    means = own.groupby(by)[[kl, value]].mean()
    change = means[value] - means[value].iloc[0]
    distance = means[kl].clip(lower=0) ** 0.5
    axes.plot(distance, change, linestyle="", marker=style["marker"], color=style["color"], markersize=3.5)
    fitted = law(recipe, found, name)
    if isinstance(fitted, Law):
        along = np.linspace(0, float(distance.max()), 60)
        axes.plot(along, [fitted(d * d) for d in along], color=style["color"], linestyle=style["linestyle"])
