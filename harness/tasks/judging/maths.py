r"""Whether two answers are the same mathematics: ``\frac{1}{2}`` and 0.5, ``(x+1)^2`` and ``x^2+2x+1``.

Hugging Face's ``math-verify`` decides, in processes of its own. It computes with what a model wrote, and
``2^{10^{10}}`` takes a minute and a half; its own limit of time is a signal, which only a main thread can take. A
process can be ended, and judges alike wherever the trial runs.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import queue
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from harness.base.errors import UserError
from harness.base.recent import Recent
from harness.tasks.judging import maths_judge, tally

LIMIT_S = 5.0
"""Of work on one pair. Sound answers take milliseconds."""
PATIENCE = 20
"""Times the limit that a busy machine may need for it."""
STARTS_S = 120.0
INSTALL = "pip install 'alignment-harness[maths]' (in a checkout: pip install -c constraints.txt -e '.[maths]')"
MOST_CHARACTERS = 20_000
"""Of a completion, from its end: where an answer stands."""


def problem(key: str) -> UserError | None:
    """Why answers cannot be compared here; None where they can. ``key`` is the setting that asks for it."""
    if importlib.util.find_spec("math_verify") is not None:
        return None
    return UserError("the package math-verify is not installed", key=key, value="math", fix=INSTALL)


def same(answers: Sequence[str], completions: Sequence[str], limit_s: float = LIMIT_S) -> list[bool]:
    """Whether each completion states its answer.

    The answer that a completion states is what ``math-verify`` finds in it: what stands in a box, after "the answer
    is", else the last expression. Several boxes are a set, so that a list of guesses is no answer.

    Args:
        answers: LaTeX or plain, with or without ``$`` or a box.
        completions: one for each.
        limit_s: seconds of work for one pair; what takes longer is not the same, and is counted (``tally``).
    """
    pairs = [(a, text[-MOST_CHARACTERS:], limit_s) for a, text in zip(answers, completions, strict=True)]
    distinct = list(dict.fromkeys(pairs))
    with ThreadPoolExecutor(min(len(distinct), os.cpu_count() or 1) or 1) as pool:
        verdicts = dict(zip(distinct, pool.map(lambda pair: _judged(*pair), distinct), strict=True))
    for pair in pairs:
        tally.count(verdicts[pair] is None)
    return [verdicts[pair] is True for pair in pairs]


_kept: Recent[tuple[str, str, float], bool | None] = Recent(8192, lambda verdict: verdict is not None)


def _judged(answer: str, completion: str, limit_s: float) -> bool | None:
    """What a reward, the true reward and evaluators ask of one sample; verdicts are kept, and no lack of one."""

    def asked() -> bool | None:
        judge = _bench.take()
        try:
            return judge.ask(answer, completion, limit_s)
        finally:
            _bench.give_back(judge)

    return _kept.once((answer, completion, limit_s), asked)


@dataclass
class _Judge:
    """A process that compares answers, one pair at a time; started when it is first asked, and after its end."""

    process: subprocess.Popen[bytes] | None = None

    def ask(self, answer: str, completion: str, limit_s: float) -> bool | None:
        """The verdict; None where time was up, or the process could not bear the question."""
        asked = json.dumps([answer, completion, limit_s]).encode() + b"\n"
        try:
            process = self._handed(asked)
        except OSError:  # it was ended while it waited
            self.end()
            process = self._handed(asked)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE * limit_s)
        told = process.stdout.readline() if ready else b""
        if not told:
            self.end()
            return None
        return json.loads(told)

    def _handed(self, asked: bytes) -> subprocess.Popen[bytes]:
        """The process, with the question in its pipe."""
        process = self.process or self._started()
        assert process.stdin is not None
        process.stdin.write(asked)
        process.stdin.flush()
        return process

    def _started(self) -> subprocess.Popen[bytes]:
        """A new process, which has said that it is there.

        Raises:
            UserError: it ended at once.
        """
        self.process = process = subprocess.Popen(
            [sys.executable, "-m", maths_judge.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's order of terms follows hashes
        )
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], STARTS_S)
        if not ready or not process.stdout.readline():
            self.end()
            fix = f"try it: {sys.executable} -m {maths_judge.__name__} < /dev/null"
            raise UserError("the process that compares answers did not start", key="math-verify", fix=fix)
        return process

    def end(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was written to a process that is gone
                if pipe is not None:
                    pipe.close()


@dataclass
class _Bench:
    """Judges that wait to be asked; a process that was forked off has its own."""

    owner: int = 0
    waiting: queue.SimpleQueue[_Judge] = field(default_factory=queue.SimpleQueue)

    def take(self) -> _Judge:
        """One that waits, or a new one."""
        if self.owner != os.getpid():
            self.waiting = queue.SimpleQueue()
            self.owner = os.getpid()  # last: another thread may look
            atexit.register(self.close)
        try:
            return self.waiting.get_nowait()
        except queue.Empty:
            return _Judge()

    def give_back(self, judge: _Judge) -> None:
        """It waits again."""
        self.waiting.put(judge)

    def close(self) -> None:
        """End all that wait, where they are this process's own."""
        while self.owner == os.getpid() and not self.waiting.empty():
            self.waiting.get_nowait().end()


_bench = _Bench()
