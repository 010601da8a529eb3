"""Numbers and foreign text, made fit for a table cell."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence

MISSING = "–"
ELLIPSIS = "…"
_DIGEST = re.compile(r"-[0-9a-f]{8}$")
_SEED = re.compile(r"-s\d+(?= |$)")
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # inside a word an underscore is one

# Everything else that markdown, HTML or GitHub (mentions, mathematics) could act upon.
_ACTIVE = {ord(c): f"&#{ord(c)};" for c in "|`*[]\\~$@#!^"} | {
    ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;",
}  # fmt: skip


def number(value: float | None, *, signed: bool = False, like: float | None = None) -> str:
    """Three decimals for small numbers, fewer for large ones; a missing one is an en dash.

    Args:
        value: the number.
        signed: with a plus sign.
        like: the number whose size sets the decimals; None is ``value`` itself.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value if like is None else like)
    digits = 3 if size < 9.9995 else 1 if size < 999.95 else 0
    shown = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return shown if shown.strip("+-0.,") else shown.lstrip("+-")  # no "-0.000"


def seconds(value: float | None) -> str:
    """Seconds: one decimal below 100."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.1f}" if abs(value) < 99.95 else f"{value:,.0f}"


def whole(value: float | None) -> str:
    """A number of which the decimals do not matter: MB, tokens per second."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def count(n: int, thing: str) -> str:
    """``one seed``, ``3 seeds``."""
    return f"one {thing}" if n == 1 else f"{n:,} {thing}s"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean dpo?`` where one of ``known`` is like ``word``; else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def printable(text: str, limit: int | None = None) -> str:
    """One line of visible characters: line breaks as arrows, control and direction characters by their code.

    Args:
        text: anything, model output included.
        limit: characters after which an ellipsis stands for the rest.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + ELLIPSIS
    shown = text.replace("\r\n", "↵").replace("\n", "↵")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def escape(text: object, limit: int | None = None) -> str:
    """Text as data in markdown: it shows as it is, and nothing in it is markup, not even in a table."""
    return _EMPHASIS.sub("&#95;", printable(str(text), limit).translate(_ACTIVE))


def cell(text: str) -> str:
    """A cell of our own making, which may hold markup but must not end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A markdown table of finished cells; the first ``left`` columns are flush left, the rest right."""
    head = [cell(c) for c in columns]
    rule = [":---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *([cell(c) for c in row] for row in rows)))


def code(lines: str) -> str:
    """A block of shell that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n" + "\n".join(map(printable, lines.split("\n"))) + f"\n{fence}"


def short_id(trial_id: str) -> str:
    """A trial id without its digest: ``dpo-lora-b0.1-r16-s0``."""
    return _DIGEST.sub("", trial_id)


def without_seed(label: str) -> str:
    """A label without its ``-s0``."""
    return _SEED.sub("", label)


def without_shared_seed(labels: Sequence[str]) -> list[str]:
    """Labels without their ``-s0`` where all that have a seed share it and stay distinct; else as they are."""
    seeds = {found.group() for label in labels if (found := _SEED.search(label))}
    short = [without_seed(label) for label in labels]
    return short if len(seeds) == 1 and len(set(short)) == len(set(labels)) else list(labels)
