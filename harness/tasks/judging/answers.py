"""Whether a completion states the right answer: the last number counts, as GSM8K's convention has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from harness.tasks.base import Row, Score
from harness.tasks.judging import maths

Kind = Literal["number", "math"]
"""How answers are compared: as numbers, the last of a completion counting, or as mathematics (``maths``)."""

# A minus after a word or a bracket is an operator: the last number of "20-7" is 7.
_SIGN = r"(?:(?<![\w)])-\$?|\$-?)?"
_NUMBER = _SIGN + r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_ANY_NUMBER = re.compile(_NUMBER)
_MARKED = re.compile(rf"####[\s*]*({_NUMBER})")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ORNAMENT = re.compile(r"\\text\s*\{[^{}]*\}|\\[,;!%$]|\\\s|[$%]|\s")


def scored(rows: Sequence[Row], completions: Sequence[str], length_cost: float, kind: Kind) -> list[Score]:
    """True rewards: 1 if the stated answer is the row's, 0 if not, less ``length_cost`` per character."""
    answers = [str(row["answer"]) for row in rows]
    if kind == "math":
        right = maths.same(answers, completions)
    else:
        stated = [stated_answer(text) for text in completions]
        right = [said is not None and same_answer(said, a) for said, a in zip(stated, answers, strict=True)]
    return [Score(float(r) - length_cost * len(text), r) for r, text in zip(right, completions, strict=True)]


def unanswerable(kind: Kind) -> None:
    """Refuse a way of comparing answers that cannot be had here.

    Raises:
        UserError: its package is not installed.
    """
    if kind == "math" and (found := maths.problem("task.answers")) is not None:
        raise found


def stated_answer(completion: str) -> str | None:
    r"""The answer a completion commits to: after ``####``, else in ``\boxed{}``, else its last number.

    Of several marks or boxes the last counts.

    Returns:
        A number without ``$`` and commas, or what the box holds, or None.
    """
    text = completion.replace("−", "-")
    if marked := _MARKED.findall(text):
        return _plain(marked[-1])
    if boxed := _BOXED.findall(text):
        return _plain(boxed[-1])
    numbers = _ANY_NUMBER.findall(text)
    return _plain(numbers[-1]) if numbers else None


def same_answer(stated: str, answer: str) -> bool:
    """Whether two answers are equal as numbers, or as text where either is none."""
    ours, theirs = _plain(stated), _plain(answer)
    if _ANY_NUMBER.fullmatch(ours) and _ANY_NUMBER.fullmatch(theirs):
        return Decimal(ours) == Decimal(theirs)
    return ours == theirs


def _plain(text: str) -> str:
    r"""Without white space, ``$``, ``%``, units in ``\text{}``, thousands' commas and a final dot."""
    bare = _ORNAMENT.sub("", text).rstrip(".")
    without_commas = bare.replace(",", "")
    return without_commas if _ANY_NUMBER.fullmatch(without_commas) else bare
