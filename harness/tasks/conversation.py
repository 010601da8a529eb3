"""Rows as token ids: one rendering for training, evaluation and rollouts.

Text stays text, or becomes messages where there is a chat template. A sequence has one begin-of-sequence token at most,
whatever template and tokenizer add; a prompt never ends with the end-of-sequence token that a tokenizer adds by itself,
and the completion of a text row always ends with one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from harness.tasks.preamble import SYSTEM, Preamble

SIDES = ("chosen", "rejected")
TEXT_FIELDS = {"prompt": "user", "chosen": "assistant", "rejected": "assistant", "completion": "assistant"}

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""Used for conversational rows where the tokenizer has no template of its own; the log says so."""


@dataclass(frozen=True)
class Style:
    """The form in which a model wants its rows.

    Attributes:
        chat: rendered with a chat template; text rows as one user turn.
        folds_system: the template refuses a system message, so that it stands at the head of the first user turn.
        preamble: what stands before every prompt of the policy; None: nothing.
    """

    chat: bool = False
    folds_system: bool = False
    preamble: Preamble | None = None

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows as messages where ``chat``, else copies, each prompt with what stands before it."""
        made = [as_messages(row) if self.chat else dict(row) for row in rows]
        if self.preamble is not None:
            made = [{**row, "prompt": self.preamble.before(row["prompt"])} for row in made]
        return [{**row, "prompt": folded(row["prompt"])} for row in made] if self.folds_system else made

    @property
    def bare(self) -> Style:
        """The same without a preamble: for what is not the policy's to read or to be judged by."""
        return replace(self, preamble=None)


def style_of(tokenizer: Any, *, conversational: bool, wanted: bool) -> Style:
    """The style of rows for this tokenizer, which gets a plain template where it has none and the rows need one.

    Args:
        tokenizer: the model's.
        conversational: the rows are messages.
        wanted: a template is used where there is one, even for text.
    """
    if conversational and not tokenizer.chat_template:
        begin, _ = added_ids(tokenizer)
        tokenizer.chat_template = ("{{ bos_token }}" if tokenizer.bos_token_id in begin else "") + PLAIN_TEMPLATE
    if not (conversational or (tokenizer.chat_template and wanted)):
        return Style()
    return Style(chat=True, folds_system=refuses_system(tokenizer))


def refuses_system(tokenizer: Any) -> bool:
    """Whether the template renders a question, and not the same one after a system message."""
    question = [{"role": "user", "content": "Hello"}]

    def renders(messages: list[dict[str, str]]) -> bool:
        try:
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception:  # Jinja's kinds, and whatever Python raises in the middle of a stranger's template
            return False
        return True

    return renders(question) and not renders([{"role": "system", "content": "Be kind."}, *question])


def leaves_out_calls(tokenizer: Any) -> bool:
    """Whether the template renders a turn with a tool call as the same turn without it."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "this"}}}
    question, turn = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}

    def rendered(answer: dict[str, Any]) -> str:
        return tokenizer.apply_chat_template([question, answer], tokenize=False)

    try:
        return rendered({**turn, "tool_calls": [call]}) == rendered(turn)
    except Exception:  # of a template that has its own idea of a turn: rows will tell
        return False


def folded(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A conversation whose system message begins its first user turn, as Gemma 3's own template has it."""
    if not messages or messages[0]["role"] not in SYSTEM:
        return list(messages)
    first, rest = messages[0], list(messages[1:])
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": first["content"]}, *rest]
    return [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def is_conversational(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows' prompts are lists of messages."""
    return bool(rows) and isinstance(rows[0].get("prompt"), list)


def as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """A text row as one user turn and, where there is one, one assistant turn; other fields stay."""
    return {
        key: [{"role": TEXT_FIELDS[key], "content": value}] if key in TEXT_FIELDS and isinstance(value, str) else value
        for key, value in row.items()
    }


# -- ids -----------------------------------------------------------------------------------------------


def encode(tokenizer: Any, prompt: Any, completion: Any | None = None) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a completion in its context.

    The completion of a text row ends with the end-of-sequence token; of a conversational row with whatever the
    chat template ends a turn. It starts where the two encodings diverge, which matters where tokens merge.

    Returns:
        prompt ids and completion ids (empty where ``completion`` is None).
    """
    if completion is None:
        return prompt_ids(tokenizer, [prompt])[0], []
    found = encode_completions(tokenizer, [{"prompt": prompt, "completion": completion}])
    return found["prompt_ids"][0], found["completion_ids"][0]


def prompt_ids(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Token ids of prompts, text or messages, each ready for a reply."""
    if prompts and isinstance(prompts[0], str):
        return _of_texts(tokenizer, prompts)
    return _of_conversations(tokenizer, prompts, add_generation_prompt=True)


def encode_completions(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """``prompt_ids`` and ``completion_ids`` of (prompt, completion) rows, as ``encode`` has it, in batched calls."""
    return _split(tokenizer, rows, ("completion",))


def encode_pairs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` of preference rows, in batched calls of the tokenizer.

    The completions start where the encoding of the prompt and that of either whole diverge.
    """
    return _split(tokenizer, rows, SIDES)


def encode_sides(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of preference rows: of all chosen sides, then of all rejected ones."""
    found = encode_pairs(tokenizer, rows)
    return [one for side in SIDES for one in zip(found["prompt_ids"], found[f"{side}_ids"], strict=True)]


def _split(tokenizer: Any, rows: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, list[list[int]]]:
    if is_conversational(rows):
        wholes = {side: _of_conversations(tokenizer, [row["prompt"] + row[side] for row in rows]) for side in sides}
    else:
        wholes = {s: _of_texts(tokenizer, [row["prompt"] + row[s] for row in rows], end=True) for s in sides}
    encoded: dict[str, list[list[int]]] = {"prompt_ids": [], **{f"{side}_ids": [] for side in sides}}
    prompts = prompt_ids(tokenizer, [row["prompt"] for row in rows])
    for prompt, *whole in zip(prompts, *wholes.values(), strict=True):
        start = min(shared_length(prompt, ids) for ids in whole)
        encoded["prompt_ids"].append(prompt[:start])
        for side, ids in zip(sides, whole, strict=True):
            encoded[f"{side}_ids"].append(ids[start:])
    return encoded


def _of_texts(tokenizer: Any, texts: Sequence[str], *, end: bool = False) -> list[list[int]]:
    """Ids of texts; with the end-of-sequence token where ``end``, and without one that the tokenizer adds if not."""
    if not texts:
        return []
    begin, after = added_ids(tokenizer)
    found = [[*begin, *ids] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    if end:
        last = text_end(tokenizer, after)
        found = [ids if ids[len(ids) - len(last) :] == last else [*ids, *last] for ids in found]
    return [_one_beginning(tokenizer, ids) for ids in found]


def text_end(tokenizer: Any, after: list[int]) -> list[int]:
    """What ends a text: the end-of-sequence token, or what a tokenizer without one puts ``after`` a text."""
    return after if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _of_conversations(tokenizer: Any, conversations: Sequence[Any], **options: Any) -> list[list[int]]:
    if not conversations:
        return []
    render = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=True, **options)
    return [_one_beginning(tokenizer, list(ids)) for ids in render(list(conversations))["input_ids"]]


def _one_beginning(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids with one begin-of-sequence token where there are several: of tokenizer, template and text."""
    begin = tokenizer.bos_token_id
    while begin is not None and begin != tokenizer.eos_token_id and ids[:2] == [begin, begin]:
        ids = ids[1:]
    return ids


def added_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts by itself before and after a text."""
    bare, whole = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def reply_end(tokenizer: Any, *, chat: bool) -> list[int]:
    """What follows the words of a reply: the end-of-sequence token of text rows, or what the template puts there.

    Empty where nothing does, so that a reply that ended cannot be told from one that was cut.
    """
    if not chat:
        return text_end(tokenizer, added_ids(tokenizer)[1])
    question = [{"role": "user", "content": "a"}]
    one, other = (encode(tokenizer, question, [{"role": "assistant", "content": word}])[1] for word in ("a", "b"))
    return one[len(one) - shared_length(one[::-1], other[::-1]) :]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
