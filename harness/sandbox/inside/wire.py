"""Plain values over a pipe between a candidate and its examiner. Standard library alone: it runs inside the sandbox.

Only values of built-in types are carried, and arrive as such: no class, method or ``__eq__`` of the sender's comes with
them. Anything else is a handle, by which the sender is asked about it.
"""

import json
import struct
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes a while to import
    from collections.abc import Callable
    from typing import IO, Any

MOST_BYTES = 16 * 2**20
"""Of one message."""
MOST_ITEMS = 100_000
"""Taken from an iterator, which may have no end."""
EXACT = 2**53


class Handle:
    """Something of the sender's that is no plain value."""

    def __init__(self, number: int) -> None:
        """The sender's number of it."""
        self.number = number


EXACTLY: "dict[type, Any]" = {
    type(None): lambda v: v,
    bool: lambda v: v,
    str: lambda v: v,
    int: lambda v: v if -EXACT < v < EXACT else {"i": hex(v)},
    float: lambda v: {"f": v.hex()},
    bytes: lambda v: {"b": v.hex()},
    bytearray: lambda v: {"a": v.hex()},
    complex: lambda v: {"c": [v.real.hex(), v.imag.hex()]},
}
"""How values of these very types are told."""
EXTENDED: "tuple[Any, ...]" = (int, float, str, bytes, bytearray)
SEQUENCES: "dict[str, Any]" = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": deque}
VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


def pack(value: "Any", keep: "Callable[[Any], int]") -> "Any":
    """A value as JSON has it; ``keep(value)`` numbers what is not plain."""
    kind = type(value)
    if kind in EXACTLY:
        return EXACTLY[kind](value)
    for base in EXTENDED:
        if isinstance(value, base):  # a class of the sender's own: what it extends is told
            plain = base.__str__(value) if base is str else base(value)
            return EXACTLY[base](plain)
    for tag, base in SEQUENCES.items():
        if isinstance(value, base):
            return {tag: [pack(item, keep) for item in base.__iter__(value)]}
    if isinstance(value, dict):
        return {"d": [[pack(k, keep), pack(v, keep)] for k, v in dict.items(value)]}
    if isinstance(value, Handle):
        return {"h": value.number}
    if kind is range:
        return {"r": [hex(part) for part in (value.start, value.stop, value.step)]}
    if kind in VIEWS or hasattr(kind, "__next__"):
        taken = []
        for item in value:
            if len(taken) >= MOST_ITEMS:
                raise ValueError("an iterator of too many items")
            taken.append(pack(item, keep))
        return {"g": taken}
    exact = (kind.__module__, kind.__name__)
    if exact == ("decimal", "Decimal"):
        return {"D": str(value)}
    if exact == ("fractions", "Fraction"):
        return {"F": [hex(value.numerator), hex(value.denominator)]}
    return {"h": keep(value)}


def unpack(told: "Any", handle: "Callable[[int], Any]") -> "Any":
    """The value that ``pack`` told of; ``handle(number)`` stands for what is not plain."""
    if not isinstance(told, dict):
        return told
    ((tag, body),) = told.items()
    if tag == "i":
        return int(body, 16)
    if tag == "f":
        return float.fromhex(body)
    if tag in "ba":
        return bytes.fromhex(body) if tag == "b" else bytearray.fromhex(body)
    if tag == "c":
        return complex(*map(float.fromhex, body))
    if tag == "r":
        return range(*(int(part, 16) for part in body))
    if tag == "D":
        from decimal import Decimal  # seldom, and slow to import

        return Decimal(body)
    if tag == "F":
        from fractions import Fraction

        return Fraction(*(int(part, 16) for part in body))
    if tag == "d":
        return {unpack(k, handle): unpack(v, handle) for k, v in body}
    if tag == "g":
        return iter([unpack(item, handle) for item in body])
    if tag == "h":
        return handle(int(body))
    return SEQUENCES[tag](unpack(item, handle) for item in body)


def send(pipe: "IO[bytes]", message: "Any") -> None:
    """One message, its length first."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MOST_BYTES:
        raise ValueError("a value too large to be looked at")
    pipe.write(struct.pack(">I", len(text)) + text)
    pipe.flush()


def receive(pipe: "IO[bytes]") -> "Any":
    """The next message.

    Raises:
        EOFError: there is none any more.
        ValueError: it is none, or too long.
    """
    head = pipe.read(4)
    if len(head) < 4:
        raise EOFError
    (size,) = struct.unpack(">I", head)
    if size > MOST_BYTES:
        raise ValueError("a message that is too long")
    text = pipe.read(size)
    if len(text) < size:
        raise EOFError
    return json.loads(text)
