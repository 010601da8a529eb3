"""From a user's rows to ours: columns, formats, checks. Pure functions; ``splits`` takes it from here.

A row goes one of three ways. It *passes*; it is *skipped* and counted in the notes, where leaving it out is
harmless (an empty completion); or it is *malformed*, and then the user hears of it before anything trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from harness.base.errors import UserError
from harness.tasks.base import Row, Text
from harness.tasks.reading import transcripts
from harness.tasks.reading.messages import EQUAL, Malformed, Skip, aligned, decoded, is_reply, message

Kind = Literal["preferences", "unpaired", "prompts"]
Column = Literal["prompt", "chosen", "rejected", "completion", "label"]

COLUMNS: tuple[Column, ...] = get_args(Column)
REQUIRED: Mapping[Kind, Sequence[Column]] = {
    "preferences": ("chosen", "rejected"),
    "unpaired": ("completion", "label"),
    "prompts": ("prompt",),
}


_YES = ("true", "1", "1.0", "+1", "yes", "y", "desirable", "good")
_NO = ("false", "0", "0.0", "-1", "-1.0", "no", "n", "undesirable", "bad")
_LABELS = {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}
REPEATED = 5
"""Words of a prompt that completions do not begin with by chance."""


@dataclass(frozen=True)
class Table:
    """Rows as they were read.

    Attributes:
        name: where they come from, as messages say it (``prefs.jsonl``, ``openai/gsm8k[train]``).
        key: the configuration key that chose them (``task.path``).
        columns: names of the columns found, in order.
        rows: one mapping per row, or why a row could not be parsed or is left out.
        numbers: per row its line (or row) number, from 1.
        unit: what the numbers count, ``line`` or ``row``.
        encoded: cells cannot nest, so text that parses to a list of messages is one.
    """

    name: str
    key: str
    columns: Sequence[str]
    rows: Sequence[Row | Malformed | Skip]
    numbers: Sequence[int]
    unit: str = "row"
    encoded: bool = False

    def __post_init__(self) -> None:
        """A table has rows."""
        if not self.rows:
            raise UserError("holds no rows", key=self.key, value=self.name)


@dataclass(frozen=True)
class Layout:
    r"""How the user's columns map to ours.

    Attributes:
        kind: what the rows are.
        names: our column -> theirs, for the columns that exist.
        encoded: see ``Table``.
        prompt_end: where a text prompt that chosen and rejected share ends; null for TRL's rule.
        transcripts: texts are transcripts (``\n\nHuman: …``), to be read as messages.
        dropped: counts what is left out of messages, by name.
    """

    kind: Kind
    names: Mapping[str, str]
    encoded: bool = False
    prompt_end: str | None = None
    transcripts: bool = False
    dropped: Counter[str] = field(default_factory=Counter, compare=False)

    def value(self, raw: Row, ours: str) -> Any:
        """One cell; raises ``Malformed`` where the row lacks it."""
        theirs = self.names[ours]
        if theirs not in raw or raw[theirs] is None:
            state = "null" if theirs in raw else "missing"
            raise Malformed(f"is {state}", column=theirs, fix=f"give every row a {theirs}")
        return raw[theirs]

    def text(self, raw: Row, ours: str) -> Text:
        """One cell as text or as checked messages."""
        value, theirs = self.value(raw, ours), self.names[ours]
        if self.encoded and isinstance(value, str) and value.lstrip().startswith("["):
            value = decoded(value, theirs)
        if isinstance(value, str):
            return self._turns(value, ours) if self.transcripts else value
        if isinstance(value, list):
            return [message(item, theirs, self.dropped) for item in value]
        if isinstance(value, Mapping):
            return [message(value, theirs, self.dropped)]
        kind = type(value).__name__
        raise Malformed(f"must be text or a list of messages, not {kind}", column=theirs, value=value)

    def _turns(self, text: str, ours: str) -> Text:
        """The messages of a transcript; an answer beside a prompt that is one stays text."""
        found = transcripts.parsed(text, ends_open=ours == "prompt")
        if found is None and "prompt" not in self.names:
            raise Skip("the text is no transcript, and the others are")
        return text if found is None else found


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
        spoken = prompt_end is None and _are_transcripts(table, names)
        return Layout(fitting, names, table.encoded, prompt_end, spoken)
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


def _are_transcripts(table: Table, names: Mapping[str, str]) -> bool:
    """Whether the prompts are transcripts, or the completions where they hold their prompts."""
    column = names.get("prompt") or names.get("chosen") or names.get("completion")
    rows = [row for row in table.rows if isinstance(row, Mapping)]
    return column is not None and transcripts.are_transcripts([row.get(column) for row in rows])


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
        elif isinstance(prompt, str):
            chosen, rejected = without_prompt(prompt, chosen, rejected)
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("must be text where chosen is, messages where chosen is", column=layout.names["rejected"])
    elif isinstance(prompt, list):
        # Some exports repeat the prompt at the head of both conversations.
        if prompt and chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif prompt is None or not (is_reply(chosen) and is_reply(rejected)):
        # As TRL: full conversations carry their own prompt, whatever a text column beside them says.
        cut = shared_turns(chosen, rejected)
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    prompt, (chosen, rejected) = aligned(prompt, chosen, rejected)
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
        if isinstance(prompt, str):
            (completion,) = without_prompt(prompt, completion)
    elif isinstance(prompt, list):
        if prompt and completion[: len(prompt)] == prompt:
            completion = completion[len(prompt) :]
    elif prompt is None or not is_reply(completion):
        replies = [i for i, turn in enumerate(completion) if turn["role"] == "assistant"]
        cut = replies[-1] if replies else len(completion)
        prompt, completion = completion[:cut], completion[cut:]
    prompt, (completion,) = aligned(prompt, completion)
    return {"prompt": prompt, "completion": completion, "label": label}


def label_of(value: Any, column: str) -> bool:
    """A desirable/undesirable label: a boolean, 0 or 1, -1 or 1, or words such as true, yes and good."""
    label = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if label is None:
        fix = None
        if isinstance(value, int | float) or str(value).strip().lstrip("-").replace(".", "", 1).isdigit():
            fix = "turn the score into a label, such as score >= 4, and name that column: task.columns.label=NAME"
        raise Malformed("must be true or false (or 1 or 0, 1 or -1, yes or no)", column=column, value=value, fix=fix)
    return label


def without_prompt(prompt: str, *completions: str) -> list[str]:
    """The completions without the prompt that some exports repeat at the head of each.

    A prompt of less than ``REPEATED`` words may be the beginning of an answer by chance, and stays.
    """
    whole = prompt.strip()
    if len(whole.split()) < REPEATED or not all(c.lstrip().startswith(whole) for c in completions):
        return list(completions)
    return [c.lstrip()[len(whole) :] for c in completions]


def shared_turns(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int:
    """Messages of the prompt that two conversations share; where one is the beginning of the other, its last stays."""
    return max(0, min(shared_length(chosen, rejected), min(len(chosen), len(rejected)) - 1))


def shared_prefix(chosen: str, rejected: str, prompt_end: str | None = None) -> int:
    """Length of the prompt that two texts share, in characters.

    Follows ``trl.extract_prompt``: the longest common prefix; a space before the point where texts part
    belongs to the completions; where one text is the beginning of the other, its last character stays
    with it. It never ends within a word. With ``prompt_end`` the prompt ends with the last such marker in the common
    prefix instead, since two answers may well begin with the same words.
    """
    low, shorter = shared_length(chosen, rejected), min(len(chosen), len(rejected))
    if prompt_end is not None:
        at = chosen.rfind(prompt_end, 0, low)
        if at < 0:
            raise Skip(f"chosen and rejected share no prompt that ends with {prompt_end!r}")
        return at + len(prompt_end)
    if low == shorter:
        low = max(shorter - 1, 0)
    following = chosen[low : low + 1] + rejected[low : low + 1]
    while low and chosen[low - 1].isalnum() and any(c.isalnum() for c in following):
        low -= 1
        following = chosen[low]
    return low - 1 if low and chosen[low - 1] == " " else low


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common prefix; slices compare at C speed, a loop takes a minute on hh-rlhf."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def unescaped(words: str | None) -> str | None:
    r"""A text with ``\n``, ``\r`` and ``\t`` written out, as a command line has them, made what they stand for."""
    for written, meant in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
        words = words.replace(written, meant) if words is not None else None
    return words
