"""What one choice costs, the rest alike: full against LoRA, DPO against PPO, one rank against another. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.base import formatting, stats
from harness.base.spread import smallest_step
from harness.base.stats import Interval
from harness.report.intervals import LEGEND, gap_of, interval
from harness.report.leaderboard import finished, training_s

AXES = {
    "algo": "algo",
    "adapter": "adapter",
    "beta": "beta",
    "rank": "rank",
    "reward": "params.reward.name",
    "model": "model",
    "task": "task",
    "learning rate": "params.train.learning_rate",
}
"""Axis -> the column it stands in."""
FOLLOWS = {
    "algo": ("beta", "reward", "learning rate"),
    "adapter": ("rank", "learning rate"),
    "model": ("learning rate",),
}
"""Axis -> axes that follow from it and are averaged over, not matched: each algorithm's beta is a thing of its own."""
_NOT_TRAINING = ("params.eval.", "params.seed", "params.train.seed")
MOST_LEVELS = 20
"""Of an axis that are told, in order."""
FIRST = ("full", "none")
"""Levels that others are compared with, where they are there; else the first in order."""


@dataclass(frozen=True)
class Effect:
    """Going from one level of an axis to another.

    Attributes:
        cells: combinations of all other axes, seeds included, that have both levels.
        seeds: among them; cells of one seed share its luck, so seeds are what the interval is over.
        quality: mean difference, with a t interval; without bounds of a single seed.
        memory, time: geometric mean of the ratios of peak memory and of training time; None where not measured.
    """

    axis: str
    before: str
    after: str
    cells: int
    seeds: int
    quality: Interval
    memory: float | None
    time: float | None


def effects(frame: pd.DataFrame, metric: str | None) -> list[Effect]:
    """The effect of every level of every axis that varies among the finished trials."""
    if metric is None or metric not in frame:
        return []
    done = finished(frame).dropna(subset=[metric])
    cells = pd.DataFrame(
        {axis: _levels(done, column) for axis, column in AXES.items()} | {"seed": _levels(done, "seed")}
    )
    cells["quality"] = done[metric].to_list()
    cells["memory"] = done["memory/peak_mb"].to_list() if "memory/peak_mb" in done else math.nan
    cells["time"] = training_s(done).to_list()
    varying = [axis for axis in AXES if len(set(cells[axis])) > 1]
    settings = {str(c): _levels(done, str(c)) for c in done if _is_other_setting(str(c))}
    others = [c for c, values in settings.items() if len(set(values)) > 1]
    cells = pd.concat([cells, pd.DataFrame({c: settings[c] for c in others})], axis=1)
    found = []
    for axis in varying:
        rest = [a for a in [*varying, "seed"] if a != axis and a not in FOLLOWS.get(axis, ())]
        if not _independent(cells, axis, varying):
            continue
        rest += [c for c in others if _was_chosen(cells, c, [axis, *rest])]
        tables = {name: _by_level(cells, axis, rest, name) for name in ("quality", "memory", "time")}
        levels = _ordered([str(c) for c in tables["quality"].columns])
        for after in levels[1:MOST_LEVELS]:
            if (effect := _effect(axis, levels[0], after, tables)) is not None:
                found.append(effect)
    return found


def section(found: Sequence[Effect], metric: str | None) -> list[str]:
    """The report's section; nothing where no axis varies alone."""
    if not found or metric is None:
        return []
    rows = [
        [
            e.axis,
            f"{formatting.escape(e.before)} → {formatting.escape(e.after)}",
            str(e.cells),
            str(e.seeds),
            interval(gap_of(e.quality, metric)),
            _ratio(e.memory),
            _ratio(e.time),
        ]
        for e in found
    ]
    words = metric.partition("/")[2].replace("_", " ")
    table = formatting.table(
        ["axis", "change", "pairs", "seeds", f"Δ {words}", "peak memory", "train time"], rows, left=2
    )
    told = (
        "Each pair of trials differs in one axis and in what goes with it (an algorithm's β, an adapter's rank, the "
        "recipe's settings of training). "
        f"Mean difference. {LEGEND} over the seeds, since pairs of one seed share its luck; a single seed has none. "
        "With two or three seeds such an interval is wide; the verdicts also use the held-out rows that recipes "
        "have in common, and it is they that decide. "
        "They hold for the settings of this table. Memory and time are geometric means of ratios."
    )
    return ["## What each choice costs", table, told]


def _was_chosen(cells: pd.DataFrame, setting: str, rest: list[str]) -> bool:
    """Whether a setting varies among trials that agree in all axes, and is no part of one."""
    return bool((cells.groupby(rest)[setting].nunique() > 1).any())


def _is_other_setting(column: str) -> bool:
    """Whether a column is a setting of training that no axis stands for."""
    stands = {*AXES.values(), *(f"params.{name}" for name in ("beta", "rank", "algo.beta", "adapter.rank"))}
    return column.startswith("params.") and column not in stands and not column.startswith(_NOT_TRAINING)


def _levels(frame: pd.DataFrame, column: str) -> list[str]:
    if column not in frame:
        return ["" for _ in range(len(frame))]
    return ["" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v) for v in frame[column]]


def _independent(cells: pd.DataFrame, axis: str, varying: Sequence[str]) -> bool:
    """Whether the axis was chosen and does not merely follow from another one that varies."""
    masters = [m for m in varying if axis in FOLLOWS.get(m, ())]
    return not masters or any(len(set(rows[axis])) > 1 for _, rows in cells.groupby(masters))


def _by_level(cells: pd.DataFrame, axis: str, rest: Sequence[str], name: str) -> pd.DataFrame:
    """A row per combination of the rest, a column per level of the axis; repeats are averaged."""
    return cells.pivot_table(index=list(rest), columns=axis, values=name, aggfunc="mean", dropna=True)


def _ordered(levels: Sequence[str]) -> list[str]:
    def key(level: str) -> tuple[int, float, str]:
        number = _number(level)
        return (0 if level in FIRST else 1, math.inf if number is None else number, level)

    return sorted(levels, key=key)


def _number(level: str) -> float | None:
    try:
        return float(level)
    except ValueError:
        return None


def _effect(axis: str, before: str, after: str, tables: Mapping[str, pd.DataFrame]) -> Effect | None:
    quality = tables["quality"]
    both = quality[[before, after]].dropna()
    if both.empty:
        return None
    differences = both[after] - both[before]
    seeds = [str(seed) for seed in both.index.get_level_values("seed")]
    steps = smallest_step([float(v) for v in np.ravel(quality) if not math.isnan(v)])
    least = steps * math.sqrt(0.5 / len(both))  # two values of a quarter of a step squared each, in every cell
    gain = stats.rows_interval(differences.tolist(), seeds, least=least)
    ratios = [_geometric(tables[name], before, after) for name in ("memory", "time")]
    return Effect(axis, before, after, len(both), len(set(seeds)), gain, *ratios)


def _geometric(table: pd.DataFrame, before: str, after: str) -> float | None:
    if not {before, after} <= set(table.columns):
        return None
    both = table[[before, after]].dropna()
    ratios = [a / b for a, b in zip(both[after], both[before], strict=True) if a > 0 and b > 0]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def _ratio(value: float | None) -> str:
    return formatting.MISSING if value is None else f"× {value:.2f}"
