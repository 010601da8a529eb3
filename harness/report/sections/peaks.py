"""The report's section on curves: where each recipe peaked, and the law of over-optimization. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.base import formatting
from harness.report import peaks
from harness.report.intervals import interval
from harness.report.peaks import Peak
from harness.report.recipes import Recipe


def section(
    found: Sequence[Recipe], points: pd.DataFrame, chosen: pd.DataFrame, figures: Sequence[str], most: int
) -> list[str]:
    """Nothing where no curve was drawn.

    Args:
        found: the recipes, the best first.
        points: of their curves (``peaks.points``).
        chosen: of best-of-n (``peaks.chosen``).
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
    return ["## Over training", said, formatting.table(heads, rows), *figures, *_laws(found[:most], points, chosen)]


def _cells(one: Peak) -> list[str]:
    at = "the base" if one.share == 0 else "the end" if one.share == 1 else f"{one.share:.0%} of the budget"
    lost = "–" if one.share == 1 else formatting.number(one.lost)
    shown = f"**{lost}**" if one.beyond_noise else lost
    return [str(one.seeds), at, formatting.number(one.value), formatting.number(one.last), shown]


def _laws(found: Sequence[Recipe], points: pd.DataFrame, chosen: pd.DataFrame) -> list[str]:
    rows, without, drawn, ways = [], [], set(), set()
    for recipe in found:
        for name, words in peaks.REWARDS.items():
            for way, fitted in (
                ("training", peaks.law(recipe, points, name)),
                ("best of n", peaks.law_of_choice(recipe, chosen, name)),
            ):
                whose = [formatting.escape(recipe.label), way, words]
                if isinstance(fitted, str):
                    without.append(f"{', '.join(whose)}: {fitted}")
                elif fitted is not None:
                    drawn.add(fitted.drawn)
                    ways.add(way)
                    fit = [interval(fitted.alpha), interval(fitted.beta), f"{fitted.explained:.2f}"]
                    rows.append([*whose, *fit, str(fitted.points)])
    reasons = [f"*No fit for {'; '.join(without)}.*"] if without else []
    if not rows:
        return reasons
    said = (
        "The change of a reward against the base as R(d) = d (α − β log d), d = √KL "
        f"([Gao et al. 2022](https://arxiv.org/abs/2210.10760)), by least squares; 95 % intervals by bootstrap over "
        f"{' or '.join(sorted(drawn))}. R² is the share of the variance that it explains: the law does not fit where "
        "that is low. Where the true reward's β is above the proxy's, the proxy is optimized beyond what it stands for."
    )
    if "best of n" in ways:
        said += (
            " Best of n: of n samples of the base the one that the reward pays best, by R(d) = d (α − β d); its KL is "
            "log n − (n − 1) / n, or less where samples are alike."
        )
    return [
        "### Over-optimization",
        said,
        formatting.table(["recipe", "by", "of", "α", "β", "R²", "points"], rows, left=3),
        *reasons,
    ]
