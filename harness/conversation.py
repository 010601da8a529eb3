"""Rows, as a given tokenizer wants them: text stays text, or becomes messages where there is a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT_FIELDS = {"prompt": "user", "chosen": "assistant", "rejected": "assistant", "completion": "assistant"}


def is_conversational(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows' prompts are lists of messages."""
    return bool(rows) and isinstance(rows[0].get("prompt"), list)


def as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """A text row as one user turn and, where there is one, one assistant turn; other fields stay."""
    return {
        key: [{"role": TEXT_FIELDS[key], "content": value}] if key in TEXT_FIELDS and isinstance(value, str) else value
        for key, value in row.items()
    }


def prepare_rows(rows: Sequence[Mapping[str, Any]], *, chat: bool) -> list[dict[str, Any]]:
    """Rows as messages where ``chat``, else unchanged copies."""
    return [as_messages(row) if chat else dict(row) for row in rows]


def encode(tokenizer: Any, prompt: Any, completion: Any | None = None) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a completion in its context, as TRL's trainers make them.

    The completion of a text row ends with the end-of-sequence token; of a conversational row with whatever the
    chat template ends a turn. It starts where the two encodings diverge, which matters where tokens merge.

    Returns:
        prompt ids and completion ids (empty where ``completion`` is None).
    """
    if isinstance(prompt, str):
        prompt_ids = list(tokenizer(prompt)["input_ids"])
        if completion is None:
            return prompt_ids, []
        text = completion if completion.endswith(tokenizer.eos_token) else completion + tokenizer.eos_token
        whole = list(tokenizer(prompt + text)["input_ids"])
    else:
        prompt_ids = list(
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
                "input_ids"
            ]
        )
        if completion is None:
            return prompt_ids, []
        whole = list(tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True)["input_ids"])
    shared = 0
    for a, b in zip(prompt_ids, whole, strict=False):
        if a != b:
            break
        shared += 1
    return prompt_ids[:shared], whole[shared:]
