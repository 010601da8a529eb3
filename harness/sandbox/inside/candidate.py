"""Runs a program that nobody trusts, and answers calls of its functions. Standard library alone.

What it answers are values. Whether they are right is decided elsewhere, by a process that it cannot reach: nothing that
the program prints, returns as exit code, patches or reads changes what the right value is.

    python -I -S candidate.py READ WRITE SECONDS MEGABYTES
"""

import os
import resource
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire  # noqa: E402

FILES, FILE_BYTES = 64, 16 * 2**20


def limit(seconds, megabytes):
    """Of this process, for good; there can be no other."""
    own = (
        int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if os.path.exists("/proc/self") else 0
    )
    most = {
        resource.RLIMIT_AS: own + megabytes * 2**20,
        resource.RLIMIT_CPU: seconds + 1,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for kind, value in most.items():
        soft, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def main():
    """Run the program that is sent, then answer until nobody asks."""
    read, write, seconds, megabytes = map(int, sys.argv[1:5])
    asked, told = os.fdopen(read, "rb"), os.fdopen(write, "wb")
    program = wire.receive(asked)["program"]
    limit(seconds, megabytes)
    names = {"__name__": "solution", "__builtins__": __builtins__}
    held = []

    def keep(value):
        for number, known in enumerate(held):
            if known is value:
                return number
        held.append(value)
        return len(held) - 1

    try:
        exec(compile(program, "solution.py", "exec"), names)
    except BaseException as error:
        failed(told, error)
        return
    wire.send(told, {"ready": True})
    while True:
        try:
            call = wire.receive(asked)
        except (EOFError, ValueError):
            return
        try:
            answer(call, names, held, keep, told)
        except BaseException as error:
            failed(told, error)


def answer(call, names, held, keep, told):
    """One question: a call, or an attribute."""
    if "name" in call:
        if call["name"] not in names:
            raise NameError(f"name {call['name']!r} is not defined")
        what = names[call["name"]]
    else:
        what = held[call["of"]]
    for attribute in call.get("attributes", ()):
        what = getattr(what, attribute)
    if "args" not in call:
        wire.send(told, {"value": wire.pack(what, keep)})
        return
    args = [wire.unpack(value, held.__getitem__) for value in call["args"]]
    options = {key: wire.unpack(value, held.__getitem__) for key, value in call["options"].items()}
    value = wire.pack(what(*args, **options), keep)
    changed = [wire.pack(arg, keep) if isinstance(arg, list | dict | set | bytearray) else None for arg in args]
    wire.send(told, {"value": value, "args": changed})


def failed(told, error):
    """An exception, by its name and words."""
    try:
        words = str(error)[:200]
    except BaseException:  # its class is the program's own, and its __str__ may do anything
        words = ""
    wire.send(told, {"raised": [k.__name__ for k in type(error).__mro__], "words": words})


if __name__ == "__main__":
    main()
