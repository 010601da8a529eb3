"""Where the quality of a recipe peaked within its training, from the points of its curves. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.base.overoptimization import Law, Observed, fit
from harness.report.recipes import Recipe

SHARE, SPENT, KL = "curve/share", "curve/spent", "curve/kl_per_sequence"
QUALITY = {
    "curve/true_reward": "true reward",
    "curve/preference_accuracy": "preference accuracy",
}
"""What ranks points, the first that there is -> its words."""
REWARDS = {"curve/true_reward": "true reward", "curve/proxy_reward": "proxy reward"}
SERIES = (SHARE, SPENT, KL, *QUALITY, "curve/proxy_reward", *(f"{name}_stderr" for name in QUALITY))
"""What a report reads of a curve."""
BEST_OF = "best_of/"
"""Before the figures of best-of-n, which are named as the curve's; their step is n."""
CHOSEN = tuple(f"{BEST_OF}{name.partition('/')[2]}" for name in (KL, *REWARDS))
NOISE = 1.96


def points(series: pd.DataFrame) -> pd.DataFrame:
    """A row per point of the curves.

    Args:
        series: in long form (``results.SERIES_COLUMNS``), of any series.

    Returns:
        columns ``run_id``, ``step`` and those of ``SERIES`` that some point has; no rows without a curve.
    """
    own: Any = series[series["name"].isin(list(SERIES))]
    if own.empty:
        return pd.DataFrame({"run_id": [], "step": [], SHARE: []})
    wide: Any = own.pivot_table(index=["run_id", "step"], columns="name", values="value", aggfunc="last")
    return wide.reset_index().dropna(subset=[SHARE])


def quality(found: pd.DataFrame) -> str | None:
    """What ranks the points; None where nothing does."""
    return next((name for name in QUALITY if name in found and bool(found[name].notna().any())), None)


@dataclass(frozen=True)
class Peak:
    """Of a recipe.

    Attributes:
        seeds: whose curves are averaged.
        share: of the budget at which the mean is highest, of equals the first; 0 is the base.
        value: there.
        last: at the end.
        error: standard error of the difference of the two, as if the rows of a point were drawn anew for each.
    """

    seeds: int
    share: float
    value: float
    last: float
    error: float | None

    @property
    def lost(self) -> float:
        """From the peak to the end; 0 where it peaked at the end."""
        return self.value - self.last

    @property
    def beyond_noise(self) -> bool:
        """Whether the loss is more than the rows of a point explain."""
        return self.error is not None and self.lost > NOISE * self.error


def peak(recipe: Recipe, found: pd.DataFrame, metric: str) -> Peak | None:
    """Where the mean over seeds peaked, over the shares that all of them have; None without a finished curve."""
    own = _of(recipe, found, metric)
    seeds = own["run_id"].nunique()
    by = own.groupby(SHARE)[metric]
    means = by.mean()[by.count() >= seeds]
    if not seeds or 1.0 not in means.index:
        return None
    share = float(means.idxmax())
    error = None
    if (name := f"{metric}_stderr") in own:
        both = [own.loc[own[SHARE] == s, name] for s in (share, 1.0)]
        error = math.sqrt(sum(float((errors**2).mean()) for errors in both) / seeds)
    return Peak(seeds, share, float(means[share]), float(means[1.0]), error)


def law(recipe: Recipe, found: pd.DataFrame, reward: str) -> Law | str | None:
    """The law of over-optimization of a recipe, or why it has none; None where KL or the reward was not measured.

    Changes are against the base's point of the same seed.
    """
    if reward not in found or KL not in found:
        return None
    own = _of(recipe, found, reward, KL)
    observed = _changes(own.assign(kl=own[KL], value=own[reward], first=own[SHARE] == 0.0))
    return fit("rl", observed) if observed else None


def chosen(series: pd.DataFrame) -> pd.DataFrame:
    """A row per n of best-of-n: columns ``run_id``, ``step`` (n) and those of ``CHOSEN``; no rows without any."""
    own: Any = series[series["name"].isin(list(CHOSEN))]
    if own.empty:
        return pd.DataFrame({"run_id": [], "step": []})
    wide: Any = own.pivot_table(index=["run_id", "step"], columns="name", values="value", aggfunc="last")
    return wide.reset_index()


def law_of_choice(recipe: Recipe, found: pd.DataFrame, reward: str) -> Law | str | None:
    """The law of best-of-n under a recipe's reward, or why there is none; None where it was not measured.

    Args:
        recipe: whose reward chooses.
        found: ``chosen``.
        reward: as the curve's is called.
    """
    kl, value = (f"{BEST_OF}{name.partition('/')[2]}" for name in (KL, reward))
    if value not in found or kl not in found:
        return None
    own = _of(recipe, found, value, kl)
    observed = _changes(own.assign(kl=own[kl], value=own[value], first=own["step"] == 1))
    return fit("best_of_n", observed) if observed else None


def _changes(own: Any) -> list[Observed]:
    """Of columns ``run_id``, ``kl``, ``value`` and ``first``, which marks the point before any change."""
    observed = []
    for run_id, curve in own.groupby("run_id", sort=False):
        base = curve.loc[curve["first"], "value"]
        if len(base):
            later = curve[~curve["first"]]
            pairs = zip(later["kl"], later["value"], strict=True)
            observed += [Observed(str(run_id), float(kl), float(value - base.iloc[0])) for kl, value in pairs]
    return observed


def _of(recipe: Recipe, found: pd.DataFrame, *names: str) -> Any:
    """The points of a recipe that have all of these figures."""
    own: Any = found[found["run_id"].isin(list(recipe.frame["run_id"]))]
    return own.dropna(subset=list(names))
