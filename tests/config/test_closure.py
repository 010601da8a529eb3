"""Which code a key holds: all that can change a number and nothing else. One expression is changed in each module."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import closure, identity
from harness.config.closure import NO_NUMBER, PACKAGE, STORY, Sources, code_digest, data_beside, file_of, within
from harness.config.compose import compose, conf_dir, hydra_config
from harness.models import base_entries
from harness.plan import predict
from harness.stages import classifying, reference
from harness.trial.assemble import Setup, assemble
from harness.trial.checks import check_data
from harness.trial.identify import identify
from harness.trial.keys import baseline_code, judging_code, training_code

FEW = ("task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4", "train.batch_size=8")


@functools.cache
def setup(*overrides: str) -> Setup:
    with hydra_config():
        return assemble(compose(["sweep=test", *FEW, *overrides]))


class Edited(Sources):
    """The sources with other texts in place of some."""

    def __init__(self, texts: dict[Path, str]):
        super().__init__()
        self._texts.update(texts)


def shipped() -> list[str]:
    """Modules of every component that a YAML of the house names."""
    targets = {
        match.rpartition(".")[0]
        for file in conf_dir().rglob("*.yaml")
        for match in re.findall(r"^\s*_target_:\s*(harness\S+)", file.read_text(), flags=re.MULTILINE)
    }
    return sorted(
        t
        for t in targets
        if not t.startswith(("harness.gate", "harness.runner.run_trial", "harness.store.mlflow_store"))
    )


# -- every module has its place ------------------------------------------------------------------------


def test_every_module_that_a_trial_reaches_is_in_a_closure_or_named_with_its_reason():
    reached = closure.closure([STORY, *shipped()], stops=())
    covered = {
        *closure.of_training(shipped()),
        *closure.closure(shipped()),
        *closure.closure(["harness.trial.curve.points"]),
        *(
            name
            for stage in ("sft", "reward_model", "process_model", "reference")
            for name in closure.closure([f"harness.stages.{stage}"])
        ),
    }
    assert [name for name in reached if name not in covered and not within(name, NO_NUMBER)] == []
    assert len(reached) > 60


def test_no_name_in_the_set_is_stale_and_none_is_a_component():
    reached = closure.closure([STORY, *shipped()], stops=())
    assert [name for name in NO_NUMBER if name not in reached] == []
    assert [name for name in shipped() if within(name, NO_NUMBER)] == []
    assert all(reason for reason in NO_NUMBER.values())


def test_evaluators_are_no_part_of_training_and_the_story_no_part_of_evaluation():
    trained, judged = training_code(setup()), judging_code(setup().eval.active.values(), setup().task)
    assert not any(within(name, ("harness.evaluators",)) for name in trained)
    assert {"harness.tasks.conversation", "harness.tasks.arithmetic"} <= trained.keys() & judged.keys()
    assert {"harness.trial.assemble", "harness.trial.context", STORY}.isdisjoint(judged) and {
        "harness.trial.assemble",
        STORY,
    } <= trained.keys()


# -- one expression is changed in each -----------------------------------------------------------------

KEYS: dict[str, Callable[[], dict[str, Path]]] = {
    "train dpo": lambda: training_code(setup()),
    "train ppo": lambda: training_code(setup("algo=ppo", "reward=model")),
    "base": lambda: closure.closure(base_entries(setup().model, setup().task)),
    "eval": lambda: judging_code(setup().eval.active.values(), setup().task),
    "baseline": lambda: baseline_code(setup(), setup().eval.active["true_reward"]),
    "reward model": lambda: classifying.code_of(reward_spec()),
    "references": lambda: reference.code_of(trainer_of("harness.algorithms.dpo")),
    "prediction": lambda: predict.code_of(setup()),
}


def reward_spec() -> Any:
    reward = setup("algo=ppo", "reward=model").reward
    assert reward is not None
    return reward.stages()[0]


def trainer_of(module: str) -> type:
    """A class such as an algorithm makes."""
    return type("Trainer", (), {"__module__": module})


def mutated(source: str) -> str | None:
    """A source with the first of its constants changed; None where it holds none."""
    tree = closure._stripped(ast.parse(source))
    within_text = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
            if id(node) not in within_text:
                return spliced(source, node, repr(changed(node.value)))
    return None


def changed(value: Any) -> Any:
    return not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 1


def spliced(source: str, node: ast.Constant, text: str) -> str:
    """A source with other text where a node stands; columns count bytes."""
    assert node.end_lineno and node.end_col_offset is not None
    lines = source.encode().splitlines(keepends=True)
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    return (before + text.encode() + after).decode()


def reworded(source: str) -> str:
    """A source with another docstring and comments."""
    tree = ast.parse(source)
    assert isinstance(tree.body[0], ast.Expr) and tree.body[0].end_lineno
    rest = source.splitlines(keepends=True)[tree.body[0].end_lineno :]
    return '"""Other words."""\n# and a comment\n' + "".join(rest) + "\n# at the end\n"


@functools.cache
def parts() -> dict[str, dict[str, Path]]:
    return {key: make() for key, make in KEYS.items()}


@functools.cache
def digests() -> dict[str, str]:
    return {key: code_digest(files) for key, files in parts().items()}


MODULES = sorted({name for make in KEYS.values() for name in make()})


@pytest.mark.parametrize("module", MODULES)
def test_a_changed_expression_changes_the_keys_that_hold_the_module_and_a_comment_none(module):
    path = file_of(module)
    assert path is not None
    source = path.read_text()
    other = Edited({path: reworded(source)})
    assert {key: code_digest(files, other) for key, files in parts().items()} == digests()
    if (text := mutated(source)) is None:
        assert path.name == "__init__.py"  # a docstring alone
        return
    edited = Edited({path: text})
    moved = {key for key, files in parts().items() if code_digest(files, edited) != digests()[key]}
    assert moved == {key for key, files in parts().items() if module in files} and moved


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        ("harness.trial.assemble", {"train dpo", "train ppo", "baseline", "prediction"}),
        ("harness.algorithms.budget_meter", {"train dpo", "train ppo", "baseline"}),
        ("harness.tasks.conversation", {*KEYS} - {"base"}),
        ("harness.models", {*KEYS}),
        ("harness.models.embedded", {"base"}),
        ("harness.stages.reward_model", {"train ppo", "reward model", "prediction"}),
        ("harness.stages.reference", {"train dpo", "references", "prediction"}),
        ("harness.models.classifier", {"train ppo", "eval", "reward model", "prediction"}),
        ("harness.algorithms.ppo.mathematics", {"train ppo"}),
        ("harness.algorithms.dpo", {"train dpo", "references", "prediction"}),
        ("harness.evaluators.scoring", {"eval", "baseline", "prediction"}),
        ("harness.evaluators.preference", {"eval"}),
        ("harness.evaluators.true_reward", {"eval", "baseline"}),
        ("harness.base.calibration", {"eval", "baseline", "reward model", "prediction", "train ppo"}),
        ("harness.tasks.arithmetic", {"train dpo", "train ppo", "base", "eval", "baseline", "prediction"}),
        ("harness.rehearsal.tracker", {"prediction"}),
    ],
)
def test_each_kind_of_module_counts_where_it_can_change_a_value(module, keys):
    assert {key for key, files in parts().items() if module in files} == keys


def test_the_code_of_the_curve_counts_where_a_curve_was_asked_for_alone():
    plain, curved = training_code(setup()), training_code(setup("eval.at=[0.5]"))
    taken = {
        "harness.trial.curve.points",
        "harness.trial.curve.undisturbed",
        "harness.evaluators.curve",
        "harness.evaluators.scoring",
    }
    assert taken.isdisjoint(plain) and taken <= curved.keys()


def test_the_keys_of_a_trial_follow_their_code(monkeypatch):
    one = setup("algo=ppo", "reward=model")
    data = check_data(one)
    before, read = identify(one, data), Sources.read
    for module, same in (
        ("harness.trial.context", {"base", "evaluators", "dataset", "held_out"}),
        ("harness.models.embedded", {"code", "evaluators", "dataset", "held_out"}),
        ("harness.evaluators.win_rate", {"code", "base", "dataset", "held_out"}),
        ("harness.store.journal", {"code", "base", "evaluators", "dataset", "held_out"}),
    ):
        path = file_of(module)
        with monkeypatch.context() as change:
            change.setattr(Sources, "read", lambda own, p, path=path: read(own, p) + ("x = 1\n" if p == path else ""))
            after = identify(one, data)
        assert {k for k, v in after.digests.items() if v == before.digests[k]} == same, module
        assert (after.train_key == before.train_key) == (not {"code", "base"} - same), module
        assert (after.eval_key == before.eval_key) == (same == set(before.digests)), module


# -- what counts of a file -----------------------------------------------------------------------------


def meaning(source: str) -> str:
    return closure._parsed(source).meaning


def test_texts_that_stand_alone_and_imports_for_type_checkers_count_for_nothing():
    plain = "import a\nX = 1\ndef f():\n    return X\n"
    told = (
        '"""Module."""\nimport a\nif TYPE_CHECKING:\n    import b\nX = 1\n"""Of X."""\n'
        'def f():\n    """Of f."""\n    # why\n    return (X)\n'
    )
    assert meaning(plain) == meaning(told) != meaning(plain.replace("1", "2"))
    assert closure._parsed(told).imports == (("a", (), 0),)


def test_a_file_of_the_house_is_read_once_per_process(tmp_path, monkeypatch):
    """What is edited during a sweep is not what its processes have imported."""
    monkeypatch.setattr(closure, "PACKAGE", tmp_path)
    sources, file = Sources(), tmp_path / "a.py"
    file.write_text("X = 1")
    first = sources.parsed(file)
    file.write_text("X = 2")
    assert sources.parsed(file) == first != Sources().parsed(file)


def test_the_yaml_of_embedded_lm_eval_tasks_counts_as_evaluation_code():
    path = file_of("harness.evaluators.lm_eval")
    assert path is not None
    beside = {p.name for p in data_beside("harness.evaluators.lm_eval", path)}
    assert beside == {"arithmetic_choice.yaml", "arithmetic_generate.yaml", "letters.yaml", "rows.py"}


def test_no_data_file_of_the_house_lies_where_no_module_counts_it():
    known = {p for f in PACKAGE.rglob("*.py") for p in data_beside(f"harness.{f.stem}", f)}
    code = {
        file_of(".".join(("harness", *f.relative_to(PACKAGE).with_suffix("").parts))) for f in PACKAGE.rglob("*.py")
    }
    others = {p for p in closure.files_below(PACKAGE) if p.name != "__init__.py" and p not in code}
    assert others - known <= {PACKAGE / "py.typed"}


# -- code of the user's --------------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin package ``mine`` with helpers, a module ``beside`` in its folder, and data; returns its folder."""
    files = {
        "mine/__init__.py": "",
        "mine/rewards.py": "from dataclasses import dataclass\nfrom harness.rewards.base import Reward\n"
        "from . import helpers\nfrom .deep.down import VALUE\nimport beside\nimport pytest\n\n"
        "@dataclass(frozen=True)\nclass Short(Reward):\n"
        "    def __call__(self, rows, completions):\n        return [helpers.price(c) for c in completions]\n",
        "mine/helpers.py": "def price(text):\n    from mine import late\n    return -late.PER * len(text)\n",
        "mine/late.py": "PER = 1.0\n",
        "mine/deep/down.py": "VALUE = 1\n",
        "mine/unused.py": "X = 1\n",
        "mine/words.txt": "good\n",
        "beside.py": "X = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in ("mine", "beside")]:
        del sys.modules[name]


def test_a_plugins_helpers_count_wherever_they_are_imported_and_its_data_too(plugin):
    importlib.import_module("mine.rewards")
    found = closure.closure(["mine.rewards"])
    own = {"mine", "mine.rewards", "mine.helpers", "mine.late", "mine.deep.down", "beside"}
    assert {name for name in found if not name.startswith("harness")} == own
    assert "harness.rewards.base" in found
    seen = {code_digest(found)}
    for file, text in (
        ("mine/late.py", "PER = 2.0\n"),
        ("beside.py", "X = 2\n"),
        ("mine/words.txt", "bad\n"),
        ("mine/deep/down.py", "VALUE = 2\n"),
    ):
        (plugin / file).write_text(text)
        digest = code_digest(closure.closure(["mine.rewards"]))
        assert digest not in seen, file
        seen.add(digest)
    for file, text in (("mine/unused.py", "X = 2\n"), ("mine/late.py", "# a comment\nPER = 2.0\n")):
        (plugin / file).write_text(text)
        assert code_digest(closure.closure(["mine.rewards"])) == digest, file


def test_what_a_plugin_imports_of_others_counts_with_its_version(plugin):
    importlib.import_module("mine.rewards")
    assert identity.versions_beside(closure.closure(["mine.rewards"])) == {"pytest": pytest.__version__}


def test_lm_evals_version_counts_where_it_is_imported():
    evaluators = setup().eval.active
    assert "lm_eval" in identity.versions_beside(judging_code([evaluators["lm_eval"]], setup().task))
    assert identity.versions_beside(judging_code([evaluators["preference"]], setup().task)) == {}


# -- fast ----------------------------------------------------------------------------------------------


def test_the_second_trial_of_a_sweep_reads_and_parses_no_file_of_the_house_again(monkeypatch):
    one, other = setup(), setup("beta=0.5")
    identify(one, check_data(one))
    monkeypatch.setattr(ast, "parse", lambda *_: pytest.fail("parsed again"))
    monkeypatch.setattr(Path, "iterdir", lambda self: pytest.fail(f"{self} listed again"))
    identify(other, check_data(other))


def test_a_configuration_that_went_through_json_has_the_same_code():
    plain = json.loads(json.dumps(dict(setup().plain)))
    assert training_code(assemble(plain)) == training_code(setup())
