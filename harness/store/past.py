"""What a trial's folder says of its past. The runner's journal is the truth, and the other files are made from it.

A trial may be killed between any two of its writes, and a disk may be full at any of them. So an ``attempt`` line
carries all that the attempt is about, and ``result.json`` says which attempt it is of and under which keys it was
made: where it is lost, damaged or of another attempt, it is made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.records import Event, Outcome, TrialResult
from harness.store import journal
from harness.store.result import read_result, result_from

_LANDMARKS = (b'"attempt"', b'"outcome"')


@dataclass(frozen=True)
class Past:
    """The latest attempt at a trial.

    Attributes:
        began: its ``attempt`` event; None where no attempt is journalled.
        ended: its ``outcome`` event; None while it is open.
        about: what it is about, as ``trial.json`` holds it; empty where nothing tells.
        since: when the first of the attempts began that it continues, in seconds since the epoch; its own start where
            it builds on none.
    """

    began: Event | None
    ended: Event | None
    about: Mapping[str, Any]
    since: float = 0.0

    @property
    def outcome(self) -> Outcome | None:
        """How it ended."""
        return None if self.ended is None else Outcome(self.ended.data["outcome"])

    @property
    def reason(self) -> str | None:
        """Why it ended so."""
        return None if self.ended is None else self.ended.data.get("reason")


def trial_folders(sweep: Path) -> list[Path]:
    """The folders of a sweep's trials: those that a journal or a description makes one."""
    found = {p.parent for name in ("trial.json", "runner.jsonl", "result.json") for p in sweep.glob(f"*/{name}")}
    return sorted(found)


def past_of(folder: Path) -> Past:
    """The latest attempt at the trial of ``folder``, from the few lines of the journal that tell."""
    began = ended = None
    since = 0.0
    for event in _landmarks(folder / "runner.jsonl"):
        if event.kind == "attempt":
            since = since if since and event.data.get("continues") else event.time
            began, ended = event, None
        elif event.kind == "outcome" and event.data["outcome"] in set(Outcome):
            ended = event
            whose = event.data.get("attempt")
            if whose is not None and (began is None or whose != began.time):
                began = ended = None  # the line of its attempt is damaged: whose outcome it is cannot be told
    return Past(began, ended, _about(folder, began), since)


def result_of(folder: Path) -> TrialResult | None:
    """The result of the latest attempt that has ended; None where there is none. Writes nothing.

    ``result.json`` where it is of that attempt, else what the journals say. Without a journal it is all there is.
    """
    past, written = past_of(folder), read_result(folder)
    if past.ended is None or past.began is None or _is_of(written, past):
        return written
    return _from_journals(folder, past) or written


def settled(folder: Path) -> bool:
    """Whether ``result.json`` and ``trial.json`` say what the journal says of an attempt that has ended."""
    past = past_of(folder)
    if past.began is None or past.ended is None or not past.about:
        return True
    return _is_of(read_result(folder), past) and _read_object(folder / "trial.json") == past.about


def description(folder: Path) -> Mapping[str, Any]:
    """What the latest attempt is about; empty where nothing tells."""
    return past_of(folder).about


def _is_of(result: TrialResult | None, past: Past) -> bool:
    """Whether a result is of this attempt, made under its keys."""
    if result is None or past.began is None or (result.outcome, result.reason) != (past.outcome, past.reason):
        return False
    began = past.began.data
    return result.attempt == past.began.time and (result.train_key, result.eval_key) == (
        began.get("train_key"),
        began.get("eval_key"),
    )


def _from_journals(folder: Path, past: Past) -> TrialResult | None:
    if not past.about or past.outcome is None:
        return None
    return result_from(folder, past.outcome, past.reason, past.about)


def _about(folder: Path, began: Event | None) -> dict[str, Any]:
    """What an attempt is about: its own line says it; of older ones the files, where they have its keys."""
    files = [_read_object(folder / name) for name in ("trial.json", "result.json")]
    if began is None:  # the journal is lost: what has been measured outlasts what was to be
        known = [f for f in reversed(files) if f and _complete(f)]
        return next((f for f in known if f.get("eval_key")), known[0] if known else {})
    told = began.data.get("trial")
    if isinstance(told, Mapping) and _complete(told):
        return dict(told)
    keys = {key: began.data.get(key) for key in ("train_key", "eval_key")}
    for file in files:
        if file and _complete(file) and all(file.get(k) == v for k, v in keys.items() if v is not None):
            return file
    # A description of other keys than the attempt's: written for a next attempt that never began. Its keys and
    # what explains them are not this attempt's, so they are left out; the old result knows the rest.
    stale = next((f for f in reversed(files) if f and _complete(f)), None)
    if stale is None:
        return {}
    return {**stale, **{k: v for k, v in keys.items() if v is not None}, "why": {}}


def _complete(about: Mapping[str, Any]) -> bool:
    return isinstance(about.get("trial_id"), str) and all(
        isinstance(about.get(name), Mapping) for name in ("config", "digests", "environment")
    )


def _landmarks(path: Path) -> list[Event]:
    """The ``attempt`` and ``outcome`` events; the many others are not parsed."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = (journal.event_of(line) for line in lines[:-1] if any(mark in line for mark in _LANDMARKS))
    return [event for event in found if event is not None]


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
