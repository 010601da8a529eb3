"""What the journals of a trial say: outcome, metrics, result. Pure, but for reading the files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.base.errors import Diverged, Stopped
from harness.base.records import SCHEMA_VERSION, Event, Outcome, TrialResult
from harness.config import fingerprint
from harness.store import journal

DELTA_FROM = ("baseline", "eval")
SUMMED = ("time/train_s", "time/rollout_s", "energy/train_j")
"""Over the attempts of a trial that was continued from a checkpoint; of memory the highest counts."""
SHARED = "time/shared_s"
"""Seconds of stages that the trial built for all: part of its phases, and no cost of its own."""
OF_NO_PHASE = ("time/total_s", "time/start_s", SHARED)
NO_DELTA = (
    "preference_pairs",
    "preference_truncated",
    "length_only_accuracy",
)  # of the data, not of the model


LOST_RANK = "LostRank"
"""Error of a trial of several processes, one of which was killed."""


def decide(
    exit_code: int | None,
    events: Sequence[Event],
    *,
    timed_out: bool = False,
    interrupted: bool = False,
    killed_for_memory: bool = False,
) -> tuple[Outcome, str | None]:
    """Outcome and one-line reason, from how the process ended and what it had said.

    Args:
        exit_code: the process's; negative is a signal, None not known.
        events: the worker's, of this attempt.
        timed_out: the runner ended it for time.
        interrupted: the user did.
        killed_for_memory: the kernel counted an out-of-memory kill meanwhile.
    """
    if any(e.kind == "done" for e in events) and exit_code in (0, None):
        return Outcome.FINISHED, None
    if timed_out:
        return Outcome.TIMEOUT, "took longer than runner.timeout_s"
    if interrupted:
        return Outcome.INTERRUPTED, "interrupted by the user"
    failure = next((e.data for e in reversed(events) if e.kind == "error"), None)
    if failure is not None:
        text = f"{failure['error']}: {failure['message']}".strip()
        if failure["error"] == Diverged.__name__:
            return Outcome.DIVERGED, failure["message"]
        if failure["error"] == Stopped.__name__:
            return Outcome.STOPPED, failure["message"]
        full = failure.get("oom") or (failure["error"] == LOST_RANK and killed_for_memory)
        return (Outcome.OOM if full else Outcome.FAILED), text
    if exit_code is None:
        return Outcome.INTERRUPTED, "the runner ended without saying how"
    if exit_code == -9 and killed_for_memory:
        return Outcome.OOM, "killed by the kernel, out of memory"
    if exit_code < 0:
        return Outcome.FAILED, f"the process was killed by signal {-exit_code}"
    return Outcome.FAILED, f"the process exited with code {exit_code} and no error event (see worker.log)"


def metrics_of(worker: Sequence[Event], runner: Sequence[Event]) -> dict[str, float]:
    """The final metrics of an attempt: single values, the last point of each series, and the deltas."""
    found: dict[str, float] = {}
    attempts = _by_attempt(worker, runner)
    for events in attempts:
        part = _last_values(events)
        for name, value in part.items():
            if name in found and name.startswith("memory/"):
                found[name] = max(found[name], value)
            elif name in found and name in SUMMED:
                found[name] += value
            else:
                found[name] = value
        for name in _not_numbers(events) - set(part):
            found.pop(name, None)  # the newest value is not a number: absent, not stale
    phases = [v for k, v in found.items() if k.startswith("time/") and k not in OF_NO_PHASE]
    if "time/total_s" in found and len(attempts) > 1:
        found["time/total_s"] = sum(phases)
    base, trained = DELTA_FROM
    for name in [n for n in found if n.startswith(f"{trained}/")]:
        tail = name.removeprefix(f"{trained}/")
        if f"{base}/{tail}" in found and not tail.endswith(("_stderr", "_low", "_high")):
            if tail in NO_DELTA or tail.endswith("/truncated"):
                continue
            found[f"delta/{tail}"] = found[name] - found[f"{base}/{tail}"]
    return found


def _by_attempt(worker: Sequence[Event], runner: Sequence[Event]) -> list[list[Event]]:
    """All events, split where an attempt that continues the one before begins."""
    parts: list[list[Event]] = [[]]
    for event in sorted([*worker, *runner], key=lambda e: e.time):
        if event.kind == "attempt" and parts[-1]:
            parts.append([])
        parts[-1].append(event)
    return parts


def _last_values(events: Sequence[Event]) -> dict[str, float]:
    """The last number of every name; seconds from the phase events where the worker did not live to report them."""
    found: dict[str, float] = {}
    for event in events:
        if event.kind in journal.WITH_VALUES:
            for name, value in event.data["values"].items():
                number = journal.number(value)
                if number is not None:
                    found[name] = number
                else:
                    found.pop(name, None)
    phases = [e for e in events if e.kind == "phase"]
    if phases and "time/total_s" not in found and not any(e.kind == "done" for e in events):
        for event in phases:
            seconds = journal.number(event.data.get("previous_s"))
            if seconds is not None:
                name = f"time/{event.data['previous']}_s"
                found[name] = found.get(name, 0.0) + seconds
        last = phases[-1]
        if last.data.get("name"):  # the phase in which it ended
            name = f"time/{last.data['name']}_s"
            found[name] = found.get(name, 0.0) + events[-1].time - last.time
        found["time/total_s"] = sum(v for k, v in found.items() if k.startswith("time/") and k not in OF_NO_PHASE)
    stages = [e.data for e in events if e.kind == "stage"]
    if stages:
        built = (journal.number(data.get("seconds")) for data in stages if not data["hit"] and not data.get("within"))
        found[SHARED] = sum(seconds for seconds in built if seconds is not None)
    return found


def _not_numbers(events: Sequence[Event]) -> set[str]:
    return {
        name
        for event in events
        if event.kind in journal.WITH_VALUES
        for name, value in event.data["values"].items()
        if journal.number(value) is None
    }


def read_result(folder: Path) -> TrialResult | None:
    """``result.json`` of a trial's folder; None where there is none that can be read."""
    try:
        data = json.loads((folder / "result.json").read_bytes())
        result = TrialResult(
            trial_id=data["trial_id"],
            outcome=Outcome(data["outcome"]),
            reason=data["reason"],
            config=data["config"],
            metrics=data["metrics"],
            digests=data["digests"],
            environment=data["environment"],
            fingerprints=data.get("fingerprints") or {},
            schema_version=data["schema_version"],
            train_key=data.get("train_key"),
            eval_key=data.get("eval_key"),
            attempt=journal.number(data.get("attempt")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    sound = all(isinstance(part, dict) for part in (result.config, result.metrics, result.digests, result.environment))
    return result if sound and isinstance(result.trial_id, str) else None


def result_from(folder: Path, outcome: Outcome, reason: str | None, trial: Mapping[str, Any]) -> TrialResult:
    """The result of a trial's latest attempt, from its journals.

    Args:
        folder: the trial's.
        outcome: as decided.
        reason: one line, None for a finished trial.
        trial: what ``trial.json`` holds: id, effective configuration, keys, digests, environment.
    """
    worker = journal.latest_attempt(journal.read(folder / "worker.jsonl"))
    runner = journal.latest_attempt(journal.read(folder / "runner.jsonl"))
    prints = fingerprint.told(worker)
    return TrialResult(
        trial_id=trial["trial_id"],
        outcome=outcome,
        reason=reason,
        config=trial["config"],
        metrics=metrics_of(since_attempt(worker, runner), runner),
        digests={**trial["digests"], **{f"behaviour.{name}": one.digest for name, one in prints.items()}},
        environment=trial["environment"],
        fingerprints={name: asdict(one) for name, one in prints.items()},
        train_key=trial.get("train_key"),
        eval_key=trial.get("eval_key"),
        attempt=next((e.time for e in reversed(runner) if e.kind == "attempt"), None),
    )


def write_result(folder: Path, outcome: Outcome, reason: str | None, trial: Mapping[str, Any]) -> TrialResult:
    """Write ``result.json`` from the journals, in one step (arguments as of ``result_from``)."""
    result = result_from(folder, outcome, reason, trial)
    write_json(folder / "result.json", document(result))
    return result


def document(result: TrialResult) -> dict[str, Any]:
    """What ``result.json`` holds of a result; keys and attempt where they are known."""
    whose = {"train_key": result.train_key, "eval_key": result.eval_key, "attempt": result.attempt}
    return {
        "schema_version": SCHEMA_VERSION,
        "trial_id": result.trial_id,
        "outcome": str(result.outcome),
        "reason": result.reason,
        "config": dict(result.config),
        "metrics": dict(result.metrics),
        "digests": dict(result.digests),
        "environment": dict(result.environment),
        **({"fingerprints": dict(result.fingerprints)} if result.fingerprints else {}),
        **{name: value for name, value in whose.items() if value is not None},
    }


def since_attempt(worker: Sequence[Event], runner: Sequence[Event]) -> list[Event]:
    """The worker's events since the runner's attempt began."""
    began = runner[0].time if runner else 0.0
    return [e for e in worker if e.time >= began - 1e-3]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half."""
    replace_text(path, json.dumps(journal.visible_in(content), indent=1, ensure_ascii=False, default=str))


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step; where that fails, the old one stays and no draft is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
