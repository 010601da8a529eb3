"""What stands before every prompt of a trial: a system message and solved examples. Pure.

It belongs to the policy alone. Judges and reward models read the task's own prompts, so that trials that differ in what
stands before theirs are judged alike; so do the rows that training replays and the skills that are not aligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import Strict

from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.tasks.base import TaskData, Text, prompt_key
from harness.tasks.reading.files import fingerprint_of
from harness.tasks.reading.replay import replay_rows
from harness.tasks.reading.rows import unescaped

SYSTEM = ("system", "developer")
PARAGRAPH, SPACE = "\n\n", " "
KEY = "prompt.shots"
SHOT = ("prompt", "completion")
EXAMPLE = "-m \"prompt.shots=[{prompt: 1+1=, completion: '2'}]\", a file of such rows, or how many rows to take"


@dataclass(frozen=True)
class Prompt:
    """The ``prompt`` group: what stands before every prompt that the policy is trained on, judged by and sampled from.

    Attributes:
        system: a system message. It takes the place of one that rows bring; null leaves theirs.
        shots: solved examples: how many to take from the training rows (what is preferred, or the answer), a file
            as ``train.replay.path`` reads it, or the examples themselves, each with ``prompt`` and ``completion``.
        join: what parts them where rows are rendered as text, without a chat template; null is an empty line, in
            the embedded world a space.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    system: str | None = unless_default(None)
    shots: Annotated[int, Strict(), Ge(0)] | str | tuple[dict[str, Any], ...] = unless_default(0)
    join: str | None = unless_default(None)

    def __post_init__(self) -> None:
        """Check what fields demand of each other; ``ValueError`` is what ``build()`` collects."""
        if self.system is not None and not self.system.strip():
            raise ValueError("system: is blank (null means none)")
        for number, shot in enumerate(self.shots if isinstance(self.shots, list | tuple) else ()):
            if set(shot) != set(SHOT) or not all(_is_text(shot[side]) for side in SHOT):
                raise ValueError(f"shots[{number}]: must have prompt and completion, each a text or messages")

    def __bool__(self) -> bool:
        """Whether anything stands before a prompt."""
        return self.system is not None or bool(self.shots)

    def contents(self) -> Mapping[str, str]:
        """What stands for the content of a file of examples."""
        return {"shots": fingerprint_of({KEY: self.shots})} if isinstance(self.shots, str) else {}


@dataclass(frozen=True)
class Preamble:
    """A ``Prompt`` whose examples are there.

    Attributes:
        system: the system message.
        shots: (prompt, completion) of each example, text or messages.
        join: what parts them in a text.
    """

    system: str | None = None
    shots: tuple[tuple[Text, Text], ...] = ()
    join: str = PARAGRAPH

    def before(self, prompt: Text) -> Text:
        """The prompt with everything that stands before it, as text or as messages, whichever it is.

        An example is not shown before its own prompt.
        """
        if isinstance(prompt, str):
            solved = [f"{asked}{said}" for asked, said in self.shots if asked != prompt]
            return self.join.join([*([self.system] if self.system is not None else []), *solved, prompt])
        own, turns = _parted(prompt)
        system = own if self.system is None else [{"role": "system", "content": self.system}]
        for asked, said in self.shots:
            question = _parted(_turns(asked, "user"))[1]
            if list(question) != turns:
                system = [*system, *question, *_turns(said, "assistant")]
        return [*system, *turns]


def preamble_of(prompt: Prompt, data: TaskData, *, allow_skipped: float, chat: bool, embedded: bool) -> Preamble | None:
    """The preamble of a trial; None where nothing stands before its prompts.

    Args:
        prompt: its settings.
        data: its rows.
        allow_skipped: share of a file's rows that may be unusable.
        chat: rows are rendered with a chat template.
        embedded: the task is the embedded one.

    Raises:
        UserError: the examples are not there, or one of them is a held-out row.
    """
    if not prompt:
        return None
    if isinstance(prompt.shots, str):
        rows = list(replay_rows(prompt.shots, allow_skipped=allow_skipped, key=KEY))
    elif isinstance(prompt.shots, int):
        rows = _solved(data, prompt.shots)
    else:
        rows = list(prompt.shots)
    splits = (*data.eval_pairs.values(), *data.eval_prompts.values())
    held = {prompt_key(row["prompt"]) for split in splits for row in split}
    for number, row in enumerate(rows):
        if prompt_key(row["prompt"]) in held:
            rule = f"example {number} is a held-out prompt, which would then show its own answer"
            raise UserError(rule, key=KEY, value=row["prompt"], fix="take examples that are not held out")
        if not chat and not all(isinstance(row[side], str) for side in SHOT):
            rule = f"example {number} is made of messages, and rows are rendered as text"
            raise UserError(rule, key=KEY, value=row["prompt"], fix="write prompt and completion as text")
    join = unescaped(prompt.join)
    return Preamble(
        unescaped(prompt.system),
        tuple((row["prompt"], row["completion"]) for row in rows),
        (SPACE if embedded else PARAGRAPH) if join is None else join,
    )


def _solved(data: TaskData, count: int) -> list[Mapping[str, Any]]:
    """The first solved training rows of different prompts."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in _with_completions(data):
        if len(found) >= count:
            break
        found.setdefault(prompt_key(row["prompt"]), row)
    if len(found) < count:
        known = f"the training rows hold {len(found):,} solved prompts" if found else "no training row is solved"
        rule = f"{known} (pairs, desirable completions, or prompts with an answer)"
        raise UserError(rule, key=KEY, value=count, fix=f"fewer, or examples of your own: {EXAMPLE}")
    return list(found.values())


def _with_completions(data: TaskData) -> Iterator[dict[str, Any]]:
    for row in data.train_pairs:
        yield {"prompt": row["prompt"], "completion": row["chosen"]}
    for row in data.train_unpaired:
        if row["label"]:
            yield {"prompt": row["prompt"], "completion": row["completion"]}
    for row in data.train_prompts:
        if row.get("answer"):
            yield {"prompt": row["prompt"], "completion": str(row["answer"])}


def _parted(messages: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The system message at the head, if any, and the turns after it."""
    first = 1 if messages and messages[0]["role"] in SYSTEM else 0
    return list(messages[:first]), list(messages[first:])


def _turns(value: Text, role: str) -> Sequence[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(m, Mapping) for m in value))
