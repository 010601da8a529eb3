"""A question about one reply that a judge answers with yes or no; an answer that cannot be read is none. No torch."""

from __future__ import annotations

import re

from harness.judges.base import Answer

ENDING = "Answer briefly. Then end with your verdict and nothing after it: [[YES]] or [[NO]]."
"""What a question should end with, so that its answer can be read."""
_MARKED = re.compile(r"\[\[\s*(YES|NO)\s*\]\]", re.IGNORECASE)
_BARE = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


def spoken(text: str) -> str:
    """What a reply says: without the thoughts that stand before it, and nothing where those do not end."""
    _, ended, said = text.rpartition("</think>")
    if ended:
        return said.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def yes(answer: Answer) -> bool | None:
    """What was said: the last mark, or a word that is the whole answer; None where it cannot be read."""
    said = spoken(answer.text)
    marks = _MARKED.findall(said)[-1:]
    if not marks and (bare := _BARE.fullmatch(said)) is not None:
        marks = [bare.group(1)]
    return marks[0].upper() == "YES" if marks else None
