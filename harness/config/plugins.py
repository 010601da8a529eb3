"""Plugins of our own for Hydra, which takes them by the name of the package ``hydra_plugins`` alone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

from hydra.core.plugins import Plugins

from harness.base.errors import UserError

PACKAGE = "hydra_plugins.harness"
OWN = {
    "Listed": ("harness.config.listed", None),
    "Slurm": ("harness.launchers.slurm_jobs", "launchers"),
    "Ray": ("harness.launchers.ray_tasks", "ray"),
}
"""The module of each, and the extra that brings what it needs."""


def register(target: str) -> None:
    """Make one of ours known to Hydra; any other ``target`` is Hydra's own to find.

    Raises:
        UserError: what it needs is not installed.
    """
    package, _, name = target.rpartition(".")
    if package != PACKAGE or name not in OWN:
        return
    module, extra = OWN[name]
    try:
        plugin = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        rule, fix = f"needs {error.name}", f"pip install 'alignment-harness[{extra}]'"
        raise UserError(rule, key="hydra/launcher", value=name.lower(), fix=fix) from None
    parent = package.partition(".")[0]
    if importlib.util.find_spec(parent) is None:  # no launcher that brings it is installed
        sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
    sys.modules.setdefault(package, types.ModuleType(package)).__dict__[name] = plugin
    home = plugin.__module__
    plugin.__module__ = package  # for as long as Hydra reads it: a launcher is pickled by the name of its own module
    try:
        Plugins.instance().register(plugin)
    finally:
        plugin.__module__ = home
