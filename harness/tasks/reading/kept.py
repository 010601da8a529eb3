"""What follows from the words of many prompts and takes a minute to find: found once, and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harness.base.errors import UserError
from harness.config import closure, identity
from harness.store.cache import Cache
from harness.tasks.base import digest_of

MANY = 5_000
"""Prompts below which finding it again takes less than a second."""
CODE = "harness.tasks.reading.families"
_cache: ContextVar[Cache | None] = ContextVar("cache of splits", default=None)


@contextmanager
def keeping(cache: Cache) -> Iterator[None]:
    """Within it results are kept in ``cache``."""
    token = _cache.set(cache)
    try:
        yield
    finally:
        _cache.reset(token)


def present() -> Cache | None:
    """The cache in which results are kept, where there is one."""
    return _cache.get()


def kept(what: str, texts: Sequence[Sequence[Any]], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``find`` gives, fit for JSON; from the cache where these ``texts`` were looked at before.

    Args:
        what: is found, a stage of the cache.
        texts: everything that ``find`` looks at, text or messages.
        find: finds it.
    """
    cache = _cache.get()
    if cache is None or sum(map(len, texts)) < MANY:
        return find()
    inputs = {
        "texts": digest_of([list(part) for part in texts]),
        "code": closure.code_digest(closure.closure([CODE])),
    }
    try:
        return dict(cache.note(cache.fetch(what, identity.digest(inputs), lambda _: find(), inputs=inputs)))
    except (UserError, OSError):  # a cache that cannot be written keeps nothing
        return find()
