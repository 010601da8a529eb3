"""What a reader does next with a report: load the best policy, and understand what is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath

import pandas as pd

from harness.base import absences, formatting
from harness.report.intervals import value_of
from harness.report.leaderboard import finished
from harness.report.recipes import Recipe


def best_seed(recipe: Recipe, metric: str | None) -> pd.Series:
    """The trial of a recipe that stands highest in the table; the first seed where none has the metric."""
    rows = recipe.frame
    values = [] if metric is None or metric not in rows else [float(v) for v in rows[metric]]
    known = [place for place, value in enumerate(values) if math.isfinite(value)]
    return rows.iloc[max(known, key=values.__getitem__, default=0)]


def place_of_policy(found: Sequence[Recipe], metric: str | None) -> PurePath | None:
    """The folder of the first recipe's policy; None where none was kept, or a baseline alone was measured."""
    if not found:
        return None
    trial = best_seed(found[0], metric)
    folder, kept = trial.get("folder"), trial.get("params.train.save")
    if not isinstance(folder, str) or kept not in ("adapter", "full") or trial.get("algo") == "none":
        return None
    return PurePath(folder) / "artifacts" / "model"


def policy(found: Sequence[Recipe], metric: str | None) -> str:
    """Where the first recipe's policy is, in a sentence; nothing where there is none."""
    if (place := place_of_policy(found, metric)) is None:
        return ""
    return (
        f"The policy of {formatting.escape(found[0].label)} is in `{formatting.printable(str(place))}`; "
        "its README.md says what it is and has the lines that load it."
    )


def absent(frame: pd.DataFrame) -> list[str]:
    """What could not be measured, a line for each reason."""
    done = finished(frame)
    reasons: dict[str, dict[str, set[str]]] = {}
    for row in done.to_dict("records"):
        for name, why in absences.of_row({str(k): v for k, v in row.items()}).items():
            if value_of(row, name) is not None:
                continue  # a later attempt has measured it
            reasons.setdefault(why, {}).setdefault(name.partition("/")[2], set()).add(str(row["trial_id"]))
    if not reasons:
        return []
    lines = []
    for why, names in reasons.items():
        trials = set().union(*names.values())
        whose = "" if len(trials) == len(done) else f" ({len(trials)} of {len(done)} trials)"
        named = ", ".join(f"`{formatting.printable(n)}`" for n in sorted(names))
        lines.append(f"- {named}{whose}: {formatting.escape(why, 300)}")
    return ["## Not measured", "\n".join(lines)]
