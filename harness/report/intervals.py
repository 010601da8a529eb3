"""What is known of a figure, and how it is written: brackets hold 95 % intervals, ± is half of one. Pure.

Every table of a report uses these functions, so that no mark means two things.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.base.calibration import wilson
from harness.base.stats import Interval

NORMAL = 1.96
SHARES = (
    "preference_accuracy", "likelihood_accuracy", "sequence_likelihood_accuracy", "length_only_accuracy", "correct",
    "ended_by_eos", "win_rate", "acc", "acc_norm", "exact_match", "self_similarity", "repetition",
)  # fmt: skip
ENDS = ("", "_stderr", "_low", "_high")
LEGEND = "Brackets hold 95 % intervals"
SHORT_LEGEND = "±: from the value to the farther end of its 95 % interval"


def known(frame: pd.DataFrame, name: str) -> list[Any]:
    """The values of a column that are not missing; none where there is no such column."""
    column: Any = frame[name] if name in frame else pd.Series(dtype=float)
    return column.dropna().tolist()


def value_of(row: Any, name: str) -> float | None:
    """A number of a row (or of a mapping); None where it is missing."""
    value = row.get(name)
    return None if value is None or bool(pd.isna(value)) else float(value)


def shared_value(frame: pd.DataFrame, name: str) -> float | None:
    """The one value that all trials which have ``name`` agree on, if base and held-out rows are the same; else None."""
    values = known(frame, name)
    if not values or len(set(known(frame, "base_digest"))) != 1 or not judged_alike(frame):
        return None
    return float(values[0]) if max(values) - min(values) <= 1e-6 * max(1.0, abs(max(values))) else None


def judged_alike(frame: pd.DataFrame) -> bool:
    """Whether all trials have the same held-out rows; those of before that was noted, the same data."""
    held = known(frame, "held_out_digest")
    return len(set(held if len(held) == len(frame) else known(frame, "dataset_digest"))) == 1


def is_share(name: str) -> bool:
    """Whether a metric lies between 0 and 1 by its nature, and its interval with it; a difference does not."""
    tail = name.rpartition("/")[2]
    return not name.startswith("delta/") and (tail in SHARES or tail.startswith(("declined_", "exact_match_")))


def measured(row: Any, name: str) -> Interval | None:
    """A figure of one trial with the interval of its held-out rows; of a row of ``averages`` that of its seeds.

    ``<name>_low`` and ``_high`` where they are there; else from ``_stderr``, for a share by Wilson.
    """
    value = value_of(row, name)
    if value is None:
        return None
    low, high, error = (value_of(row, f"{name}{end}") for end in ("_low", "_high", "_stderr"))
    if low is not None and high is not None:
        return Interval(value, low, high, 1, "as recorded")
    if error is None:
        return Interval(value, None, None, 1, "one value")
    if not is_share(name):
        return Interval(value, value - NORMAL * error, value + NORMAL * error, 1, "standard error")
    if error == 0 or not 0 < value < 1:  # all rows agree: how many they are is not known here
        return Interval(value, None, None, 1, "one value")
    return Interval(value, *wilson(value, value * (1 - value) / error**2, NORMAL), 1, "Wilson")


def shared(frame: pd.DataFrame, name: str) -> Interval | None:
    """The same for a figure that all trials of a table agree on; None where they do not."""
    return measured({name + end: shared_value(frame, name + end) for end in ENDS}, name)


LENGTH = "eval/length_only_accuracy"


def length_rule(frame: pd.DataFrame) -> tuple[Interval | None, str]:
    """Accuracy of going by length alone, by whichever side it favours, and that rule in words."""
    found = shared(frame, LENGTH)
    if found is None or found.mean >= 0.5:
        return found, "longer wins"
    low, high = (None if bound is None else 1 - bound for bound in (found.high, found.low))
    return replace(found, mean=1 - found.mean, low=low, high=high), "shorter wins"


def gap_of(found: Interval, name: str) -> Interval:
    """The interval of a difference of two figures ``name``: two shares are at most 1 apart."""
    if not is_share(name) or found.low is None or found.high is None:
        return found
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def interval(found: Interval | None, *, signed: bool = False) -> str:
    """``0.43 [0.40, 0.46]``; the mean alone where there are no bounds."""
    if found is None:
        return formatting.MISSING
    shown = formatting.number(found.mean, signed=signed)
    if found.low is None or found.high is None:
        return shown
    return (
        f"{shown} [{formatting.number(found.low, like=found.mean)}, {formatting.number(found.high, like=found.mean)}]"
    )


def short_interval(found: Interval | None) -> str:
    """``0.43±0.03``, half the width of the interval; of a lopsided one its wider side."""
    if found is None or found.low is None or found.high is None:
        return interval(found)
    reach = max(found.high - found.mean, found.mean - found.low)
    return f"{formatting.number(found.mean)}±{formatting.number(reach, like=found.mean)}"
