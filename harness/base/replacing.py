"""One attribute of a module, class or object, replaced for a while. Used where a library offers no other way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within it ``owner.name`` is ``value``; afterwards what it was, or gone if the owner itself had none.

    Raises:
        AttributeError: there is no such attribute: what was to be replaced has another name by now.
    """
    getattr(owner, name)
    own = vars(owner).get(name, MISSING) if hasattr(owner, "__dict__") else MISSING
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


MISSING = object()
