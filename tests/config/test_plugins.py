"""Hydra plugins of our own, under the package name that Hydra asks for."""

from __future__ import annotations

import sys

import pytest
from hydra.core.plugins import Plugins

from harness.base.errors import UserError
from harness.config.listed import LISTED, Listed
from harness.config.plugins import OWN, PACKAGE, register


def test_a_plugin_is_known_by_hydras_package_and_pickled_by_its_own():
    register(LISTED)
    assert Plugins.instance().class_name_to_class[LISTED] is Listed
    assert Listed.__module__ == "harness.config.listed"


def test_what_is_not_ours_is_left_to_hydra():
    register("hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    register(f"{PACKAGE}.NoSuch")
    assert f"{PACKAGE}.NoSuch" not in Plugins.instance().class_name_to_class


@pytest.mark.parametrize(
    ("name", "needs", "extra"),
    [
        ("Ray", "hydra_plugins.hydra_ray_launcher", "ray"),
        ("Slurm", "hydra_plugins.hydra_submitit_launcher", "launchers"),
    ],
)
def test_a_launcher_whose_packages_are_missing_names_the_extra(monkeypatch, name, needs, extra):
    monkeypatch.delitem(sys.modules, OWN[name][0], raising=False)
    for module in [needs, *(known for known in sys.modules if known.startswith(f"{needs}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as caught:
        register(f"{PACKAGE}.{name}")
    assert f"alignment-harness[{extra}]" in str(caught.value) and "hydra/launcher" in str(caught.value)
