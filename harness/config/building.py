"""Build validated components from YAML nodes.

A node with a ``_target_`` names a frozen dataclass that is schema and component at once. Building one touches
no GPU, no network and no environment variable. All errors of a configuration are collected, not the first.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from harness.base.errors import UserError, UserErrors
from harness.config import renamed

OWN_PACKAGE = "harness"


def build(node: Any, *, path: str, plugins: Sequence[str] = (), base: type | None = None) -> Any:
    """Turn a plain node into a validated component; raises ``UserErrors`` with everything wrong below ``path``.

    Args:
        node: plain containers, as ``compose`` returns them.
        path: the node's key, for messages (``algo``).
        plugins: packages besides ``harness`` from which classes may be built.
        base: class that the component must derive from.
    """
    errors: list[UserError] = []
    built = _build(node, path, tuple(plugins), errors)
    if errors:
        raise UserErrors(errors)
    if base is not None and not isinstance(built, base):
        raise UserErrors(
            [UserError(f"must be a {base.__name__}, not a {type(built).__name__}", key=f"{path}._target_")]
        )
    return built


def _build(node: Any, path: str, plugins: tuple[str, ...], errors: list[UserError]) -> Any:
    if isinstance(node, list):
        return [_build(item, f"{path}[{i}]", plugins, errors) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        if node == "???":
            errors.append(UserError("a value is required", key=path, fix=f"set it: {path}=..."))
        if isinstance(node, float) and not math.isfinite(node):
            errors.append(UserError("must be a finite number", key=path, value=node, fix=f"give {path} a number"))
        return node
    if "_target_" not in node:
        return {key: _build(value, f"{path}.{key}", plugins, errors) for key, value in node.items()}
    before = len(errors)
    fields = {key: _build(value, f"{path}.{key}", plugins, errors) for key, value in node.items() if key != "_target_"}
    try:
        target = import_component(node["_target_"], key=f"{path}._target_", plugins=plugins)
    except UserError as error:
        errors.append(error)
        return None
    if len(errors) > before:
        # Children are broken: still validate this level's own fields, so that everything is reported at once.
        broken = {e.key for e in errors[before:] if e.key}
        fields = {k: v for k, v in fields.items() if not any(b.startswith(f"{path}.{k}") for b in broken)}
        _validate(target, fields, path, errors, ignore_missing=True)
        return None
    return _validate(target, fields, path, errors)


def _validate(
    target: type, fields: dict[str, Any], path: str, errors: list[UserError], *, ignore_missing: bool = False
) -> Any:
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    if not is_dataclass(target) or inspect.isabstract(target):
        absent = ", ".join(f"{name}()" for name in sorted(getattr(target, "__abstractmethods__", ())))
        rule = f"cannot be built without {absent}" if is_dataclass(target) else "names no dataclass"
        fix = f"write {absent}, or name another class" if absent else "name a component's class"
        errors.append(UserError(rule, key=f"{path}._target_", value=target.__name__, fix=fix))
        return None
    try:
        return TypeAdapter(target).validate_python(fields)
    except ValidationError as failure:
        found: dict[str | None, UserError] = {}
        for item in failure.errors():
            if ignore_missing and item["type"] == "missing":
                continue
            error = _explain(item, target, path)
            found.setdefault(error.key, error)  # of the members of a union, each complains: one is enough
        errors += found.values()
    except (TypeError, PydanticUserError) as failure:
        text = str(failure).splitlines()[0]
        bare = [f"{k}.{n}" for k, v in fields.items() if isinstance(v, Mapping) for n in v if isinstance(v[n], Mapping)]
        if bare:  # where a component belongs, a node without _target_ stayed a dictionary
            path, text = f"{path}.{bare[0]}", "it has no _target_, so its class is not known"
        errors.append(UserError(f"cannot be built ({text})", key=path, fix="check _target_ and the fields"))
    return None


def _explain(item: Any, target: type, path: str) -> UserError:
    """One pydantic error as key, value, rule and fix."""
    # Of a union, pydantic adds the member it tried to the location ("str", "tuple[str, ...]").
    names = [part for part in item["loc"] if isinstance(part, int) or str(part).isidentifier()]
    location = ".".join(str(part) for part in names if part not in ("dataclass", "str", "int", "float", "bool"))
    key = f"{path}.{location}" if location else path
    rule = item["msg"][:1].lower() + item["msg"][1:]
    known = [name for name in inspect.signature(target).parameters]
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if (own := _undeclared(target, str(item["loc"][-1]), key)) is not None:
            return own
        return UserError("unknown key", key=key, fix=f"remove it; known keys of {path}: {', '.join(known) or 'none'}")
    if item["type"] == "missing":
        return UserError("a value is required", key=key, fix=f"set it: {key}=...")
    fix = _example(target, names, key)
    if "expected" in (item.get("ctx") or {}):
        fix = f"use one of {item['ctx']['expected']}"
    return UserError(rule.removeprefix("value error, "), key=key, value=item["input"], fix=fix)


def _undeclared(target: type, name: str, key: str) -> UserError | None:
    """A setting that a class has, and not as a field of a dataclass; None where it has none of the name."""
    if "__dataclass_params__" not in vars(target):
        rule = f"{target.__qualname__} is no dataclass of its own, so it has no settings"
        return UserError(rule, key=key, fix=f"@dataclass(frozen=True) above it, and {name}: TYPE = DEFAULT below")
    if hasattr(target, name):
        rule = f"{target.__qualname__}.{name} has no type, so it is no setting"
        return UserError(rule, key=key, fix=f"{name}: {type(getattr(target, name)).__name__} = ...")
    return None


def _example(target: type, names: Sequence[Any], key: str) -> str:
    """A value of a setting that would do: its default, where it has one."""
    field = next((f for f in fields(target) if names and f.name == names[0]), None)
    if field is not None and len(names) == 1 and isinstance(field.default, bool | int | float | str):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        return f"a value that satisfies this, such as {key}={default}"
    return f"give {key} a value that satisfies this"


def import_component(target: Any, *, key: str, plugins: Sequence[str] = ()) -> type:
    """Import the class behind a ``_target_``; only from ``harness`` and the packages in ``plugins``."""
    name = str(target)
    package = name.split(".")[0]
    if package != OWN_PACKAGE and package not in plugins:
        raise UserError(
            "only classes of harness and of packages listed in plugins are built",
            key=key,
            value=name,
            fix=f"plugins=[{package}]",
        )
    module_name, _, class_name = renamed.class_name(name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "check the dotted path of the class"
        if isinstance(error, ModuleNotFoundError) and error.name and not module_name.startswith(error.name):
            fix = f"{module_name} imports {error.name}, which is not installed, or has another name"
        raise UserError(f"cannot be imported ({error})", key=key, value=name, fix=fix) from None
    if not isinstance(found, type):
        raise UserError("must name a class", key=key, value=name)
    return found
