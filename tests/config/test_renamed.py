"""Old names of keys, classes and attributes work for a release, and say so."""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import pytest

from harness.config import identity, renamed
from harness.config.building import import_component
from harness.models.adapters import LoRA
from harness.trial.checks import check_data
from harness.trial.identify import NOT_IN_TRAIN_KEY, identify, training_config


@pytest.fixture(autouse=True)
def fresh():
    renamed.warn.cache_clear()


def test_a_class_is_still_found_where_it_stood_and_the_move_is_told_once(capsys):
    for old, new in renamed.MODULES.items():
        assert importlib.util.find_spec(new) is not None, old
    for _ in range(2):
        assert import_component("harness.adapters.LoRA", key="adapter") is LoRA
    assert capsys.readouterr().err.count("harness.adapters.LoRA is harness.models.adapters.LoRA now") == 1
    for old, new in renamed.CLASSES.items():
        module, _, name = new.rpartition(".")
        assert import_component(old, key="x") is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("train.recipe=mine", "train.preset=mine"),
        ("++train.recipe=mine", "++train.preset=mine"),
        ("+algo.recipes.tiny.lora.steps=3", "+algo.presets.tiny.lora.steps=3"),
        ("~algo.recipes", "~algo.presets"),
        ("train.recipes=mine", "train.recipes=mine"),
        ("train.steps=3", "train.steps=3"),
        ("--config-dir=train.recipe", "--config-dir=train.recipe"),
        ("task.path=train.recipe=x", "task.path=train.recipe=x"),
    ],
)
def test_a_key_of_the_command_line_is_read_by_its_present_name(given, meant, capsys):
    assert renamed.arguments([given]) == [meant]
    assert ("now; the old name" in capsys.readouterr().err) == (given != meant)


def test_a_users_yaml_with_the_old_key_changes_what_it_changed_and_nothing_else():
    shipped = {"preset": "standard", "steps": 1}
    assert renamed.configuration({"train": {**shipped, "recipe": "mine"}})["train"] == {"preset": "mine", "steps": 1}
    table = {"tiny": {"lora": {"steps": 3, "batch_size": 8}}, "standard": {}}
    found = renamed.configuration({"algo": {"presets": table, "recipes": {"tiny": {"lora": {"steps": 5}}}}})
    assert found["algo"] == {"presets": {"tiny": {"lora": {"steps": 5, "batch_size": 8}}, "standard": {}}}
    of_ones_own = {"reward": {"_target_": "mine.Soup", "recipes": ["leek"]}}
    assert renamed.configuration(of_ones_own) == of_ones_own


def test_the_old_key_builds_the_same_trial_under_the_name_that_it_had(assemble):
    setups = [assemble(f"train.{key}=standard", "task.pairs=20") for key in ("recipe", "preset")]
    assert "recipe" not in setups[0].plain["train"] and setups[0].train == setups[1].train
    old, new = (identify(setup, check_data(setup)) for setup in setups)
    assert old.trial_id == new.trial_id and old.train_key == new.train_key
    training = training_config(setups[1])
    spelled = {"recipe" if k == "preset" else k: v for k, v in training["train"].items() if k not in NOT_IN_TRAIN_KEY}
    assert new.trial_id.endswith(identity.digest({**training, "train": spelled}, 8))


def test_a_renamed_key_is_no_reason_to_train_again_in_the_log():
    before = {"config.train.recipe": "tiny", "training code": "a", "config.train.steps": "3"}
    now = {"config.train.preset": "tiny", "training code": "b", "config.train.steps": "3"}
    assert identity.what_changed(before, now) == "training code"


def test_an_adapter_written_with_the_old_attribute_still_says_which_preset_it_takes(capsys):
    class Older(LoRA):
        recipe: ClassVar[str] = "qlora"

    assert Older.preset == "qlora" and "Older.recipe is preset now" in capsys.readouterr().err
