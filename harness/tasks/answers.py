"""Whether a completion states the right answer: the last number counts, as GSM8K's convention has it. Pure."""

from __future__ import annotations

import re
from decimal import Decimal

from harness.tasks.base import Row, Score

# A minus after a word or a bracket is an operator: the last number of "20-7" is 7.
_SIGN = r"(?:(?<![\w)])-\$?|\$-?)?"
_NUMBER = _SIGN + r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_ANY_NUMBER = re.compile(_NUMBER)
_MARKED = re.compile(rf"####[\s*]*({_NUMBER})")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ORNAMENT = re.compile(r"\\text\s*\{[^{}]*\}|\\[,;!%$]|\\\s|[$%]|\s")


def scored(row: Row, completion: str, length_cost: float) -> Score:
    """True reward: 1 if the stated answer is the row's, 0 if not, less ``length_cost`` per character."""
    stated = stated_answer(completion)
    correct = stated is not None and same_answer(stated, row["answer"])
    return Score(reward=float(correct) - length_cost * len(completion), correct=correct)


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
