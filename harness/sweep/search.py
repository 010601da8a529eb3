"""What tuning may turn, and the points that it tries: spaces that algorithms declare, drawn by Optuna.

A space maps keys to ranges (``algo.search``). ``{factor: 5}`` is from a fifth to five times the value that the trial
would have, ``{low: 0.1, high: 10}`` a range (``log: true`` where its ends are decades apart; whole numbers stay whole),
and a list its members. What the command line fixes is not searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.base.errors import UserError
from harness.trial.assemble import Setup

Sampler = Literal["random", "tpe"]
FACTOR = 5.0
DIGITS = 3
"""To which drawn numbers are rounded: more say nothing, and stand in the names of things."""
KNOBS = ("beta", "rank")
"""Of the algorithm and the adapter, by their own names at the top."""
RANGE = {"factor", "low", "high", "log"}
FIX = "{factor: 5}, {low: 0.1, high: 10, log: true}, or a list of values"


@dataclass(frozen=True)
class Axis:
    """One key and what it may be.

    Attributes:
        low, high: ends of a range.
        log: drawn evenly in its logarithm.
        choices: the values of a list; empty for a range.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> Any:
        """Optuna's."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def __str__(self) -> str:
        """In words."""
        if self.choices:
            return f"{self.key} of {', '.join(map(str, self.choices))}"
        return f"{self.key} {self.low:.{DIGITS}g}–{self.high:.{DIGITS}g}{' (log)' if self.log else ''}"


def space_of(setup: Setup, fixed: Sequence[str] = ()) -> list[Axis]:
    """What may be turned of a trial.

    Args:
        setup: its components; ranges around a value take it from there.
        fixed: keys that the command line sets.

    Raises:
        UserError: a range is none, or nothing is left to turn.
    """
    declared = _flat(setup.algo.search) or {
        "train.learning_rate": {"factor": FACTOR},
        **({"beta": {"factor": FACTOR}} if setup.beta else {}),
    }
    axes = [_axis(key, wanted, setup) for key, wanted in declared.items() if key not in fixed]
    if not axes:
        rule = f"of {setup.algo.name} the command line fixes everything that could be searched"
        raise UserError(rule, key="tune", value=", ".join(declared), fix="leave one of them out")
    return axes


def _flat(search: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Ranges by their whole keys, such as ``train.learning_rate``; nested mappings are levels of a key."""
    found: dict[str, Any] = {}
    for name, value in search.items():
        if value is not None:
            nested = isinstance(value, Mapping) and not set(value) & RANGE
            found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def _axis(key: str, wanted: Any, setup: Setup) -> Axis:
    name = f"algo.search.{key}"
    if isinstance(wanted, list | tuple) and wanted and all(isinstance(v, str | int | float | bool) for v in wanted):
        return Axis(key, choices=tuple(wanted))
    if not isinstance(wanted, Mapping):
        raise UserError("is no range", key=name, value=wanted, fix=FIX)
    numbers = {k: v for k, v in wanted.items() if k != "log"}
    if {"low", "high"} <= set(numbers):
        numbers.pop("factor", None)  # of the algorithm's own YAML, which a range on the command line comes beside
    if set(numbers) not in ({"factor"}, {"low", "high"}) or not all(_is_number(v) for v in numbers.values()):
        raise UserError("is no range", key=name, value=dict(wanted), fix=FIX)
    if "factor" in numbers:
        value, factor = _value_of(key, setup), float(numbers["factor"])
        if not _is_number(value) or value <= 0 or factor <= 1:
            rule = f"needs a factor above 1 and a positive value to start from, which {key} has not: {value!r}"
            raise UserError(rule, key=name, value=dict(wanted), fix=FIX)
        return Axis(key, value / factor, value * factor, log=True)
    axis = Axis(key, numbers["low"], numbers["high"], bool(wanted.get("log", False)))
    if axis.low >= axis.high or (axis.log and axis.low <= 0):
        rule = "low must be below high" if axis.low >= axis.high else "low must be above 0 where log is true"
        raise UserError(rule, key=name, value=dict(wanted), fix=FIX)
    return axis


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value_of(key: str, setup: Setup) -> Any:
    """What a trial has for a key of the command line; None where it has no such setting."""
    if key in KNOBS:
        return getattr(setup, key)
    found: Any = setup
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    return found


class Search:
    """Points of one space, asked of Optuna and told back; the same questions and answers give the same points.

    Args:
        axes: the space.
        sampler: ``random`` draws each point for itself, ``tpe`` by what the points before it gave.
        seed: of the draws.
    """

    def __init__(self, axes: Sequence[Axis], sampler: Sampler, seed: int):
        """An empty study."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        self._axes = list(axes)
        self._study = optuna.create_study(direction="maximize", sampler=samplers[sampler](seed=seed))

    def ask(self, count: int) -> list[tuple[Any, dict[str, Any]]]:
        """So many points: a handle to tell by, and key -> value."""
        space = {axis.key: axis.distribution() for axis in self._axes}
        asked = [self._study.ask(space) for _ in range(count)]
        return [(trial, {k: _rounded(v) for k, v in trial.params.items()}) for trial in asked]

    def tell(self, trial: Any, score: float) -> None:
        """What a point scored; higher is better."""
        self._study.tell(trial, score)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def overrides_of(point: Mapping[str, Any]) -> list[str]:
    """A point as words of the command line."""
    return [f"{key}={value}" for key, value in point.items()]
