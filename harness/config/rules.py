"""Rules of ``task.curate`` by their names alone: all other settings are those of their YAML in ``conf/curate/``.

So ``task.curate.cap.rows=100,200`` is a sweep like any other, though no task's YAML holds a ``cap``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import UserError
from harness.base.formatting import did_you_mean

KEY, GROUP = "task.curate", "curate"
_SETTING = re.compile(rf"{re.escape(KEY)}[.=]")


def arguments(given: Sequence[str]) -> list[str]:
    """Overrides with those of rules as Hydra has it for keys that may not be there yet (``++``)."""
    return [f"++{argument}" if _SETTING.match(argument) else argument for argument in given]


def named(task: Mapping[str, Any], conf: Path) -> tuple[dict[str, Any], list[UserError]]:
    """A task's node whose rules are whole, and what is wrong with those that are not.

    Args:
        task: its node; a rule may lack its class and settings, which then are those of its name.
        conf: the folder of the YAML groups.
    """
    rules = task.get(GROUP)
    if not isinstance(rules, Mapping):
        return dict(task), []
    found: dict[str, Any] = {}
    errors: list[UserError] = []
    for name, rule in rules.items():
        file = conf / GROUP / f"{name}.yaml"
        if rule is None or (isinstance(rule, Mapping) and "_target_" in rule):
            found[name] = rule
        elif not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            own = f"one of your own: +curate@{KEY}.{name}={name}"
            fix = f"{did_you_mean(str(name), known)} rules are {', '.join(known)}; {own}".lstrip()
            errors.append(UserError("no such rule", key=f"{KEY}.{name}", value=rule, fix=fix))
        elif not isinstance(rule, Mapping):
            fix = f"{KEY}.{name}={{}} for its defaults, or {KEY}.{name}.SETTING=VALUE"
            errors.append(UserError("must be a rule's settings", key=f"{KEY}.{name}", value=rule, fix=fix))
        else:
            found[name] = {**yaml.safe_load(file.read_text(encoding="utf-8")), **rule}
    return {**task, GROUP: found}, errors
