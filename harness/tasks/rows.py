"""From a user's rows to ours: columns, formats, checks. Pure functions; ``splits`` takes it from here.

A row goes one of three ways. It *passes*; it is *skipped* and counted in the notes, where leaving it out is
harmless (an empty completion); or it is *malformed*, and then the user hears of it before anything trains.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from harness.errors import UserError, UserErrors
from harness.tasks.base import Row, Text

Kind = Literal["preferences", "unpaired", "prompts"]
Column = Literal["prompt", "chosen", "rejected", "completion", "label"]

COLUMNS: tuple[Column, ...] = get_args(Column)
REQUIRED: Mapping[Kind, Sequence[Column]] = {
    "preferences": ("chosen", "rejected"),
    "unpaired": ("completion", "label"),
    "prompts": ("prompt",),
}
ROLES = ("system", "developer", "user", "assistant", "tool")
LISTED = 10
"""Malformed rows listed in one message."""

EMPTY_PROMPT = "the prompt is empty"
EMPTY_COMPLETION = "a completion is empty"
EQUAL = "chosen equals rejected"
NOT_A_REPLY = "a completion does not begin with the assistant's turn"

_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_MESSAGES_AS_REPR = re.compile(r"^\[\s*\{\s*['\"](role|content)['\"]\s*:")
_T = TypeVar("_T", str, list[dict[str, str]])


class Skip(Exception):
    """Leave this row out; the argument is the reason, without a number in it."""


class Malformed(Exception):
    """This row breaks a rule: the column concerned, its value, the rule and the fix."""

    def __init__(self, rule: str, *, column: str | None = None, value: Any = None, fix: str | None = None):
        """Keep the parts until the row's number is known."""
        super().__init__(rule)
        self.rule, self.column, self.value, self.fix = rule, column, value, fix


@dataclass(frozen=True)
class Table:
    """Rows as they were read.

    Attributes:
        name: where they come from, as messages say it (``prefs.jsonl``, ``openai/gsm8k[train]``).
        key: the configuration key that chose them (``task.path``).
        columns: names of the columns found, in order.
        rows: one mapping per row, or what is wrong with a row that could not be parsed.
        numbers: per row its line (or row) number, from 1.
        unit: what the numbers count, ``line`` or ``row``.
        encoded: cells cannot nest, so text that parses to a list of messages is one.
    """

    name: str
    key: str
    columns: Sequence[str]
    rows: Sequence[Row | Malformed]
    numbers: Sequence[int]
    unit: str = "row"
    encoded: bool = False

    def __post_init__(self) -> None:
        """A table has rows."""
        if not self.rows:
            raise UserError("holds no rows", key=self.key, value=self.name)


@dataclass(frozen=True)
class Layout:
    """How the user's columns map to ours.

    Attributes:
        kind: what the rows are.
        names: our column -> theirs, for the columns that exist.
        encoded: see ``Table``.
        prompt_end: where a text prompt that chosen and rejected share ends; null for TRL's rule.
    """

    kind: Kind
    names: Mapping[str, str]
    encoded: bool = False
    prompt_end: str | None = None

    def value(self, raw: Row, ours: str) -> Any:
        """One cell; raises ``Malformed`` where the row lacks it."""
        theirs = self.names[ours]
        if theirs not in raw or raw[theirs] is None:
            state = "null" if theirs in raw else "missing"
            raise Malformed(f"is {state}", column=theirs, fix=f"give every row a {theirs}")
        return raw[theirs]

    def text(self, raw: Row, ours: str) -> Text:
        """One cell as text or as checked messages (keys other than role and content are dropped)."""
        value, theirs = self.value(raw, ours), self.names[ours]
        if self.encoded and isinstance(value, str) and value.lstrip().startswith("["):
            value = _decoded(value, theirs)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return [_message(item, theirs) for item in value]
        kind = type(value).__name__
        raise Malformed(f"must be text or a list of messages, not {kind}", column=theirs, value=value)


@dataclass(frozen=True)
class Checked:
    """The rows of one table that passed.

    Attributes:
        name: the table's.
        key: the table's.
        kind: what the rows are.
        rows: in our columns, in the table's order.
        conversational: whether their prompts are lists of messages.
        notes: one line per reason for which rows were skipped.
    """

    name: str
    key: str
    kind: Kind
    rows: Sequence[Row]
    conversational: bool
    notes: Sequence[str] = ()


# -- columns -------------------------------------------------------------------------------------------


def layout_of(
    table: Table, columns: Mapping[Any, str], *, kind: Kind | None = None, prompt_end: str | None = None
) -> Layout:
    """Find our columns in the table; raises ``UserError`` naming the columns found.

    Args:
        table: rows as read.
        columns: our column -> theirs, where the names differ.
        kind: what the rows must be; null takes whichever of paired and unpaired is there, paired first.
        prompt_end: see ``Layout``.
    """
    if not any(isinstance(row, Mapping) for row in table.rows):
        return Layout(kind or "preferences", {})  # no row parsed; ``check`` says why
    theirs = {ours: columns.get(ours, ours) for ours in COLUMNS}
    names = {ours: name for ours, name in theirs.items() if name in table.columns}
    kinds: tuple[Kind, ...] = (kind,) if kind else ("preferences", "unpaired")
    fitting: Kind | None = next((k for k in kinds if all(ours in names for ours in REQUIRED[k])), None)
    # A prompt may be implicit, but not where the user said which column it is.
    asked_prompt = columns.get("prompt", "prompt") != "prompt" and "prompt" not in names
    if fitting and not asked_prompt:
        return Layout(fitting, names, table.encoded, prompt_end)
    # Name first what the table comes closest to: with a completion and no label, label is what is missing.
    nearest = sorted(kinds, key=lambda k: -sum(ours in names for ours in REQUIRED[k]))
    wanted = [["prompt"]] if fitting else [REQUIRED[k] for k in nearest]
    absent = next(ours for ours in wanted[0] if ours not in names)
    raise UserError(
        f"the columns {' or '.join(' + '.join(theirs[o] for o in need) for need in wanted)} are needed"
        f" and {theirs[absent]} is not there; found: {', '.join(table.columns) or 'none'}",
        key=table.key,
        value=table.name,
        fix=f"say which column it is: task.columns.{absent}=NAME",
    )


# -- one row -------------------------------------------------------------------------------------------


def pair(raw: Row, layout: Layout) -> Row:
    """One ``prompt, chosen, rejected`` row; the prompt may be implicit in the two completions."""
    chosen, rejected = layout.text(raw, "chosen"), layout.text(raw, "rejected")
    prompt = layout.text(raw, "prompt") if "prompt" in layout.names else None
    if chosen == rejected:
        raise Skip(EQUAL)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            cut = shared_prefix(chosen, rejected, layout.prompt_end)
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("must be text where chosen is, messages where chosen is", column=layout.names["rejected"])
    elif isinstance(prompt, list):
        # Some exports repeat the prompt at the head of both conversations.
        if prompt and chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif prompt is None or not (_is_reply(chosen) and _is_reply(rejected)):
        # As TRL: full conversations carry their own prompt, whatever a text column beside them says.
        cut = shared_prefix(chosen, rejected)
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    prompt, (chosen, rejected) = _aligned(prompt, chosen, rejected)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def unpaired(raw: Row, layout: Layout) -> Row:
    """One ``prompt, completion, label`` row; the prompt of a full conversation is all but its last reply."""
    completion = layout.text(raw, "completion")
    prompt = layout.text(raw, "prompt") if "prompt" in layout.names else None
    label = label_of(layout.value(raw, "label"), layout.names["label"])
    if isinstance(completion, str):
        if prompt is None:
            raise UserError(
                "completions that are text need a prompt column",
                key="task.columns",
                fix="task.columns.prompt=NAME",
            )
    elif isinstance(prompt, list):
        if prompt and completion[: len(prompt)] == prompt:
            completion = completion[len(prompt) :]
    elif prompt is None or not _is_reply(completion):
        replies = [i for i, message in enumerate(completion) if message["role"] == "assistant"]
        cut = replies[-1] if replies else len(completion)
        prompt, completion = completion[:cut], completion[cut:]
    prompt, (completion,) = _aligned(prompt, completion)
    return {"prompt": prompt, "completion": completion, "label": label}


def label_of(value: Any, column: str) -> bool:
    """A desirable/undesirable label: a boolean, 0 or 1, or the words true and false."""
    label = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if label is None:
        raise Malformed("must be true or false (or 1 or 0)", column=column, value=value)
    return label


def shared_prefix(chosen: _T, rejected: _T, prompt_end: str | None = None) -> int:
    """Length of the prompt that two completions share, in characters or messages.

    Follows ``trl.extract_prompt``: the longest common prefix; a space before the point where texts part
    belongs to the completions; where one completion is the beginning of the other, its last element stays
    with it. With ``prompt_end`` a text prompt ends with the last such marker in the common prefix instead,
    since two answers may well begin with the same words.
    """
    shorter = min(len(chosen), len(rejected))
    low, high = 0, shorter
    while low < high:  # slices compare at C speed; a loop over the characters takes a minute on hh-rlhf
        middle = (low + high + 1) // 2
        if chosen[:middle] == rejected[:middle]:
            low = middle
        else:
            high = middle - 1
    if prompt_end is not None and isinstance(chosen, str):
        at = chosen.rfind(prompt_end, 0, low)
        if at < 0:
            raise Skip(f"chosen and rejected share no prompt that ends with {prompt_end!r}")
        return at + len(prompt_end)
    if low == shorter:
        return max(shorter - 1, 0)
    return low - 1 if low and chosen[low - 1] == " " else low


def is_blank(value: Text) -> bool:
    """Whether there is nothing to read in a prompt or completion."""
    return not value.strip() if isinstance(value, str) else not any(m["content"].strip() for m in value)


def _aligned(prompt: Text, *completions: Text) -> tuple[Text, list[Text]]:
    """Prompt and completions in one format, with something in each of them."""
    if isinstance(prompt, list) or any(isinstance(c, list) for c in completions):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        completions = tuple([{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions)
    if is_blank(prompt):
        raise Skip(EMPTY_PROMPT)
    if any(is_blank(c) for c in completions):
        raise Skip(EMPTY_COMPLETION)
    if any(isinstance(c, list) and not _is_reply(c) for c in completions):
        raise Skip(NOT_A_REPLY)
    return prompt, list(completions)


def _is_reply(messages: Text) -> bool:
    return isinstance(messages, list) and bool(messages) and messages[0]["role"] == "assistant"


def _decoded(text: str, column: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        return value
    if _MESSAGES_AS_REPR.match(text.strip()):
        # pandas writes lists with repr(): the model would learn Python's quotes and braces.
        raise Malformed(
            "looks like a list of messages and is not JSON",
            column=column,
            value=text,
            fix="write the column with json.dumps, or save JSON Lines or Parquet",
        )
    return text


def _message(value: Any, column: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
        raise Malformed(
            "every message must have role and content",
            column=column,
            value=value,
            fix='{"role": "user", "content": "Hi"}',
        )
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise Malformed(f"the role must be one of {', '.join(ROLES)}", column=column, value=role)
    if not isinstance(content, str):
        raise Malformed(f"a message's content must be text, not {type(content).__name__}", column=column, value=content)
    return {"role": role, "content": content}


# -- all rows of a table -------------------------------------------------------------------------------


def check(table: Table, kind: Kind, parse: Callable[[Row], Row], *, allow_skipped: float) -> Checked:
    """Parse every row.

    Raises:
        UserErrors: malformed rows, the first ten listed.
        UserError: conversations mixed with plain text, or more skipped than ``allow_skipped``.
    """
    passed: list[tuple[int, Row]] = []
    skipped: dict[str, list[int]] = {}
    malformed: list[UserError] = []
    for number, raw in zip(table.numbers, table.rows, strict=True):
        try:
            if isinstance(raw, Malformed):
                raise raw
            passed.append((number, parse(raw)))
        except Skip as skip:
            skipped.setdefault(str(skip), []).append(number)
        except Malformed as error:
            malformed.append(_located(error, table, number))
    if malformed:
        more = len(malformed) - LISTED
        tail = [UserError(f"and {more} more malformed rows", key=table.name)] if more > 0 else []
        raise UserErrors(malformed[:LISTED] + tail)
    _check_skipped(table, skipped, allow_skipped)
    formats: dict[bool, list[int]] = {}
    for number, row in passed:
        formats.setdefault(isinstance(row["prompt"], list), []).append(number)
    if len(formats) > 1:
        raise UserError(
            f"rows must all be conversations or all be plain text: {len(formats[True])} are lists of messages"
            f" (first: {table.unit} {formats[True][0]}), {len(formats[False])} are text"
            f" (first: {table.unit} {formats[False][0]})",
            key=table.key,
            value=table.name,
            fix="write every row in one format, or in two files",
        )
    notes = [
        f"{table.name}: {len(n)} row{'s' if len(n) > 1 else ''} skipped, {why} ({_first(n, table.unit)})"
        for why, n in skipped.items()
    ]
    return Checked(table.name, table.key, kind, [row for _, row in passed], True in formats, notes)


def _located(error: Malformed, table: Table, number: int) -> UserError:
    where = f"{table.name}, {table.unit} {number}" + (f", {error.column}" if error.column else "")
    if error.value is None:
        return UserError(error.rule, key=where, fix=error.fix)
    return UserError(error.rule, key=where, value=error.value, fix=error.fix)


def _check_skipped(table: Table, skipped: Mapping[str, Sequence[int]], allowed: float) -> None:
    count, total = sum(map(len, skipped.values())), len(table.rows)
    if count <= allowed * total and count < total:
        return
    reasons = "; ".join(f"{len(numbers)}: {why} ({_first(numbers, table.unit)})" for why, numbers in skipped.items())
    if count == total:
        raise UserError(f"no usable row among {total} ({reasons})", key=table.key, value=table.name)
    raise UserError(
        f"{count} of {total} rows of {table.name} cannot be used ({reasons}), more than the share allowed",
        key="task.allow_skipped",
        value=allowed,
        fix=f"mend the rows, or task.allow_skipped={math.ceil(100 * count / total) / 100:g}",
    )


def _first(numbers: Sequence[int], unit: str) -> str:
    shown = ", ".join(map(str, numbers[:3])) + (", …" if len(numbers) > 3 else "")
    return f"{unit}{'s' if len(numbers) > 1 else ''} {shown}"
