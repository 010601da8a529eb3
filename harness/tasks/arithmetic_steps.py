"""Sums of several operations in the embedded world, whose completions show what is left after each of them.

``12+7-3=`` is answered ``19-3=16``: two steps, parted by the equals sign, each of which either equals the sum or does
not. So every step has a known label, and a right answer can follow a wrong step (``29-3=16``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

SEPARATOR = "="
PROMPTS = 20_000
"""Drawn at most: with four operations there are far more than could be listed."""
_TERM = re.compile(r"[+-]?\d+")


def prompts(
    seed: int, steps: int, max_operand: int, max_second: int, unanswerable: float
) -> list[dict[str, str | None]]:
    """Distinct prompts of ``steps`` operations, drawn from ``seed``, with their answers.

    Nothing on the way falls below zero. A share ``unanswerable``, and two prompts at least, hide an operand behind a
    question mark.
    """
    rng = random.Random(f"sums-{seed}-{steps}")
    found: dict[str, str | None] = {}
    for number in range(PROMPTS):
        value, terms = (start := rng.randint(0, max_operand)), [str(start)]
        for _ in range(steps):
            operand, sign = rng.randint(0, max_second), rng.choice((1, -1))
            sign = sign if value >= operand else 1
            value += sign * operand
            terms.append(f"{'+' if sign > 0 else '-'}{operand}")
        if number < 2 or rng.random() < unanswerable:
            hidden = rng.randrange(len(terms))
            terms[hidden] = f"{terms[hidden][0] if hidden else ''}?"
            found[f"{''.join(terms)}="] = None
        else:
            found[f"{''.join(terms)}="] = str(value)
    return [{"prompt": prompt, "answer": answer} for prompt, answer in found.items()]


def worked(prompt: str) -> list[str]:
    """What is left of a sum after each of its operations, the answer last: ``12+7-3=`` -> ``19-3``, ``16``."""
    return _told(*_values(prompt))


def made_up(rng: random.Random, prompt: str, max_second: int) -> str:
    """The prompt with an operand where it hides one."""
    return prompt.replace("?", str(rng.randint(0, max_second)))


def lucky(rng: random.Random, prompt: str) -> list[str]:
    """One step before the last is wrong, and the answer right all the same."""
    values, terms = _values(prompt)
    at = rng.randrange(len(values) - 1)
    return _told([value + _off(rng, [value]) if i == at else value for i, value in enumerate(values)], terms)


def slipped(rng: random.Random, prompt: str) -> list[str]:
    """A carry slips in one step, and all that follows is as wrong."""
    values, terms = _values(prompt)
    at = rng.randrange(len(values))
    off = _off(rng, values[at:])
    return _told([value + off if i >= at else value for i, value in enumerate(values)], terms)


def labels(prompt: str, said: Sequence[str], *, answered: bool) -> list[bool]:
    """Which steps of a completion are right: those that are what is left of the sum there, whatever came before them.

    Args:
        prompt: with all operands.
        said: the steps; the last one is the answer, however many came before it.
        answered: whether it is right.
    """
    right = worked(prompt)[:-1]
    before = [i < len(right) and text.strip() == right[i] for i, text in enumerate(said[:-1])]
    return [*before, answered]


def _values(prompt: str) -> tuple[list[int], list[str]]:
    """The value after each operation, and the operations."""
    first, *terms = _TERM.findall(prompt)
    values, value = [], int(first)
    for term in terms:
        values.append(value := value + int(term))
    return values, terms


def _told(values: Sequence[int], terms: Sequence[str]) -> list[str]:
    return [f"{value}{''.join(terms[i + 1 :])}" for i, value in enumerate(values)]


def _off(rng: random.Random, values: Sequence[int]) -> int:
    return rng.choice((-10, 10)) if min(values) >= 10 else 10
