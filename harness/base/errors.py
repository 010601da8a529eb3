"""Errors that are the user's to fix: printed without a traceback, exit code 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

_USER = re.compile(r"://(?:[^\s/@:'\"]*:[^\s'\"]*@|[^\s/@'\"]+@)")
_SECRET = re.compile(r"(?i)([?&](?:password|passwd|pwd|sslpassword|token|access_token|api_key)=)[^\s&'\"]+")
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|CUDA error: out of memory",
    re.IGNORECASE,
)
_secrets: dict[str, None] = {}
"""Passwords in use, as they were typed and as they are sent, the longest first."""


def keep_secret(*passwords: str) -> None:
    """Show none of these in any message from now on; very short ones only where they stand in an address."""
    _secrets.update({password: None for password in passwords if len(password) > 3})
    for password in sorted(_secrets, key=len, reverse=True):
        _secrets[password] = _secrets.pop(password)


def without_login(words: str) -> str:
    """A text whose addresses (``scheme://user:password@host``) hold no user and no password."""
    if "://" not in words:
        return words
    return _SECRET.sub(r"\1…", _USER.sub("://…@", words))


def without_password(words: str) -> str:
    """The same, and no password that is in use: libraries quote an address in their errors whole or in pieces."""
    for password in _secrets:
        if password in words:
            words = words.replace(password, "…")
    return without_login(words)


class UserError(Exception):
    """Wrong input, said so that it can be mended: key, value, rule and fix.

    Args:
        rule: what must hold, as a full sentence without a final stop.
        key: the configuration key (``algo.beta``), file or field concerned.
        value: the value that breaks the rule; shown with ``repr``.
        fix: what to type instead.
    """

    _ABSENT = object()

    def __init__(self, rule: str, *, key: str | None = None, value: object = _ABSENT, fix: str | None = None):
        """Store the parts; ``str()`` joins them."""
        self.rule, self.key, self.fix = rule, key, fix
        self.value = value
        head = "" if key is None else key if value is self._ABSENT else f"{key}={_short(value)}"
        lines = [f"{head}: {rule}" if head else rule]
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__(without_password("\n".join(lines)))

    def with_fix(self, fix: str) -> UserError:
        """The same, with what to type instead."""
        return self._kind(self.rule, key=self.key, value=self.value, fix=fix)

    @property
    def _kind(self) -> type[UserError]:
        """The class of a copy; the others take other arguments."""
        return Mismatch if isinstance(self, Mismatch) else UserError

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip between processes."""
        return _restore, (self._kind, self.rule, self.key, self.value is self._ABSENT, repr(self.value), self.fix)


class Mismatch(UserError):
    """Two things do not go together, and either may be sound beside another: a model, and what an adapter names."""


class Stopped(Exception):
    """A trial has lost on the way (``runner.stop_losing``): it ends with the outcome ``stopped``."""


class Diverged(Exception):
    """Weights, logits or losses are no longer finite: no number that follows would mean anything."""


class UserErrors(UserError):
    """Several user errors, reported together."""

    def __init__(self, errors: Iterable[UserError]):
        """Keep the distinct messages, in order."""
        self.errors = list({str(e): e for e in errors}.values())
        super().__init__("\n".join(str(e) for e in self.errors))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip between processes."""
        return UserErrors, (self.errors,)


class _Shown:
    """A value from another process, already rendered."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _restore(kind: type[UserError], rule: str, key: str | None, absent: bool, value: str, fix: str | None) -> UserError:
    return kind(rule, key=key, value=UserError._ABSENT if absent else _Shown(value), fix=fix)


def _short(value: object, limit: int = 120) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Preempted(KeyboardInterrupt):
    """A scheduler will take the machine away.

    Args:
        grace_s: seconds until then.
        then: gives the job back to its scheduler, once all is closed.
    """

    def __init__(self, grace_s: float, then: Callable[[], object]):
        """What is left to be done, and how long it may take."""
        super().__init__()
        self.grace_s, self.then = grace_s, then


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this exception, or one that caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError | OSError) and OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def when_memory_runs_out(error: UserError) -> Iterator[None]:
    """Within it, memory that runs out is this error: for commands, where nobody keeps books of what a trial came to."""
    try:
        yield
    except Exception as what:
        if is_out_of_memory(what):
            raise error from None
        raise
