"""Names that people typed before they changed. Each works for one release, with a warning.

A name that users type is a key of the configuration, a class that YAML names, or an option of a command.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

MODULES = {
    "harness.adapters": "harness.models.adapters",
    "harness.runner": "harness.runner.run_trial",
    "harness.tracking": "harness.store.mlflow_store",
    "harness.training": "harness.config.train",
}
"""Where classes that YAML may name stood before the package had rooms."""
CLASSES = {"harness.gate.policy.Policy": "harness.gate.rules.Rules"}
KEYS = {"train.recipe": "train.preset", "algo.recipes": "algo.presets", "reward.recipes": "reward.presets"}
"""Keys of the configuration; what stands below one moves with it."""

_OVERRIDE = re.compile(r"([+~]{0,2})(\w+\.\w+)(?=[.=]|$)")


@functools.cache
def warn(old: str, new: str) -> None:
    """Say, once in a process, that a name has changed."""
    print(f"warning: {old} is {new} now; the old name goes with the next release", file=sys.stderr, flush=True)


def class_name(name: str) -> str:
    """The dotted path of a class by its present name."""
    module, _, own = name.rpartition(".")
    new = CLASSES.get(name) or (f"{MODULES[module]}.{own}" if module in MODULES else name)
    if new != name:
        warn(name, new)
    return new


def key(name: str) -> str:
    """A key of the configuration, as an older trial wrote it, by its present name."""
    first = ".".join(name.split(".")[:2])
    return KEYS[first] + name[len(first) :] if first in KEYS else name


def arguments(given: Sequence[str]) -> list[str]:
    """A command line, or overrides, with the present names of keys."""
    return [_argument(argument) for argument in given]


def configuration(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A composed configuration with the present names of keys; what was given under an old one wins over a default."""
    found = dict(plain)
    for old, new in KEYS.items():
        (group, before), after = old.split("."), new.split(".")[1]
        node = found.get(group)
        if not isinstance(node, Mapping) or before not in node:
            continue
        if group != "reward" or after in node:  # a reward of somebody's own may have a field of the old name
            warn(old, new)
            rest = {name: value for name, value in node.items() if name != before}
            found[group] = {**rest, after: _merged(rest.get(after), node[before])}
    return found


def _argument(argument: str) -> str:
    match = _OVERRIDE.match(argument)
    if match is None or (new := KEYS.get(match[2])) is None:
        return argument
    warn(match[2], new)
    return f"{match[1]}{new}{argument[match.end() :]}"


def _merged(default: Any, given: Any) -> Any:
    """``given`` on top of ``default``, mapping by mapping."""
    from omegaconf import OmegaConf

    if not (isinstance(default, Mapping) and isinstance(given, Mapping)):
        return given
    return OmegaConf.to_container(OmegaConf.merge(dict(default), dict(given)))
