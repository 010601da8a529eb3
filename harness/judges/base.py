"""The contract of a judge: questions in, answers out, the two orders of every pair, and nothing guessed. No torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from harness.base.errors import UserError
from harness.config import closure, identity
from harness.config.theirs import is_own
from harness.tasks.base import Text, text_of

Winner = Literal["first", "second", "tie"]
QUESTION = """\
Which of two replies to a user is better? {criterion}

<user>
{prompt}
</user>

<reply A>
{first}
</reply A>

<reply B>
{second}
</reply B>

Compare the two briefly. Their order and their length say nothing of their quality. Then end with your verdict and \
nothing after it: [[A]] if reply A is better, [[B]] if reply B is better, [[C]] if they are equally good."""
_AT_ONCE = QUESTION.replace("Compare the two briefly. ", "").replace(
    "Then end with your verdict and nothing after it:", "Answer with your verdict alone:"
)
EXCHANGE = """\
<user>
{prompt}
</user>

<reply>
{reply}
</reply>"""
"""One reply and what it replies to, in questions about it alone."""
GRADE = f"""\
How good is a reply to a user? {{criterion}}

{EXCHANGE}

Weigh it briefly. Its length says nothing of its quality. Then end with your grade and nothing after it: a whole \
number from [[1]], useless, to [[10]], as good as can be."""
GRADES = (1, 10)
CRITERION = "Better is what helps the user more: correct, to the point, and as long as it needs to be."
_COMPARED = re.compile(
    r"<user>\n(.*?)\n</user>\n\n<reply A>\n(.*?)\n</reply A>\n\n<reply B>\n(.*)\n</reply B>\n", re.DOTALL
)
_MARKED = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_BARE = re.compile(r"(?:reply\s+)?([ABC])\W*", re.IGNORECASE)
_GRADED = re.compile(r"\[\[\s*(\d+)\s*\]\]")
_BARE_GRADE = re.compile(r"(?:grade:?\s*)?(\d+)(?:\s*/\s*10)?\W*", re.IGNORECASE)
_WINNERS: dict[str, Winner] = {"A": "first", "B": "second", "C": "tie"}


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, as plain text.

    Attributes:
        prompt, first, second: as ``shown``.
        whole: the three as they are, where one of them is messages; for judges with a chat template of their own.
    """

    prompt: str
    first: str
    second: str
    whole: tuple[Text, Text, Text] | None = None

    @classmethod
    def of(cls, prompt: Text, first: Text, second: Text) -> Pair:
        """Of text or messages."""
        parts = (prompt, first, second)
        whole = None if all(isinstance(part, str) for part in parts) else parts
        return cls(shown(prompt), shown(first), shown(second), whole)

    @property
    def turned(self) -> Pair:
        """The same in the other order."""
        whole = None if self.whole is None else (self.whole[0], self.whole[2], self.whole[1])
        return Pair(self.prompt, self.second, self.first, whole)


def shown(value: Text) -> str:
    """Text or messages as a judge reads them: one message is its words, several have their roles before them."""
    if isinstance(value, str) or len(value) == 1:
        return text_of(value)
    return "\n\n".join(f"{m['role']}: {m.get('content', '')}" for m in value)


def spoken(text: str) -> str:
    """What a reply says: without the thoughts that stand before it, and nothing where those do not end."""
    _, ended, said = text.rpartition("</think>")
    if ended:
        return said.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


@dataclass(frozen=True)
class Answer:
    """What a judge said to one question.

    Attributes:
        text: its words.
        asked, said: tokens of question and answer, where somebody counted them.
        whole: whether it came to its end; one that was cut off, or a question too long to be read, is no answer.
        lasting: whether the same judge says so always; a server may be started again with room for what it refused.
    """

    text: str
    asked: int = 0
    said: int = 0
    whole: bool = True
    lasting: bool = True

    @property
    def winner(self) -> Winner | None:
        """The verdict: the last mark, or a letter that is the whole answer; None where the answer cannot be read."""
        said = self.stated(_MARKED, _BARE)
        return None if said is None else _WINNERS[said.upper()]

    @property
    def grade(self) -> int | None:
        """The grade: the last mark, or a number that is the whole answer; None where there is none from 1 to 10."""
        said = self.stated(_GRADED, _BARE_GRADE)
        return int(said) if said is not None and GRADES[0] <= int(said) <= GRADES[1] else None

    def stated(self, marked: re.Pattern[str], bare: re.Pattern[str]) -> str | None:
        """What the first group of ``marked`` finds last, or of ``bare`` in the whole answer; None where neither does.

        What a model thinks before it answers is no part of that, and what was cut off states nothing.
        """
        if not self.whole:
            return None
        said = spoken(self.text)
        if marks := marked.findall(said):
            return marks[-1]
        whole = bare.fullmatch(said)
        return None if whole is None else whole.group(1)


Answering = Callable[[Sequence[str], Callable[[int, Answer], None]], None]
"""Questions, and who is told ``(index, answer)`` of each as soon as it is there, in any order."""


@dataclass(frozen=True)
class Judge(ABC):
    """Compares replies.

    Attributes:
        question: what it is asked, of ``{criterion}``, ``{prompt}``, ``{first}`` and ``{second}``.
        criterion: what better means.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    question: str = QUESTION
    criterion: str = CRITERION

    def asks(self, pair: Pair) -> str:
        """The question about a pair; what replies hold is put in as it is, whatever braces it has.

        The usual one asks for no comparison in words where the verdict is wanted alone.
        """
        usual = self.question == QUESTION
        parts = {"criterion": self.criterion, "prompt": pair.prompt, "first": pair.first, "second": pair.second}
        return filled(_AT_ONCE if usual and self.verdict_alone else self.question, parts)

    def asks_grade(self, prompt: str, reply: str) -> str:
        """The question about one reply alone."""
        return filled(GRADE, {"criterion": self.criterion, "prompt": prompt, "reply": reply})

    def problems(self) -> list[UserError]:
        """What is wrong before anything is asked; torch-free, and without a network."""
        absent = [f"{{{name}}}" for name in ("prompt", "first", "second") if f"{{{name}}}" not in self.question]
        if not absent:
            return []
        rule = f"must hold {' and '.join(absent)}, or the judge does not see it"
        fix = "put it in, as QUESTION in harness/judges/base.py has it"
        return [UserError(rule, key="judge.question", value=self.question, fix=fix)]

    @property
    def verdict_alone(self) -> bool:
        """Whether it is to say nothing before its verdict."""
        return False

    @property
    def writes(self) -> bool:
        """Whether it answers any question in words, such as one for a grade, and does not only compare two replies."""
        return True

    @property
    def reads_criterion(self) -> bool:
        """Whether it reads what better is to mean, so that it can judge by a principle."""
        return True

    def again(self, number: int) -> Judge | None:
        """Itself for the ``number``-th sample of the same questions; None where it says the same each time."""
        return None

    def settled(self) -> Self:
        """Itself with one meaning from now on: a hub id stands for the commit that it is at this moment.

        Taken before its key is; what works and what the key names are then the same. It may use the network.

        Raises:
            UserError: the hub does not say which commit that is.
        """
        return self

    def at_work(self) -> AbstractContextManager[Answering]:
        """Within it, what answers many times; a judge that holds a model loads it once, and frees it afterwards."""
        return nullcontext(self.answers)

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What its answers depend on beside the question; where it is reached is none of that."""

    @abstractmethod
    def answers(self, questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
        """Answer each question; ``told(index, answer)`` is called as soon as one is there, in any order.

        Raises:
            UserError: it cannot be reached, or refuses.
        """

    @property
    def key(self) -> str:
        """Digest of ``identity`` and of the judge's class; of a class of the user's own, of its code too."""
        return self._digest(self.identity)

    @property
    def key_anywhere(self) -> str:
        """The same, wherever it computes: what it said once is used on machines of another kind."""
        return self._digest({name: value for name, value in self.identity.items() if name != "device"})

    def _digest(self, known_by: Mapping[str, Any]) -> str:
        kind = type(self)
        code = closure.code_digest(closure.closure([kind.__module__])) if is_own(self) else None
        return identity.digest({"judge": f"{kind.__module__}.{kind.__qualname__}", "code": code, **known_by})


def filled(question: str, parts: Mapping[str, str]) -> str:
    """The question with its parts, whatever braces these hold."""
    return re.sub(rf"\{{({'|'.join(parts)})\}}", lambda found: parts[found.group(1)], question)


def compared_in(question: str) -> Pair:
    """What a question compares, between the marks that ``QUESTION`` has: for judges that read nothing else of it."""
    found = _COMPARED.search(question)
    prompt, first, second = found.groups() if found else ("", "", "")
    return Pair(prompt, first, second)


@dataclass(frozen=True)
class Comparing(Judge):
    """A judge that reads what stands between the marks of the usual question (``compared_in``), and nothing else."""

    @property
    def writes(self) -> bool:
        """It only compares."""
        return False

    @property
    def reads_criterion(self) -> bool:
        """It knows one meaning of better."""
        return False

    def problems(self) -> list[UserError]:
        """It knows one question."""
        rule = f"is not read by {type(self).__name__}, which reads prompt and replies alone"
        own = {"question": (self.question, QUESTION), "criterion": (self.criterion, CRITERION)}
        return [
            UserError(rule, key=f"judge.{name}", value=value, fix="leave it out")
            for name, (value, usual) in own.items()
            if value != usual
        ]


@dataclass(frozen=True)
class Longer(Comparing):
    """Takes the longer reply, by a rule: what a bias for length comes to, and a judge for trying things."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """It depends on nothing."""
        return {}

    def answers(self, questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
        """By the number of characters between the marks of the question."""
        for number, question in enumerate(questions):
            pair = compared_in(question)
            first, second = len(pair.first), len(pair.second)
            told(number, Answer("[[A]]" if first > second else "[[B]]" if second > first else "[[C]]"))
