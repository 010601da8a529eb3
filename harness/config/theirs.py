"""Errors that come out of a user's own classes, said as theirs: which class, which method, which line."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.config.building import OWN_PACKAGE

DOCS = "docs/extending.md"
CONTRACTS = f"{DOCS} says what each method takes and gives"


def is_own(component: object) -> bool:
    """Whether a component is of a class of the user's own."""
    return not type(component).__module__.startswith(f"{OWN_PACKAGE}.")


def own_classes(plain: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """(key, dotted name) of every class in a composed configuration that is no class of the harness."""
    for name, node in plain.items():
        key = f"{at}.{name}" if at else str(name)
        if not isinstance(node, Mapping) or key.startswith("hydra"):
            continue
        target = str(node.get("_target_", OWN_PACKAGE))
        if target.split(".")[0] != OWN_PACKAGE:
            yield key, target
        yield from own_classes(node, key)


def as_theirs(error: Exception, plain: Mapping[str, Any]) -> UserError:
    """Any error that a configuration with a user's own classes led to; one without such classes is raised again."""
    own = dict(own_classes(plain))
    if isinstance(error, UserError):
        return error
    if not own:
        raise error
    if isinstance(error, SyntaxError) and error.filename:
        rule = f"{Path(error.filename).name}, line {error.lineno}, is no Python ({error.msg})"
        return UserError(rule, key=next(iter(own)), value=next(iter(own.values())), fix="mend the file")
    if (found := blamed(error, plain) or _lacking(error, own)) is not None:
        return found
    said = _said(error)
    names = ", ".join(f"{key} ({target})" for key, target in own.items())
    rule = f"a class of your own gives what cannot be worked with ({said}); it is one of: {names}"
    return UserError(rule, key=next(iter(own)), fix=f"see what its methods return; {CONTRACTS}")


def _lacking(error: BaseException, own: Mapping[str, str]) -> UserError | None:
    """Something that a user's own class was asked for, and does not have."""
    if not isinstance(error, AttributeError) or error.obj is None:
        return None
    kind = error.obj if isinstance(error.obj, type) else type(error.obj)
    dotted = f"{kind.__module__}.{kind.__qualname__}"
    key = next((key for key, target in own.items() if target == dotted), None)
    if key is None:
        return None
    rule, fix = f"the class has no {error.name!r}", f"give it one; the table in {DOCS} names what each kind needs"
    return UserError(rule, key=key, value=dotted, fix=fix)


def blamed(error: BaseException, plain: Mapping[str, Any]) -> UserError | None:
    """An error that was raised in a user's own class, or below it: which, and where. None where it was not."""
    own = dict(own_classes(plain))
    packages = {target.split(".")[0] for target in own.values()}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in packages:
            key = next((k for k, target in own.items() if target.rpartition(".")[0] == module), next(iter(own)))
            place = f"{Path(frame.f_code.co_filename).name}:{line}"
            method = frame.f_code.co_qualname.partition(".<locals>")[0]  # and not a comprehension or lambda within it
            name = method.rpartition(".")[2]
            rule = f"{name}() failed at {place} ({_said(error)})"
            return UserError(rule, key=key, value=own[key].rpartition(".")[2], fix=f"mend it; {CONTRACTS}")
    return None


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def plugin_problems(plugins: Any) -> list[UserError]:
    """Packages in ``plugins`` that are not there."""
    found = []
    if isinstance(plugins, str):
        words = "is a list of packages"
        return [UserError(words, key="plugins", value=plugins, fix=f"plugins=[{plugins}], in quotes for a shell")]
    for name in plugins or ():
        try:
            there = importlib.util.find_spec(str(name)) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            fix = "install it, or start from the folder that holds it (PYTHONPATH)"
            found.append(UserError("no such package can be imported", key="plugins", value=str(name), fix=fix))
    return found
