"""The rows of a task, read once per process, and what the audit says of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from harness.audit import Audit, audit
from harness.tasks.base import Row, Task, TaskData

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


def lengths(data: TaskData, encode: Callable[[Sequence[Row]], Sequence[int]], limit: int) -> dict[str, str]:
    """How many rows are longer than ``limit`` tokens, by kind of rows.

    Args:
        data: a trial's.
        encode: rows -> tokens of each, of a pair the longer side's.
        limit: tokens of prompt and completion after which a row is cut or left out.
    """
    facts = {}
    for name, rows in (
        ("training pairs", data.train_pairs),
        ("training completions", data.train_unpaired),
        *((f"held-out pairs, {split}", rows) for split, rows in data.eval_pairs.items()),
    ):
        if rows:
            tokens = encode(rows)
            cut = sum(n > limit for n in tokens)
            facts[f"{name} beyond {limit:,} tokens"] = (
                f"{cut:,} ({cut / len(rows):.1%}); the longest has {max(tokens):,}"
            )
    return facts


def load_data(task: Task) -> TaskData:
    """The task's rows; read once per process for equal tasks and unchanged files."""
    key = f"{type(task).__module__}.{type(task).__qualname__}{json.dumps(asdict(task), sort_keys=True)}"
    return _load_keyed(_Keyed(task, key + task.fingerprint()))


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
