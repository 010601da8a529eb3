"""What a task must give, held against what one gave: its rows, and its score of a completion. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.base.errors import UserError, UserErrors
from harness.tasks.base import Score, Task, TaskData

WANTED = {
    "train_pairs": ("prompt", "chosen", "rejected"),
    "train_unpaired": ("prompt", "completion", "label"),
    "train_prompts": ("prompt",),
    "eval_pairs": ("prompt", "chosen", "rejected"),
    "eval_prompts": ("prompt",),
}
TRIED = ("an answer", "")
"""Completions that a score is tried with; a model may say nothing at all."""


def check_contract(task: Task, data: Any) -> TaskData:
    """The rows, if they are what ``TaskData`` says; a task of the user's own may give anything.

    Raises:
        UserErrors: the first wrong row of each kind, or a score that is none.
    """
    name = f"{type(task).__module__}.{type(task).__qualname__}"
    if not isinstance(data, TaskData):
        rule = f"load() must return a harness.tasks.base.TaskData, not {type(data).__name__}"
        raise UserErrors([UserError(rule, key="task", value=name, fix="return TaskData(train_pairs=[...], ...)")])
    errors = []
    for kind, wanted in WANTED.items():
        value: Any = getattr(data, kind)
        parts = value if isinstance(value, Mapping) else {"": value}
        for split, rows in parts.items():
            where = f"{kind}[{split!r}]" if split else kind
            if (wrong := first_wrong(rows, wanted)) is not None:
                errors.append(UserError(f"{where}{wrong}", key="task", value=name, fix=_example(wanted)))
    if not errors and task.has_reward:
        errors += _score_problems(task, data, name)
    if errors:
        raise UserErrors(errors)
    return data


def first_wrong(rows: Any, wanted: Sequence[str]) -> str | None:
    """What is wrong with the first row that breaks the contract."""
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence):
        return f" must be a list of rows, not {type(rows).__name__}"
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            return f"[{number}] must be a dictionary, not {type(row).__name__}"
        for field in wanted:
            if field not in row:
                return f"[{number}] lacks {field!r} (it has {', '.join(map(repr, row)) or 'nothing'})"
            value = row[field]
            fine = isinstance(value, bool | int) if field == "label" else _is_text(value)
            if not fine:
                kind = "true or false" if field == "label" else "text or a list of {'role', 'content'} messages"
                return f"[{number}][{field!r}] must be {kind}, not {value!r:.80}"
    return None


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value)


def _example(wanted: Sequence[str]) -> str:
    shown = {"prompt": "1+1=", "chosen": "2", "rejected": "3", "completion": "2", "label": True}
    return f"rows such as { ({field: shown[field] for field in wanted}) }"


def _score_problems(task: Task, data: TaskData, name: str) -> list[UserError]:
    """A task with a reward must score any completion of its prompts."""
    rows = [rows[0] for rows in (data.train_prompts, *data.eval_prompts.values()) if rows]
    found = (_score_problem(task, row, text, name) for row in rows for text in TRIED)
    return next(([error] for error in found if error is not None), [])


def _score_problem(task: Task, row: Mapping[str, Any], text: str, name: str) -> UserError | None:
    try:
        found = task.score(row, text)
    except Exception as error:  # whatever the user's code raises
        words = f"{type(error).__name__}: {error}"
        rule = f"score() raised {words} for the completion {text!r} of the row {dict(row)!r:.200}"
        absent = type(task).score is Task.score
        fix = "write score(), or leave has_reward = False" if absent else "score() must take any text"
        return UserError(rule, key="task", value=name, fix=fix)
    if isinstance(found, Score) and math.isfinite(found.reward):
        return None
    fix = "return Score(reward=1.0, correct=True)"
    rule = f"score() must return a Score with a finite reward, not {found!r:.80}"
    return UserError(rule, key="task", value=name, fix=fix)
