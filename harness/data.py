"""The rows of a task, read once per process, and what the audit says of them."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

from harness.audit import Audit, audit
from harness.tasks.base import Task, TaskData

KEPT = 8
"""Tasks whose rows and audit are remembered."""
_AUDITS: dict[int, tuple[TaskData, Audit]] = {}


def audited(data: TaskData) -> Audit:
    """The audit of these rows; made once for the same object."""
    if id(data) not in _AUDITS:
        if len(_AUDITS) >= KEPT:
            _AUDITS.clear()
        _AUDITS[id(data)] = data, audit(data)  # the data is kept too, so that its id stays its own
    return _AUDITS[id(data)][1]


def load_data(task: Task) -> TaskData:
    """The task's rows; read once per process for equal tasks and unchanged files."""
    fingerprint = task.fingerprint() if hasattr(task, "fingerprint") else ""  # type: ignore[attr-defined]
    return _load_keyed(
        _Keyed(task, f"{type(task).__qualname__}{json.dumps(asdict(task), sort_keys=True)}{fingerprint}")
    )


class _Keyed:
    """A task that hashes by its content, for the cache below (dataclasses with dictionaries do not hash)."""

    def __init__(self, task: Task, key: str):
        self.task, self.key = task, key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.key == self.key


@functools.lru_cache(maxsize=KEPT)
def _load_keyed(keyed: _Keyed) -> TaskData:
    return keyed.task.load()
