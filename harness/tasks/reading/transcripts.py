r"""Transcripts, such as ``\n\nHuman: … \n\nAssistant: …``, as messages: so that a chat template is applied. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MARK = re.compile(r"(?:\A\s*|\n\s*\n)(Human|User|Assistant|System): ?")
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}
LOOKED_AT = 200
"""Rows by which a table is judged."""
NEARLY_ALL = 0.95


def parsed(text: str, *, ends_open: bool = True) -> list[dict[str, str]] | None:
    """The messages of a transcript, None where it is none.

    An empty turn at its end waits for a reply and is left out; unless not ``ends_open``: then it is an empty reply.
    """
    marks = list(MARK.finditer(text))
    if not marks or text[: marks[0].start()].strip() or marks[0].group(1) == "Assistant":
        return None
    messages: list[dict[str, str]] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        words = text[mark.end() : None if following is None else following.start()].strip()
        role = ROLES[mark.group(1)]
        if not words and following is None and ends_open:
            break
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{words}"
        else:
            messages.append({"role": role, "content": words})
    return messages if messages and any(m["role"] == "user" for m in messages) else None


def are_transcripts(texts: Sequence[Any]) -> bool:
    """Whether nearly all of these texts are transcripts with a turn of the assistant, open or not."""
    some = [t for t in texts[:LOOKED_AT] if isinstance(t, str) and t.strip()]
    found = sum(parsed(t) is not None and "Assistant:" in t for t in some)
    return bool(some) and found >= NEARLY_ALL * len(some)
