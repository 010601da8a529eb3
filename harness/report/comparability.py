"""Did the trials of a table do comparable work? What differs, and in which rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.base import formatting
from harness.base.records import Outcome
from harness.config import fingerprint
from harness.report.intervals import judged_alike
from harness.report.leaderboard import finished, value_of
from harness.report.recipes import recipe_labels, with_stopped_seeds

ALIKE = {
    "dataset_digest": "data",
    "base_digest": "base model",
    "evaluator_digest": "evaluation (configuration, code or data of the evaluators, or the rule of the task)",
    "params.eval.split": "evaluation split",
    "code_digest": "training code of the harness",
    "device_name": "device",
    "precision": "precision",
}
TRAINING = "training data (the held-out rows are the same)"
CODE = "code_digest"
PARTS = ("algo", "adapter", "model", "task", "params.reward.name")
"""What a trial's training code is the code of."""
BEHAVES = {"evaluator_digest": fingerprint.JUDGING, "base_digest": fingerprint.BASE}
MOST_NAMED = 4
UNEQUAL_WORK = 2.0
"""Trials whose tokens differ by more than this factor are named."""
CUT = 0.01
"""A share of truncated held-out pairs above which a trial is named."""


def differences(frame: pd.DataFrame) -> list[str]:
    """In what the finished trials did not do comparable work, a sentence each, with the rows concerned."""
    rows = finished(frame).to_dict("records")
    said = [
        line + _behaviour(rows, column)
        for column, words in {
            **ALIKE,
            **({"dataset_digest": TRAINING} if judged_alike(finished(frame)) else {}),
        }.items()
        if (line := _unlike(words, [(_name(r), r.get(column)) for r in (_twins(rows) if column == CODE else rows)]))
    ]
    kto = [(_name(r), r.get("params.train.micro_batch_size")) for r in rows if r.get("algo") == "kto"]
    said += filter(None, [_unlike("micro-batch, from which KTO estimates its KL term", kto)])
    said += filter(None, [_unlike("number of processes that trained", [(_name(r), _processes(r)) for r in rows])])
    said += filter(None, [_unlike("reference", [(_name(r), _reference(r)) for r in rows])])
    said += filter(None, [_unlike("base of Δ alone, eval/ is not touched", [(_name(r), _baseline(r)) for r in rows])])
    return said + _tokens(rows) + _truncated(rows) + _stopped(frame)


def _twins(rows: Sequence[Mapping[Any, Any]]) -> list[Mapping[Any, Any]]:
    """The rows whose training code should be the same as another's and is not: code is that of a trial's own parts."""
    groups: dict[tuple[str, ...], list[Mapping[Any, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(part)) for part in PARTS), []).append(row)
    return [r for group in groups.values() if len({str(r.get(CODE)) for r in group}) > 1 for r in group]


def _unlike(words: str, values: Sequence[tuple[str, Any]]) -> str | None:
    """One sentence if the known values differ: each value with its rows, the most common first."""
    by_value: dict[str, list[str]] = {}
    for label, value in values:
        if value is not None and not pd.isna(value):
            by_value.setdefault(str(value), []).append(label)
    if len(by_value) < 2:
        return None
    ordered = sorted(by_value.items(), key=lambda item: (-len(item[1]), item[0]))
    return (
        f"{words}: "
        + "; ".join(f"{formatting.escape(value, 80)} in {_listed(labels)}" for value, labels in ordered)
        + "."
    )


def _behaviour(rows: Sequence[Mapping[Any, Any]], column: str) -> str:
    """Of a digest that holds code, whether the rows' code behaves alike on its fixture; nothing where none is known."""
    if column not in BEHAVES:
        return ""
    first, *others = {r[column]: fingerprint.of_row(r) for r in rows if isinstance(r.get(column), str)}.values()
    if not all((first, *others)):
        return ""
    found = [fingerprint.compare(first, other, BEHAVES[column]) for other in others]
    if all(one.alike for one in found):
        return " Their code behaves alike on a fixture, so their figures can be compared."
    return f" {formatting.escape(next(one.why for one in found if not one.alike)).capitalize()}."


def _processes(row: Mapping[Any, Any]) -> str | None:
    """How many trained a trial together, and how; of one that trains nothing it says nothing."""
    if row.get("algo") == "none":
        return None
    several, strategy = row.get("params.parallel.processes"), row.get("params.parallel.strategy")
    return f"{several} ({strategy})" if isinstance(strategy, str) else "one"


def _reference(row: Mapping[Any, Any]) -> str | None:
    """What held the row's policy to where it started, in words; None for an algorithm without such a thing.

    Whether that was a copy, the base itself or its log-probabilities computed beforehand makes no difference.
    """
    kind = row.get("reference")
    if kind == "none":
        return "none (beta 0)" if value_of(row, "beta") == 0 else None
    if not isinstance(kind, str) or kind not in ("base", "own", "shared"):
        return None
    return f"the base {_in_bits(row)}" if row.get("reference_quantized") == "True" else "the base"


def _baseline(row: Mapping[Any, Any]) -> str | None:
    """Which base the row's Δ are against, in words; None where nothing is known."""
    words = {"deployed": "as deployed", "quantized": _in_bits(row), "none": "none"}
    return words.get(str(row.get("params.eval.baseline")))


def _in_bits(row: Mapping[Any, Any]) -> str:
    """How a quantized base is stored; adapters know 4 bits, unless they say otherwise."""
    return f"in {row.get('params.adapter.bits', 4)} bits"


def _tokens(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    seen = {_name(r): tokens for r in rows if (tokens := value_of(r, "budget/tokens")) is not None}
    if not seen or max(seen.values()) <= UNEQUAL_WORK * min(seen.values()):
        return []
    least, most = min(seen, key=lambda n: seen[n]), max(seen, key=lambda n: seen[n])
    return [
        f"tokens seen in training: from {seen[least]:,.0f} in {formatting.escape(least)} to {seen[most]:,.0f} in "
        f"{formatting.escape(most)}."
    ]


def _truncated(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    shares = {
        _name(r): cut / pairs
        for r in rows
        if (cut := value_of(r, "eval/preference_truncated")) is not None
        and (pairs := value_of(r, "eval/preference_pairs"))
    }
    cut = {label: share for label, share in shares.items() if share > CUT}
    if not cut:
        return []
    worst = max(cut.values())
    return [f"up to {worst:.0%} of the held-out pairs were cut at the length limit, in {_listed(list(cut))}."]


def _stopped(frame: pd.DataFrame) -> list[str]:
    """Recipes that stand in no comparison, since a seed of theirs was stopped on the way."""
    if Outcome.STOPPED not in set(frame["outcome"]):
        return []
    lost = with_stopped_seeds(frame.assign(recipe=recipe_labels(frame)))
    return [
        "stopped on the way, and therefore not compared (the seeds that went on would be the lucky ones): "
        f"{_listed(lost)}."
    ]


def _name(row: Mapping[Any, Any]) -> str:
    return str(row.get("label") or row["trial_id"])


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(formatting.escape(label) for label in labels[:MOST_NAMED])
    return shown if len(labels) <= MOST_NAMED else f"{shown} and {len(labels) - MOST_NAMED} more"
