"""The baseline: a small JSON under version control, with the values of every seed. Strict about what it reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from harness.base.errors import UserError
from harness.config import fingerprint
from harness.config.fingerprint import Fingerprint
from harness.report.intervals import known, shared_value
from harness.report.recipes import Recipe, recipes

SCHEMA_VERSION = 1
DIGESTS = {"dataset": "dataset_digest", "base": "base_digest", "evaluators": "evaluator_digest"}
"""What must be the same on both sides -> the column it stands in."""
DIGITS = 6
_LEFT_OUT = ("params.eval.", "params.seed", "params.train.seed")


@dataclass(frozen=True)
class Record:
    """One recipe.

    Attributes:
        digests: ``dataset``, ``base`` and ``evaluators``.
        device: name of the device it ran on.
        config: its settings, flattened; without the seed.
        seeds: in the order of the values.
        metrics: name -> a value per seed.
        fingerprints: how its evaluators and its base behave on a fixture; a baseline of before there were any has none.
        of_base: metric -> what the base itself had before training, where all seeds were held to the same one.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    digests: dict[str, str]
    device: str
    config: dict[str, str]
    seeds: list[int]
    metrics: dict[str, list[float]]
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    of_base: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """What a candidate is held to.

    Attributes:
        schema_version: of this file.
        reason: why it was written.
        written: when, ISO 8601, UTC.
        sweep, command, commit: where the values come from.
        environment: versions and processor.
        recipes: label -> values.
        rules: that it was written for, and that a gate on it goes by where it names none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    schema_version: int
    reason: str
    written: str
    sweep: str
    command: str | None
    commit: str
    environment: dict[str, Any]
    recipes: dict[str, Record] = field(default_factory=dict)
    rules: str = "default"


def records(frame: pd.DataFrame, metrics: Sequence[str]) -> dict[str, Record]:
    """The recipes of a sweep's finished trials, a value per seed; metrics that a seed lacks are left out."""
    return {recipe.label: _record(recipe, metrics) for recipe in recipes(frame)}


def _record(recipe: Recipe, metrics: Sequence[str]) -> Record:
    rows, first = recipe.frame, recipe.frame.iloc[0]
    if any(pd.isna(seed) for seed in rows["seed"]):
        raise UserError("has no seed, and a gate is on seeds", key="trial", value=str(first["trial_id"]))
    settings = {
        str(name).removeprefix("params."): str(first[name])
        for name in rows.columns
        if str(name).startswith("params.") and not str(name).startswith(_LEFT_OUT) and isinstance(first[name], str)
    }
    values = {}
    for name in metrics:
        column = [float(v) for v in rows[name]] if name in rows else []
        if column and all(map(math.isfinite, column)):
            values[name] = [_rounded(v) for v in column]
    return Record(
        digests={name: _shared(rows, column) for name, column in DIGESTS.items()},
        device=_shared(rows, "device_name"),
        config=dict(sorted(settings.items())),
        seeds=[int(seed) for seed in rows["seed"]],
        metrics=values,
        fingerprints=_fingerprints(rows),
        of_base=_of_base(rows, metrics),
    )


def _of_base(rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    """The base's own figures of the metrics, which is one base where all seeds have the same."""
    values = {
        name: shared_value(rows, name.replace("eval/", "baseline/", 1)) for name in metrics if name.startswith("eval/")
    }
    return {name: _rounded(value) for name, value in values.items() if value is not None}


def _fingerprints(rows: pd.DataFrame) -> dict[str, Fingerprint]:
    """Those that all seeds share; of code that changed between seeds there is none."""
    first, *others = [fingerprint.of_row(row) for row in rows.to_dict("records")]
    return {
        name: one
        for name, one in first.items()
        if all(name in other and fingerprint.compare({name: one}, {name: other[name]}, name).alike for other in others)
    }


def _shared(rows: pd.DataFrame, column: str) -> str:
    """The value of a column; all of them where seeds differ."""
    return ", ".join(sorted(set(map(str, known(rows, column)))))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def write(path: Path, baseline: Baseline) -> None:
    """As JSON that a reviewer can read: sorted, one line per metric."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(baseline), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(_compact(text) + "\n", encoding="utf-8")


def _compact(text: str) -> str:
    """Lists of numbers on one line."""
    return re.sub(r"\[\s+([-\d.,\se+]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)


def read(path: Path) -> Baseline:
    """A baseline from its file.

    Raises:
        UserError: it is not there, no JSON, of another schema version, or has fields that are unknown, missing or
            of the wrong kind (each named).
    """
    from pydantic import TypeAdapter, ValidationError

    key = "--baseline"
    again = "write it anew: python -m harness gate --update --baseline FILE --reason WHY"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = again if isinstance(error, FileNotFoundError) else None
        raise UserError(f"cannot be read ({error.strerror})", key=key, value=str(path), fix=fix) from None
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", key=key, value=str(path), fix="mend it, or " + again) from None
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"has schema version {version}, and this harness reads {SCHEMA_VERSION}",
            key=key,
            value=str(path),
            fix=again,
        )
    if "policy" in content and "rules" not in content:  # what the field was called
        content = {"rules" if name == "policy" else name: value for name, value in content.items()}
    try:
        found = TypeAdapter(Baseline).validate_python(content)
    except ValidationError as failure:
        said = "; ".join(_said(error) for error in failure.errors()[:5])
        raise UserError(said, key=key, value=str(path), fix="mend it, or " + again) from None
    for label, record in found.recipes.items():
        for name, values in record.metrics.items():
            where = f"recipes.{label}.metrics.{name}"
            if len(values) != len(record.seeds):
                raise UserError(
                    f"{where} has {len(values)} values for {len(record.seeds)} seeds",
                    key=key,
                    value=str(path),
                    fix=again,
                )
            if not all(map(math.isfinite, values)):
                raise UserError(f"{where} holds a value that is no finite number", key=key, value=str(path), fix=again)
        if len(set(record.seeds)) != len(record.seeds):
            raise UserError(f"recipes.{label}.seeds names a seed twice", key=key, value=str(path), fix=again)
    if not found.recipes:
        raise UserError("holds no recipe", key=key, value=str(path), fix=again)
    return found


def _said(error: Any) -> str:
    """One complaint of the validator, with the place."""
    place = ".".join(str(part) for part in error["loc"])
    rule = {"unexpected_keyword_argument": "is not a field", "missing_argument": "is missing", "missing": "is missing"}
    return f"{place} {rule.get(error['type'], error['msg'][0].lower() + error['msg'][1:])}"
