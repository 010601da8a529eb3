"""A judge of the embedded world, with the faults that it is given: what a judge of such quality does to training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from harness.config import closure
from harness.judges.base import Answer, Comparing, Pair, compared_in
from harness.tasks.arithmetic import Arithmetic

_SUM = re.compile(r"\s*(\d+(?:[+-]\d+)+)=\s*")
_TERM = re.compile(r"[+-]?\d+")
Share = Annotated[float, Ge(0), Le(1)]
OUT_OF = 2**32


@dataclass(frozen=True)
class Sums(Comparing):
    """Reckons the sum: right beats wrong, of two right replies the shorter one wins, of two wrong ones none.

    Which questions meet a fault is drawn by their text and the seed, so the same question has the same answer always.

    Attributes:
        wrong: share of questions to which it says the opposite of what it found.
        first: share of the others to which it names the reply shown first.
        longer: share of the rest to which it names the longer reply.
        seed: of these draws.
    """

    wrong: Share = 0.1
    first: Share = 0.0
    longer: Share = 0.0
    seed: Annotated[int, Ge(0)] = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its faults, and the code that reckons."""
        faults = {"wrong": self.wrong, "first": self.first, "longer": self.longer, "seed": self.seed}
        return {**faults, "code": closure.code_digest(closure.closure([__name__]))}

    def answers(self, questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
        """At once."""
        for number, question in enumerate(questions):
            told(number, Answer(f"[[{self._letter(question)}]]"))

    def _letter(self, question: str) -> str:
        pair = compared_in(question)
        found = _better(pair)
        if self._meets("wrong", question, self.wrong):
            return {"A": "B", "B": "A", "C": "C"}[found]
        if self._meets("first", question, self.first):
            return "A"
        if self._meets("longer", question, self.longer) and len(pair.first) != len(pair.second):
            return "A" if len(pair.first) > len(pair.second) else "B"
        return found

    def _meets(self, fault: str, question: str, share: float) -> bool:
        drawn = hashlib.sha256(f"{self.seed}-{fault}-{question}".encode()).digest()[:4]
        return int.from_bytes(drawn, "big") < share * OUT_OF


def _better(pair: Pair) -> str:
    """The letter of the better reply, or of a tie."""
    asked = _SUM.fullmatch(pair.prompt)
    row = {"prompt": pair.prompt, "answer": None if asked is None else str(sum(map(int, _TERM.findall(asked[1]))))}
    task = Arithmetic(steps=2)  # whose replies may show steps, and need not
    first, second = (task.score(row, reply) for reply in (pair.first, pair.second))
    if first.correct != second.correct:
        return "A" if first.correct else "B"
    if not first.correct or len(pair.first) == len(pair.second):
        return "C"
    return "A" if len(pair.first) < len(pair.second) else "B"
