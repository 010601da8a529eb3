"""What a task must give, held against what one gave: its rows, and its score of a completion. Pure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.base.errors import UserError, UserErrors
from harness.tasks.base import Score, Task, TaskData
from harness.tasks.reading.messages import OTHER_NAMES

WANTED = {
    "train_pairs": ("prompt", "chosen", "rejected"),
    "train_unpaired": ("prompt", "completion", "label"),
    "train_prompts": ("prompt",),
    "eval_pairs": ("prompt", "chosen", "rejected"),
    "eval_prompts": ("prompt",),
}
TRIED = ("an answer", "")
"""Completions that a score is tried with; a model may say nothing at all."""
SPLITS = ("validation", "test")
OTHERS_ROLES = {name: ours for name, ours in OTHER_NAMES.items() if ours != "tool"} | {"chatbot": "assistant"}
"""Speakers of other formats, which most chat templates pass over without a word; some know other names of tools."""
WORDS, ROWS = ("completion", "text", "response", "output"), ("row", "prompt", "example")
REPEATS, LOOKED_AT = 8, 200
"""Characters of a prompt, and rows, from which a repeated prompt is seen."""


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
        if (wrong := _splits_problem(kind, value)) is not None:
            errors.append(UserError(f"{kind} {wrong}", key="task", value=name, fix=f"{kind}={{'test': [...]}}"))
            continue
        parts = value if isinstance(value, Mapping) else {"": value}
        for split, rows in parts.items():
            where = f"{kind}[{split!r}]" if split else kind
            if (wrong := first_wrong(rows, wanted)) is not None:
                errors.append(UserError(f"{where}{wrong}", key="task", value=name, fix=_example(wanted)))
    if not errors and task.has_reward:
        errors += _score_problems(task, data, name)
    elif not errors and (type(task).score, type(task).scores) != (Task.score, Task.scores):
        rule, fix = "score() is there, and has_reward is not, so nobody asks it", "has_reward: ClassVar[bool] = True"
        errors.append(UserError(rule, key="task", value=name, fix=fix))
    if errors:
        raise UserErrors(errors)
    repeated = _repeated(data)
    return data if repeated is None else replace(data, notes=(*data.notes, repeated))


def _splits_problem(kind: str, value: Any) -> str | None:
    """Whether held-out rows are by split, under names that somebody reads."""
    if not kind.startswith("eval_"):
        return None
    if not isinstance(value, Mapping):
        return f"must be a dictionary of rows by split, not {type(value).__name__}"
    odd = next((name for name in value if name not in SPLITS), None)
    return None if odd is None else f"has the split {odd!r}, which nothing reads: splits are {' and '.join(SPLITS)}"


def _repeated(data: TaskData) -> str | None:
    """A note on completions that say their prompt first: they would be trained on as part of the answer."""
    sides = [(row["prompt"], row["chosen"]) for row in data.train_pairs[:LOOKED_AT]]
    sides += [(row["prompt"], row["completion"]) for row in data.train_unpaired[:LOOKED_AT]]
    texts = [(p, c) for p, c in sides if isinstance(p, str) and isinstance(c, str) and len(p.strip()) >= REPEATS]
    count = sum(completion.startswith(prompt) for prompt, completion in texts)
    if 2 * count <= len(texts):
        return None
    return (
        f"{count} of the first {len(texts)} completions begin with their prompt, which is trained on as part of the "
        "answer; give what comes after it, unless it is the answer"
    )


def swapped(method: Callable[..., Any]) -> bool:
    """Whether a method's own names say that it takes completions before rows."""
    names = [n for n in inspect.signature(method).parameters if n != "self"][:2]
    said = [name.removesuffix("s") for name in names]
    return len(said) == 2 and said[0] in WORDS and said[1] in ROWS


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
            if field == "label":
                fine, kind = isinstance(value, bool | int) and value in (0, 1), "true or false"
            else:
                fine, kind = _is_text(value), "text or a list of {'role', 'content'} messages"
            if not fine:
                return f"[{number}][{field!r}] must be {kind}, not {value!r:.80}"
        texts = [field for field in wanted if field != "label"]
        if isinstance(row.get("prompt"), str) and any(not isinstance(row[field], str) for field in texts):
            return f"[{number}] has text as its prompt and messages after it; let the prompt be messages too"
        if (odd := _odd_role(row, texts)) is not None:
            return f"[{number}] has a message of role {odd!r}, which chat templates call {OTHERS_ROLES[odd]!r}"
    return None


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value)


def _odd_role(row: Mapping[str, Any], fields: Sequence[str]) -> str | None:
    messages = (m for field in fields if not isinstance(row[field], str) for m in row[field])
    return next((role for m in messages if (role := str(m["role"])) in OTHERS_ROLES), None)


def _example(wanted: Sequence[str]) -> str:
    shown = {"prompt": "1+1=", "chosen": "2", "rejected": "3", "completion": "2", "label": True}
    return f"rows such as { ({field: shown[field] for field in wanted}) }"


def _score_problems(task: Task, data: TaskData, name: str) -> list[UserError]:
    """A task with a reward must score any completion of its prompts."""
    if swapped(task.score):
        rule, fix = "score() takes the row first, and then the completion", "def score(self, row, completion)"
        return [UserError(rule, key="task", value=name, fix=fix)]
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
        if isinstance(error, KeyError) and not absent:
            fix = f"give the rows of train_prompts and eval_prompts what score() reads: {error}"
        return UserError(rule, key="task", value=name, fix=fix)
    if (
        isinstance(found, Score)
        and isinstance(found.reward, int | float)
        and math.isfinite(found.reward)
        and found.correct in (True, False)
    ):
        return None
    fix = "return Score(reward=1.0, correct=True)"
    rule = f"score() must return a Score with a finite reward, and correct true or false, not {found!r:.80}"
    return UserError(rule, key="task", value=name, fix=fix)
