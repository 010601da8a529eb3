"""Rows, as a given tokenizer wants them: text stays text, or becomes messages where there is a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

SIDES = ("chosen", "rejected")
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
        whole = list(tokenizer(prompt + with_end(tokenizer, completion))["input_ids"])
    else:
        prompt_ids = list(
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
                "input_ids"
            ]
        )
        if completion is None:
            return prompt_ids, []
        whole = list(tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True)["input_ids"])
    shared = shared_length(prompt_ids, whole)
    return prompt_ids[:shared], whole[shared:]


def encode_pairs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """Token ids of preference rows, as TRL's DPO trainer makes them, in three batched calls of the tokenizer.

    Returns:
        ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``. The completions start where the encoding of the prompt
        and that of either whole diverge.
    """
    if is_conversational(rows):
        template = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=True)
        prompts = template([row["prompt"] for row in rows], add_generation_prompt=True)["input_ids"]
        wholes = {side: template([row["prompt"] + row[side] for row in rows])["input_ids"] for side in SIDES}
    else:
        prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
        ended = {side: [row["prompt"] + with_end(tokenizer, row[side]) for row in rows] for side in SIDES}
        wholes = {side: tokenizer(texts)["input_ids"] for side, texts in ended.items()}
    encoded: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for prompt, chosen, rejected in zip(prompts, wholes["chosen"], wholes["rejected"], strict=True):
        start = min(shared_length(prompt, chosen), shared_length(prompt, rejected))
        encoded["prompt_ids"].append(prompt[:start])
        encoded["chosen_ids"].append(chosen[start:])
        encoded["rejected_ids"].append(rejected[start:])
    return encoded


def with_end(tokenizer: Any, completion: str) -> str:
    """The completion of a text row, with the end-of-sequence token."""
    return completion if completion.endswith(tokenizer.eos_token) else completion + tokenizer.eos_token


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
