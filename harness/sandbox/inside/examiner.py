"""Asks a candidate, by the tests of a row, and says whether it passed. Standard library alone.

The tests run here, and the program there: what comes from it are plain values (``wire``), which are compared here. A
process of its own, in a sandbox of its own: tests come from a data set, which is trusted to judge and no further.

    python -I -S examiner.py READ WRITE VERDICT SECONDS MEGABYTES
"""

import builtins
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import candidate  # noqa: E402
import wire  # noqa: E402


class Unanswered(BaseException):
    """The candidate is gone, or says what no candidate says; no ``except Exception`` of a test's takes it for less."""


class Raised(Exception):
    """The candidate raised what is no ordinary exception of Python's own."""


OF_ITERATION = (None, "Exception", "StopIteration", "StopAsyncIteration")
"""Handed on as ``Raised``: the end of an iteration would cut a test short that maps the candidate over its cases."""
MALFORMED = (LookupError, ValueError, TypeError, RecursionError, AttributeError, ArithmeticError)


class Candidate:
    """The program's side of the pipe."""

    def __init__(self, asked, told):
        """Two ends of pipes."""
        self.asked, self.told, self.lost = asked, told, False

    def unanswered(self, words, error=None):
        """What to raise; from then on the candidate has failed, whatever a test does with it."""
        self.lost = True
        found = Unanswered(words)
        found.__cause__ = error
        return found

    def ask(self, question):
        """The answer.

        Raises:
            Unanswered: none came.
            Exception: what the program raised, where that is a class of Python's own.
        """
        try:
            if question is not None:
                wire.send(self.asked, question)
            found = wire.receive(self.told)
            if not isinstance(found, dict):
                raise ValueError
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise self.unanswered("no answer: it ended, or took too much", error) from error
        if "raised" in found:
            names = found["raised"] if isinstance(found["raised"], list) and found["raised"] else ["?"]
            known = next((k for k in names if _ordinary(k)), None)
            words = f"{names[0]}: {found.get('words', '')}"
            raise Raised(words) if known in OF_ITERATION else getattr(builtins, known)(words)
        return found

    def call(self, what, args, options):
        """A call with plain arguments; lists and the like that it changes are changed here too."""
        question = {**what, "args": [wire.pack(a, _refused) for a in args]}
        question["options"] = {k: wire.pack(v, _refused) for k, v in options.items()}
        found = self.ask(question)
        try:
            for mine, sent, told in zip(args, question["args"], found.get("args") or (), strict=False):
                if told is not None and told != sent:
                    _become(mine, wire.unpack(told, self.handle))
        except MALFORMED as error:
            raise self.unanswered(f"an answer that is no value ({type(error).__name__})", error) from error
        return self.value(found)

    def value(self, found):
        """What was told."""
        try:
            return wire.unpack(found["value"], self.handle)
        except MALFORMED as error:
            raise self.unanswered(f"an answer that is no value ({type(error).__name__})", error) from error

    def handle(self, number):
        """What stands for an object of the candidate's."""
        return Remote(self, {"of": number}, number)


class Remote:
    """A function or object of the candidate's, which is asked there; equal to nothing."""

    def __init__(self, owner, what, number=None):
        """Where to ask, and for what."""
        self.__dict__.update(_owner=owner, _what=what, number=number)

    def __call__(self, *args, **options):
        """Called there."""
        return self._owner.call(self._what, args, options)

    def __getattr__(self, name):
        """Of the object there; nothing that Python itself asks for."""
        if name.startswith("__"):
            raise AttributeError(name)
        deeper = {**self._what, "attributes": [*self._what.get("attributes", ()), name]}
        return self._owner.value(self._owner.ask(deeper))

    def __eq__(self, other):
        """Not to be had: it would be the candidate's own word."""
        raise self._owner.unanswered("it gave an object of its own, which cannot be compared")

    def __bool__(self):
        """Likewise."""
        raise self._owner.unanswered("it gave an object of its own, which is neither true nor false")

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Names(dict):
    """Global names of the tests: those that they do not define are the candidate's."""

    def __init__(self, owner):
        """Nothing is defined yet."""
        super().__init__(__name__="tests", __builtins__=builtins)
        self._owner = owner

    def __missing__(self, name):
        """The candidate's, where Python itself has none of the name."""
        if hasattr(builtins, name):
            raise KeyError(name)
        return Remote(self._owner, {"name": name})


def _ordinary(name):
    found = getattr(builtins, name, None) if isinstance(name, str) else None
    return isinstance(found, type) and issubclass(found, Exception)


def _refused(value):
    if isinstance(value, Remote) and value.number is not None:
        return value.number
    raise TypeError(f"the tests give the candidate a {type(value).__name__}, which cannot be handed over")


def _become(mine, told):
    """Give an argument the content that it has on the other side."""
    if type(mine) is not type(told):
        return
    mine.clear()
    mine.extend(told) if isinstance(mine, list | bytearray) else mine.update(told)


def examine(paper, owner):
    """Whether the tests hold, and in words why not."""
    try:
        owner.ask(None)  # it has run, or says what it raised
        names = Names(owner)
        exec(compile(paper["tests"], "tests.py", "exec"), names)
        if paper.get("entry_point") and "check" in names:
            names["check"](Remote(owner, {"name": paper["entry_point"]}))
    except AssertionError as error:
        return False, f"a test does not hold: {error}"[:300]
    except BaseException as error:
        return False, f"{type(error).__name__}: {error}"[:300]
    return (False, "no answer") if owner.lost else (True, "")


def main():
    """Read the paper, examine, and say what came of it."""
    read, write, verdict, seconds, megabytes = map(int, sys.argv[1:6])
    told, asked = os.fdopen(read, "rb"), os.fdopen(write, "wb")
    with os.fdopen(verdict, "wb") as out:
        paper = wire.receive(sys.stdin.buffer)
        wire.send(out, {"started": True})
        candidate.limit(seconds, megabytes)
        passed, why = examine(paper, Candidate(asked, told))
        wire.send(out, {"passed": passed, "why": why})


if __name__ == "__main__":
    main()
