"""A user's regular expressions, with a limit of time: some need years for a text of forty letters.

Python's ``re`` cannot be stopped, and no other thread of its process runs meanwhile. The package ``regex`` reads the
same language, watches the time, and lets others run.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from harness.tasks.judging import tally

LIMIT_S = 1.0
"""For one text. A sound pattern takes microseconds, so a slow machine changes no result."""


def problem(pattern: str) -> str | None:
    """What is wrong with a pattern; None where it is one."""
    import regex

    try:
        re.compile(pattern)
        _compiled(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


def matches(pattern: str, text: str, *, whole: bool = False, any_case: bool = False) -> bool:
    """Whether a text has the form, or all of it where ``whole``; a dot matches line breaks too.

    ``any_case`` takes small and capital letters for the same.

    One that takes longer than ``LIMIT_S`` has it not, and is counted (``tally``).
    """
    form = _compiled(pattern, any_case)
    try:
        found = bool((form.fullmatch if whole else form.search)(text, timeout=LIMIT_S, concurrent=True))
    except TimeoutError:
        tally.count(True)
        return False
    tally.count(False)
    return found


def last_match(pattern: str, text: str) -> Any | None:
    """The last match in a text; None where there is none.

    Raises:
        TimeoutError: it takes longer than ``LIMIT_S``.
    """
    import regex

    found = list(regex.compile(pattern).finditer(text, timeout=LIMIT_S, concurrent=True))
    return found[-1] if found else None


@functools.cache
def _compiled(pattern: str, any_case: bool = False) -> Any:
    import regex

    return regex.compile(pattern, regex.DOTALL | (regex.IGNORECASE if any_case else 0))
