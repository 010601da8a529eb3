"""Messages of a conversation, as people write them down, and what is wrong with a row. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.tasks.base import Text

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_NAMES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "prompter": "user", "function_call": "assistant", "function": "tool",
    "observation": "tool", "ipython": "tool",
}  # fmt: skip
"""Roles of ShareGPT and others -> ours."""
KEPT = ("tool_calls", "tool_call_id", "name")
"""Of a message's other keys, those that chat templates read."""
EMPTY_PROMPT = "the prompt is empty"
EMPTY_COMPLETION = "a completion is empty"
EQUAL = "chosen equals rejected"
NOT_A_REPLY = "a completion does not begin with the assistant's turn"
_MESSAGES_AS_REPR = re.compile(r"^\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


class Skip(Exception):
    """Leave this row out; the argument is the reason, without a number in it."""


class Undecided(Skip):
    """Nothing is wrong with this row, and it states no preference: it does not count as one that cannot be used."""


class Malformed(Exception):
    """This row breaks a rule: the column concerned, its value, the rule and the fix."""

    def __init__(self, rule: str, *, column: str | None = None, value: Any = None, fix: str | None = None):
        """Keep the parts until the row's number is known."""
        super().__init__(rule)
        self.rule, self.column, self.value, self.fix = rule, column, value, fix


def message(value: Any, column: str, dropped: Counter[str]) -> dict[str, Any]:
    """One message as ``{"role", "content"}``, with its tool calls where it has some.

    ShareGPT's ``from`` and ``value`` are read, and the text of content in parts. Other keys are counted in ``dropped``.
    """
    if isinstance(value, Mapping) and {"from", "value"} <= value.keys():
        value = {"role": value["from"], "content": value["value"], **{k: v for k, v in value.items() if k in KEPT}}
    calls = isinstance(value, Mapping) and value.get("tool_calls")
    if isinstance(value, str) and column != "prompt":
        raise Malformed(
            "is a list of texts, and nothing says which of them is better",
            column=column,
            value=value,
            fix="columns chosen and rejected, or the list in a column responses with ratings or ranks beside it",
        )
    if not isinstance(value, Mapping) or "role" not in value or ("content" not in value and not calls):
        raise Malformed(
            "every message must have role and content",
            column=column,
            value=value,
            fix='{"role": "user", "content": "Hi"}',
        )
    role, content = value["role"], value.get("content")
    role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise Malformed(f"the role must be one of {', '.join(ROLES)}", column=column, value=value["role"])
    dropped.update(f"{k} of messages" for k, v in value.items() if k not in ("role", "content", *KEPT) and v)
    kept = {k: value[k] for k in KEPT if value.get(k)}
    return {"role": role, "content": _words(content, column, bool(calls)), **kept}


def _words(content: Any, column: str, calls: bool) -> str:
    """The text of a message's content, which may be in parts; nothing beside tool calls."""
    if content is None and calls:
        return ""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        for part in content:
            if part.get("type", "text") != "text":
                raise Skip(f"a message holds a part of type {part.get('type')}, and text alone is read")
        return "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise Malformed(f"a message's content must be text, not {type(content).__name__}", column=column, value=content)
    return content


def decoded(text: str, column: str) -> Any:
    """A list of messages that a cell holds as JSON text; any other text as it is."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if isinstance(value, list) and value and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value):
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


def is_blank(value: Text) -> bool:
    """Whether there is nothing to read in a prompt or completion."""
    return (
        not value.strip()
        if isinstance(value, str)
        else not any(m["content"].strip() or m.get("tool_calls") for m in value)
    )


def aligned(prompt: Text, *completions: Text) -> tuple[Text, list[Text]]:
    """Prompt and completions in one format, with something in each of them."""
    if isinstance(prompt, list) or any(isinstance(c, list) for c in completions):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        completions = tuple([{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions)
    if is_blank(prompt):
        raise Skip(EMPTY_PROMPT)
    if any(is_blank(c) for c in completions):
        raise Skip(EMPTY_COMPLETION)
    if any(isinstance(c, list) and not is_reply(c) for c in completions):
        raise Skip(NOT_A_REPLY)
    return prompt, list(completions)


def is_reply(messages: Text) -> bool:
    """Whether it is messages of which the first is the assistant's."""
    return isinstance(messages, list) and bool(messages) and messages[0]["role"] == "assistant"
