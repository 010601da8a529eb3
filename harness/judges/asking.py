"""Asking a judge about pairs, both ways round; every answer is kept as soon as it is there, and none is asked twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from harness.config import identity
from harness.judges.base import Answer, Answering, Judge, Pair, Winner

Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much."""

MILLION = 1_000_000


@dataclass(frozen=True)
class Verdict:
    """What a judge said of a pair in the two orders; ``first`` is always the pair's own first reply.

    Attributes:
        straight: with the pair's first reply shown first; None: the answer cannot be read.
        turned: with it shown second.
    """

    straight: Winner | None
    turned: Winner | None

    @property
    def readable(self) -> bool:
        """Whether both answers were."""
        return self.straight is not None and self.turned is not None

    @property
    def consistent(self) -> bool:
        """Whether both orders give the same."""
        return self.readable and self.straight == self.turned

    @property
    def won(self) -> float | None:
        """1 where the pair's first reply wins, 0 where the other does; one half of each for an order that says so."""
        if self.straight is None or self.turned is None:
            return None
        points = {"first": 1.0, "tie": 0.5, "second": 0.0}
        return (points[self.straight] + points[self.turned]) / 2


@dataclass(frozen=True)
class Bill:
    """What was asked, and what of it was answered before."""

    asked: int = 0
    kept: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: Bill) -> Bill:
        """Both together."""
        return Bill(
            self.asked + other.asked,
            self.kept + other.kept,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
        )

    def metrics(self, judge: Judge) -> dict[str, float]:
        """The answers that were asked for, what that took in tokens, and in money where the judge has prices."""
        found = {"judge_asked": float(self.asked), "judge_tokens": float(self.tokens_in + self.tokens_out)}
        for tokens, name in ((self.tokens_in, "price_in"), (self.tokens_out, "price_out")):
            price: float | None = getattr(judge, name, None)
            if price is not None:
                found["judge_cost"] = found.get("judge_cost", 0.0) + tokens * price / MILLION
        return found


class Kept:
    """Answers of one judge, by question; a file for each process that adds some, so that none is written by two."""

    def __init__(self, folder: Path | None, judge: Judge):
        """Read what is there; ``None`` keeps nothing."""
        self.known: dict[str, Answer] = {}
        self.folder = None if folder is None else folder / "judge" / judge.key
        self._file: IO[str] | None = None
        self._name: str | None = None
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder is not None else ():
            for line in path.read_bytes().split(b"\n"):
                with suppress(ValueError, KeyError, TypeError):  # the last line of a process that was killed
                    note = json.loads(line)
                    text, whole = note["text"], note.get("whole", True)
                    self.known[note["question"]] = Answer(text, note["asked"], note["said"], whole)

    def add(self, digest: str, answer: Answer) -> None:
        """Remember it, on disk at once if it lasts."""
        self.known[digest] = answer
        if self.folder is None or not answer.lasting:
            return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._name = self._name or f"{time.time_ns():x}-{os.uname().nodename}-{os.getpid()}.jsonl"
            self._file = (self.folder / self._name).open("a", encoding="utf-8")
        self._file.write(json.dumps({"question": digest, **asdict(answer)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; another answer opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Interview:
    """A judge at work, which is asked again and again: what it loads stays, and so does what it said.

    Args:
        judge: whom.
        folder: the cache, in which answers are kept; None keeps them for the while.
    """

    def __init__(self, judge: Judge, folder: Path | None = None):
        """Read what it has said; it is set to work by the first question that it has not answered."""
        self.judge = judge.settled()
        self.kept = Kept(folder, self.judge)
        self._work = ExitStack()
        self._answers: Answering | None = None

    def __enter__(self) -> Interview:
        """The interview."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free what the judge holds."""
        self.close()

    def close(self) -> None:
        """Free what the judge holds."""
        self._answers = None
        self._work.close()

    def answers(self, questions: Sequence[str], progress: Progress | None = None) -> tuple[list[Answer], Bill]:
        """An answer to each question; equal ones are asked once.

        Raises:
            UserError: the judge gave no answer; all that it had given are kept.
        """
        digests = [identity.digest({"question": question}) for question in questions]
        missing = {d: q for d, q in zip(digests, questions, strict=True) if d not in self.kept.known}
        names, before = list(missing), len(set(digests)) - len(missing)
        done = tokens_in = tokens_out = 0

        def told(number: int, answer: Answer) -> None:
            nonlocal done, tokens_in, tokens_out
            if names[number] in self.kept.known:
                return
            self.kept.add(names[number], answer)
            done, tokens_in, tokens_out = done + 1, tokens_in + answer.asked, tokens_out + answer.said
            if progress is not None:
                progress("judge", done, len(names))

        if names:
            if self._answers is None:
                self._answers = self._work.enter_context(self.judge.at_work())
            try:
                self._answers(list(missing.values()), told)
            finally:
                self.kept.close()
        return [self.kept.known[digest] for digest in digests], Bill(done, before, tokens_in, tokens_out)

    def verdicts(
        self, pairs: Sequence[Pair], progress: Progress | None = None, criteria: Sequence[str] | None = None
    ) -> tuple[list[Verdict], Bill]:
        """Both orders of every pair; with ``criteria`` better means something of its own for each."""
        asking = [self.judge] * len(pairs) if criteria is None else [replace(self.judge, criterion=c) for c in criteria]
        questions = [judge.asks(one) for judge, pair in zip(asking, pairs, strict=True) for one in (pair, pair.turned)]
        answers, bill = self.answers(questions, progress)
        said: list[Winner | None] = [answer.winner for answer in answers]
        return [Verdict(said[2 * i], _turned(said[2 * i + 1])) for i in range(len(pairs))], bill


def ask(
    judge: Judge, pairs: Sequence[Pair], folder: Path | None = None, progress: Progress | None = None
) -> tuple[list[Verdict], Bill]:
    """Both orders of every pair, once.

    Args:
        judge: whom.
        pairs: whatever it is to compare; equal questions are asked once.
        folder: the cache, in which answers are kept.
        progress: told of answers.

    Raises:
        UserError: the judge gave no answer; all that it had given are kept.
    """
    with Interview(judge, folder) as interview:
        return interview.verdicts(pairs, progress)


def answered(
    judge: Judge, questions: Sequence[str], folder: Path | None = None, progress: Progress | None = None
) -> tuple[list[Answer], Bill]:
    """An answer to each question, once, as ``ask`` has it for pairs."""
    with Interview(judge, folder) as interview:
        return interview.answers(questions, progress)


def _turned(winner: Winner | None) -> Winner | None:
    """Who wins where the replies were shown the other way round."""
    return "second" if winner == "first" else "first" if winner == "second" else winner
