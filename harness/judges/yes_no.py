"""A question about one reply that a judge answers with yes or no; an answer that cannot be read is none. No torch."""

from __future__ import annotations

import re

from harness.judges.base import Answer

ENDING = "Answer briefly. Then end with your verdict and nothing after it: [[YES]] or [[NO]]."
"""What a question should end with, so that its answer can be read."""
_MARKED = re.compile(r"\[\[\s*(YES|NO)\s*\]\]", re.IGNORECASE)
_BARE = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


def yes(answer: Answer) -> bool | None:
    """What was said: the last mark, or a word that is the whole answer; None where it cannot be read."""
    said = answer.stated(_MARKED, _BARE)
    return None if said is None else said.upper() == "YES"
