"""The report's section on curves: where each recipe peaked, and the law of over-optimization. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.base import formatting
from harness.report import peaks
from harness.report.intervals import interval
from harness.report.peaks import Peak
from harness.report.recipes import Recipe


def section(found: Sequence[Recipe], points: pd.DataFrame, figures: Sequence[str], most: int) -> list[str]:
    """Nothing where no curve was drawn.

    Args:
        found: the recipes, the best first.
        points: of their curves (``peaks.points``).
        figures: the section's plots, as markdown.
        most: recipes that are shown.
    """
    metric = peaks.quality(points)
    if metric is None:
        return []
    words, rows = peaks.QUALITY[metric], []
    for recipe in found[:most]:
        if (one := peaks.peak(recipe, points, metric)) is not None:
            rows.append([formatting.escape(recipe.label), *_cells(one)])
    if not rows:
        return []
    said = (
        f"Points of the curve, on held-out rows that are the same for all of them (`eval.at`): where the mean {words} "
        "over seeds was highest, and what was left of it at the end. **Bold**: a loss beyond 1.96 standard errors of "
        "the rows. The highest of several noisy points flatters itself, so a small loss is no proof."
    )
    heads = ["recipe", "seeds", "peaked at", words, "at the end", "lost since"]
    return ["## Over training", said, formatting.table(heads, rows), *figures, *_laws(found[:most], points)]


def _cells(one: Peak) -> list[str]:
    at = "the base" if one.share == 0 else "the end" if one.share == 1 else f"{one.share:.0%} of the budget"
    lost = "–" if one.share == 1 else formatting.number(one.lost)
    shown = f"**{lost}**" if one.beyond_noise else lost
    return [str(one.seeds), at, formatting.number(one.value), formatting.number(one.last), shown]


def _laws(found: Sequence[Recipe], points: pd.DataFrame) -> list[str]:
    rows, without, drawn = [], [], set()
    for recipe in found:
        for name, words in peaks.REWARDS.items():
            fitted = peaks.law(recipe, points, name)
            if isinstance(fitted, str):
                without.append(f"{formatting.escape(recipe.label)}, {words}: {fitted}")
            elif fitted is not None:
                drawn.add(fitted.drawn)
                whose = [formatting.escape(recipe.label), words]
                rows.append([*whose, interval(fitted.alpha), interval(fitted.beta), str(fitted.points)])
    reasons = [f"*No fit for {'; '.join(without)}.*"] if without else []
    if not rows:
        return reasons
    said = (
        "The change of a reward against the base as R(d) = d (α − β log d), d = √KL "
        f"([Gao et al. 2022](https://arxiv.org/abs/2210.10760)), by least squares; 95 % intervals by bootstrap over "
        f"{' or '.join(sorted(drawn))}. Where the true reward's β is above the proxy's, the proxy is optimized "
        "beyond what it stands for."
    )
    return [
        "### Over-optimization",
        said,
        formatting.table(["recipe", "of", "α", "β", "points"], rows, left=2),
        *reasons,
    ]
