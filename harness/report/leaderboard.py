"""Trials -> leaderboard. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.base.records import Outcome
from harness.base.stats import Interval
from harness.report.intervals import (
    interval,
    known,
    length_rule,
    measured,
    shared,
    shared_value,
    value_of,
)
from harness.store.result import SHARED

__all__ = ["SHARED", "known", "shared_value", "value_of"]

COLUMNS = (
    "trial",
    "outcome",
    "pref. acc.",
    "true reward",
    "Δ true reward",
    "correct",
    "peak MB",
    "train s",
    "tokens/s",
    "hours",
)
HOURS = "hours"
PREDICTED = "predicted MB"
COST = "cost"
FRONT = "◆"
"""Marks what no other one beats."""
NOTE = "note"
BASE_LABEL = "base (before training)"
LENGTH_LABEL = "length alone"
DROPPED_FIRST = (
    PREDICTED,
    HOURS,
    "tokens/s",
    "correct",
    "Δ true reward",
    "train s",
    "pref. acc.",
    "outcome",
    "peak MB",
    "true reward",
)
SHOWN = ("eval/true_reward", "eval/preference_accuracy", "eval/correct")
"""Metrics that have a column in any case."""
WITHOUT_REWARD = {"likelihood acc.": "eval/likelihood_accuracy"}
"""Columns of trials without a true reward: the base has this figure too."""
NOTHING = ("None", "nan")
"""Values of a setting that say nothing in a name."""
FEW = 3
"""Settings in a name, where so many tell namesakes apart."""
QUALITY = ("eval/true_reward", "eval/preference_accuracy")
NOT_BETTER = (
    "preference_brier", "preference_ece", "ece", "brier", "perplexity", "word_perplexity", "byte_perplexity",
    "bits_per_byte", "declined_answerable", "repetition", "self_similarity", "kl_per_sequence", "kl_per_token",
    "entropy_per_token", "preference_pairs", "length_only_accuracy", "chosen_logratio", "rejected_logratio",
)  # fmt: skip
"""Figures of which more is worse, or says nothing (docs/metrics.md): they rank no recipe."""


@dataclass(frozen=True)
class Price:
    """Of an hour of the device.

    Attributes:
        per_hour: amount.
        currency: its name; may be empty.
    """

    per_hour: float
    currency: str = ""

    def __str__(self) -> str:
        """As it is given on a command line."""
        amount = f"{self.per_hour:f}"
        return f"{amount.rstrip('0').rstrip('.') if '.' in amount else amount} {self.currency}".strip()

    @property
    def heading(self) -> str:
        """Of a column."""
        return f"{COST} ({self.currency})" if self.currency else COST

    def of(self, hours: float | None) -> str:
        """What ``hours`` cost, as text."""
        return formatting.number(None if hours is None else hours * self.per_hour)


def leaderboard(
    frame: pd.DataFrame,
    price: Price | None = None,
    most: int | None = None,
    marked: Collection[str] = (),
    metric: str | None = None,
    form: Callable[[Interval | None], str] = interval,
) -> pd.DataFrame:
    """The display columns of ``results.from_mlflow`` or ``from_folder``, as text, best trial first.

    Two rows of reference stand on top where the trials agree on their figures: the base before training, and
    what preferring the longer completion would score. Missing cells are ``–``, and a column of nothing else is left
    out; brackets are 95 % intervals over held-out pairs or prompts. The column ``note`` with the reasons is there only
    if a row has one, a cost only with a price.

    Args:
        frame: trials.
        price: of an hour of the device.
        most: rows of trials; None is all.
        marked: ids of trials that get the mark of the front.
        metric: that ranks; None is the usual one.
        form: of figures that have an interval.
    """
    shown = ranked(frame, metric).head(len(frame) if most is None else most)
    trials = zip(shown.to_dict("records"), training_s(shown), strict=True)
    more = {} if metric is None or metric in SHOWN else {metric.partition("/")[2]: metric}
    if not known(frame, "eval/true_reward"):
        more |= {heading: name for heading, name in WITHOUT_REWARD.items() if known(frame, name) and name != metric}
    rows = _reference_rows(frame, form, more) + [_row(trial, seconds, price, form, more) for trial, seconds in trials]
    for row, trial_id in zip(rows[-len(shown) :], shown["trial_id"], strict=True):
        row["trial"] += f" {FRONT}" * (trial_id in marked)
    columns = [*COLUMNS, *([price.heading] if price else []), *([NOTE] if any(row[NOTE] for row in rows) else [])]
    if known(frame, "memory/predicted_peak_mb"):
        columns.insert(columns.index("peak MB") + 1, PREDICTED)
    columns[2:2] = more
    board = pd.DataFrame(rows, columns=columns).fillna(formatting.MISSING)
    kept = [c for c in columns if c not in DROPPED_FIRST or c == "outcome" or set(board[c]) != {formatting.MISSING}]
    return pd.DataFrame(board[kept])


def ranked(frame: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """Rows in order: successful trials by the metric, then true reward, then preference accuracy; the rest by outcome.

    Adds the column ``label`` (see ``labels``).
    """
    ordered = frame.assign(label=labels(frame)).reset_index(drop=True)
    outcomes, ids = [str(o) for o in ordered["outcome"]], [str(t) for t in ordered["trial_id"]]
    names = [*([metric] if metric else []), *QUALITY]
    values = [[-v if v == v else math.inf for v in _numbers(ordered, name)] for name in names]

    def key(position: int) -> tuple[Any, ...]:
        if not succeeded(outcomes[position]):
            return 1, outcomes[position], ids[position]
        return 0, *(column[position] for column in values), ids[position]

    return ordered.iloc[sorted(range(len(ordered)), key=key)].reset_index(drop=True)


def labels(frame: pd.DataFrame) -> list[str]:
    """What to call each trial: its id without the digest, and the settings in which namesakes differ."""
    return told_apart([formatting.short_id(t) for t in frame["trial_id"]], frame)


def told_apart(names: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Names with the settings in which the rows of namesakes differ.

    Where those do not tell them apart, their sweeps do: one trial by other code. Where nothing does, the trial's id.
    """
    found = list(names)
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    for group in places.values():
        if len(group) > 1:
            for name, place in zip(_distinct(frame.iloc[group], names[group[0]]), group, strict=True):
                found[place] = name
    return found


def _distinct(rows: pd.DataFrame, name: str) -> list[str]:
    """Names of namesakes: the shortest that tell them all apart."""
    settings = pd.DataFrame(rows.filter(regex=r"^params\.(?!eval\.|seed|train\.seed)")).astype("str")
    differing = [str(c) for c in settings if len(set(settings[c])) > 1]
    telling = _telling(differing)
    tried = [_with_settings(name, pd.DataFrame(settings[some]), differing) for some in (telling[:FEW], telling)]
    ids = [str(trial) for trial in rows["trial_id"]]
    if "sweep" in rows:
        tried += [[f"{one} sweep={sweep}" for one, sweep in zip(tried[0], rows["sweep"], strict=True)], ids]
        ids = [f"{trial} sweep={sweep}" for trial, sweep in zip(ids, rows["sweep"], strict=True)]
    return next((found for found in tried if len(set(found)) == len(rows)), ids)


def _with_settings(name: str, settings: pd.DataFrame, differing: Sequence[str]) -> list[str]:
    """A name for each row, with these of its settings."""
    found = []
    for values in settings.itertuples(index=False):
        told = {c: v for c, v in zip(settings, values, strict=True) if isinstance(v, str) and v not in NOTHING}
        words = [f"{_short(str(c), differing)}={v}" for c, v in told.items()]
        found.append(" ".join([name, *dict.fromkeys(words)]))  # a stage repeats what its component says
    return found


def _telling(columns: list[str]) -> list[str]:
    """Of settings that differ, those that say why: of another component its name, of a part that some lack its own."""
    others = [c.removesuffix("name") for c in columns if c.endswith(".name")]
    left = [c for c in columns if c.endswith(".name") or not c.startswith(tuple(others))]
    parts = [c.removesuffix("class") for c in left if c.endswith(".class")]
    bare = [p for p in parts if sum(c.startswith(p) for c in left) == 1]
    return [c for c in left if not c.endswith(".class") or c.removesuffix("class") in bare]


def _short(column: str, varying: Sequence[str]) -> str:
    """A setting's last word; after its part's, where some lack the part."""
    part, _, last = column.removesuffix(".name").rpartition(".")
    return f"{part.rpartition('.')[2]}.{last}" if f"{part}.class" in varying and last != "class" else last


def succeeded(outcome: object) -> bool:
    """Whether a trial with this outcome has its numbers."""
    return outcome in (Outcome.FINISHED, Outcome.REUSED)


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of successful trials."""
    return pd.DataFrame(frame[[succeeded(o) for o in frame["outcome"]]])


def rankable(frame: pd.DataFrame) -> list[str]:
    """Metrics of the successful trials that can rank them: what an evaluator measured, where higher is better."""
    done, tails = finished(frame), ("_stderr", "_low", "_high")
    return [
        str(name)
        for name in done.columns
        if str(name).startswith("eval/") and not str(name).endswith(tails) and _higher_is_better(str(name))
        if known(done, str(name))
    ]


def _higher_is_better(name: str) -> bool:
    tail = name.rpartition("/")[2]
    begins, ends = ("completion_tokens", "distinct_"), ("_kl_per_token", "_mb", "truncated")
    return tail not in NOT_BETTER and not tail.startswith(begins) and not tail.endswith(ends)


def quality_name(frame: pd.DataFrame) -> str | None:
    """The metric that ranks: true reward where any successful trial has it, else preference accuracy."""
    done = finished(frame)
    return next((n for n in QUALITY if known(done, n)), None)


def _row(
    trial: dict[Any, Any],
    training: float,
    price: Price | None,
    form: Callable[[Interval | None], str],
    more: Mapping[str, str],
) -> dict[str, str]:
    def figure(name: str) -> str:
        return form(measured(trial, name))

    reason, hours = trial.get("reason"), hours_of(trial)
    return {
        "trial": trial["label"],
        "outcome": str(trial["outcome"]),
        **{heading: figure(name) for heading, name in more.items()},
        "pref. acc.": figure("eval/preference_accuracy"),
        "true reward": figure("eval/true_reward"),
        "Δ true reward": formatting.number(value_of(trial, "delta/true_reward"), signed=True),
        "correct": figure("eval/correct"),
        "peak MB": formatting.whole(value_of(trial, "memory/peak_mb")),
        PREDICTED: predicted(trial),
        "train s": formatting.seconds(training),
        "tokens/s": formatting.whole(value_of(trial, "throughput/train_tokens_per_s")),
        HOURS: formatting.number(hours),
        **({price.heading: price.of(hours)} if price else {}),
        NOTE: "" if reason is None or pd.isna(reason) else " ".join(str(reason).split()),
    }


def predicted(row: Any) -> str:
    """Predicted peak memory, and how far it is off the measured one: ``1,234 (+5 %)``.

    A trial that did not finish never came to its peak: a difference to where it stopped would mean nothing.
    """
    said, peak = value_of(row, "memory/predicted_peak_mb"), value_of(row, "memory/peak_mb")
    whole = said and peak and succeeded(row.get("outcome", Outcome.FINISHED))
    off = f" ({said / peak - 1:+.0%})".replace("%", " %") if whole and said and peak else ""
    return formatting.whole(said) + off


def hours_of(row: Any) -> float | None:
    """Hours that a trial had the device, from its start to its end, less what it built for all trials."""
    seconds = value_of(row, "time/total_s")
    return None if seconds is None else max(0.0, seconds - (value_of(row, SHARED) or 0.0)) / 3600


def hours_heading(frame: pd.DataFrame) -> str:
    """``GPU-h`` where every trial ran on a GPU, whose hours are what one pays for."""
    devices = set(known(frame, "device"))
    return "GPU-h" if devices and all(str(d).startswith("cuda") for d in devices) else HOURS


def training_s(frame: pd.DataFrame) -> pd.Series:
    """Seconds of training as one waits for them: the clock books rollouts on a phase of their own."""
    train, rollout = (pd.Series(_numbers(frame, f"time/{phase}_s"), frame.index) for phase in ("train", "rollout"))
    return train + rollout.fillna(0.0)


def _numbers(frame: pd.DataFrame, name: str) -> list[float]:
    """A column as floats, NaN where it is missing or there is no such column."""
    return [float(v) for v in frame[name]] if name in frame else [math.nan] * len(frame)


def _reference_rows(
    frame: pd.DataFrame, form: Callable[[Interval | None], str], more: Mapping[str, str]
) -> list[dict[str, str]]:
    empty = {**dict.fromkeys(COLUMNS, formatting.MISSING), NOTE: ""}
    figures = {"true reward": "baseline/true_reward", "correct": "baseline/correct"}
    figures |= {heading: name.replace("eval/", "baseline/", 1) for heading, name in more.items()}
    base = {heading: form(shared(frame, name)) for heading, name in figures.items()}
    accuracy, rule = length_rule(frame)
    length = {"trial": f"{LENGTH_LABEL} ({rule})", "pref. acc.": form(accuracy)}
    rows = [{**empty, "trial": BASE_LABEL, **base}, {**empty, **length}]
    return [row for row in rows if any(v != formatting.MISSING for c, v in row.items() if c not in ("trial", NOTE))]
