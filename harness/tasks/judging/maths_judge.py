"""The process that compares answers for ``maths``: a pair a line on standard input, true or false on standard output.

Seconds are of its own work, so that a busy machine changes no verdict. The kernel ends it when they are up: no thread
of Python runs while a number of a gigabyte is computed.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys

MOST_BYTES = 4 * 2**30
WORD = re.compile(r"([A-Za-z]{2,})|\\text\s*\{\s*([A-Za-z]+)\s*\}")
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def main() -> None:
    """Judge until there is nothing more to judge."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        answer, completion, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        marked = re.search(r"(?<!\\)\$|\\boxed", answer) is not None
        word = WORD.fullmatch(answer.strip().strip("$"))
        try:
            asked = parse(answer if marked else f"${answer}$", parsing_timeout=0)
            said = parse(completion, parsing_timeout=0)
            if word is not None:  # else a product of its letters, in any order
                told = (TEXT.sub(r"\1", s).strip() for s in (completion, *said[-1:]) if isinstance(s, str))
                found = (word[1] or word[2]) in told
            else:
                found = completion.strip() == answer.strip() or verify(asked, said, timeout_seconds=0)
        except (Exception, MemoryError, RecursionError):  # sympy's, about anything that can be written
            found = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(found)), flush=True)


if __name__ == "__main__":
    main()
