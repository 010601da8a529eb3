"""Classes of a user's own that break their contract: said before anything trains, as theirs, and one by one."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import Diverged, UserError
from harness.config.theirs import as_theirs, own_classes, plugin_problems
from harness.evaluators.base import Evaluation, sound
from harness.models.making import loaded_as_said, tokenizer_of
from tests.runs import Sandbox

CLASSES = """
from dataclasses import dataclass
from harness.evaluators.base import Evaluation, Evaluator
from typing import ClassVar
from harness.algorithms.dpo import DPO
from harness.models import Shape
from harness.models.adapters import Adapter, LoRA
from harness.rewards.base import Reward
from harness.tasks.base import Score, Task, TaskData


@dataclass(frozen=True)
class Says(Evaluator):
    kind: str = "good"

    def evaluate(self, context):
        if self.kind == "raises":
            raise ValueError("no such word")
        if self.kind == "dict":
            return {"words": 1.0}
        if self.kind == "clash":
            return Evaluation({"true_reward": 1.0})
        if self.kind == "named":
            return Evaluation({"my size (chars)": 1.0})
        if self.kind == "absent":
            return Evaluation({"words": 1.0}, absent=["size"])
        if self.kind == "tables":
            return Evaluation({"words": 1.0}, tables={"said": [1, 2]})
        if self.kind == "uneven":
            return Evaluation({"words": 1.0}, examples={"prompts": {"example": ["a", "b"], "words": [1.0]}})
        return Evaluation({"words": {"text": "many", "lost": float("nan")}.get(self.kind, 1.0)})


@dataclass(frozen=True)
class Loads(Task):
    def load(self):
        return {}["rows"]


@dataclass(frozen=True)
class Scores(Loads):
    has_reward = True

    def load(self):
        pairs = [{"prompt": f"{i}+1=", "chosen": "2", "rejected": "3"} for i in range(48)]
        held = {"validation": pairs[40:44], "test": pairs[44:]}
        asked = {name: [{"prompt": row["prompt"]} for row in rows] for name, rows in held.items()}
        first = [{"prompt": row["prompt"]} for row in pairs[:40]]
        return TaskData(train_pairs=pairs[:40], train_prompts=first, eval_pairs=held, eval_prompts=asked)

    def score(self, row, completion):
        return Score(1.0 / len(completion.split()), True)


@dataclass(frozen=True)
class Based(Scores):
    def score(self, row, completion):
        return Score(1.0, True)

    def base_rows(self, count):
        return [{"prompt": "1+1=", "answer": "2"}] * count


@dataclass(frozen=True)
class Nothing(LoRA):
    name: ClassVar[str] = "nothing"

    def peft_config(self):
        super().peft_config()


@dataclass(frozen=True)
class Inference(LoRA):
    name: ClassVar[str] = "inference"

    def peft_config(self):
        from peft import LoraConfig
        return LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", inference_mode=True)


@dataclass(frozen=True)
class Again(DPO):
    name: ClassVar[str] = "dpo"


@dataclass(frozen=True)
class Nameless(Adapter):
    name: ClassVar[str] = "nameless"

    def peft_config(self):
        from peft import LoraConfig
        return LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Bare(DPO):
    name: ClassVar[str] = "bare"

    def trainer(self, job):
        super().trainer(job)


@dataclass(frozen=True)
class Pair(DPO):
    name: ClassVar[str] = "pair"
    consumes: ClassVar[str] = "pair"


@dataclass(frozen=True)
class Silent(DPO):
    name: ClassVar[str] = "silent"

    def problems(self, *args):
        super().problems(*args)


@dataclass(frozen=True)
class Swapped(Reward):
    def __call__(self, completions, rows):
        return [1.0 for _ in rows]


@dataclass(frozen=True)
class Named(Reward):
    def __call__(self, rows, completions):
        return [float(row["city"] in text) for row, text in zip(rows, completions)]


@dataclass(frozen=True)
class Cities(Task):
    def load(self):
        rows = [{"prompt": f"{i}?", "chosen": "2", "rejected": "3", "city": "5"} for i in range(48)]
        held = {"test": rows[40:]}
        return TaskData(train_pairs=rows[:40], train_prompts=rows[:40], eval_pairs=held, eval_prompts=held)


@dataclass(frozen=True)
class Drawn(Task):
    def load(self):
        import random
        rows = [{"prompt": f"{i}+1=", "chosen": "2", "rejected": "3"} for i in random.sample(range(999), 48)]
        return TaskData(train_pairs=rows[:40], eval_pairs={"test": rows[40:]})


@dataclass(frozen=True)
class Untyped(Reward):
    bonus = 1.0

    def __call__(self, rows, completions):
        return [self.bonus for _ in completions]


class Undecorated(Reward):
    def __init__(self, bonus=1.0):
        self.bonus = bonus

    def __call__(self, rows, completions):
        return [self.bonus for _ in completions]


@dataclass(frozen=True)
class Empty(Reward):
    def __call__(self, rows, completions):
        return [1.0 / len(text) for text in completions]


@dataclass(frozen=True)
class Leaves(Reward):
    def __call__(self, rows, completions):
        raise SystemExit(3)


@dataclass(frozen=True)
class Odd(Shape):
    kind: str = "good"

    def context_length(self):
        if self.kind == "lost":
            raise ValueError("no context")
        return "256" if self.kind == "context" else super().context_length()

    def load(self, source, **options):
        if self.kind == "unseeded":
            import torch
            model = super().load(source, **options)
            torch.seed()
            torch.nn.init.normal_(model.get_input_embeddings().weight)
            return model
        if self.kind == "raises":
            raise RuntimeError("no weights here")
        return None if self.kind == "none" else super().load(source, **options)
"""
SHAPE = """
_target_: mine_to_break.classes.Odd
kind: {kind}
label: odd
architecture: llama
config: {{vocab_size: 300, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
         num_key_value_heads: 2, max_position_embeddings: 2048}}
"""
PRESETS = "presets: {tiny: {lora: {learning_rate: 1.0e-3, steps: 3, batch_size: 8}}}\n"
YAMLS = {
    "adapter/nothing": "_target_: mine_to_break.classes.Nothing\nrank: null\n",
    "adapter/inference": "_target_: mine_to_break.classes.Inference\nrank: null\n",
    **{
        f"algo/{n}": f"_target_: mine_to_break.classes.{n.title()}\nbeta: null\n{PRESETS}"
        for n in ("bare", "pair", "silent")
    },
    "algo/again": f"_target_: mine_to_break.classes.Again\nbeta: null\n{PRESETS}",
    "reward/untyped": "_target_: mine_to_break.classes.Untyped\nbonus: 2.0\n",
    "reward/undecorated": "_target_: mine_to_break.classes.Undecorated\nbonus: 2.0\n",
    "runner/slow": "_target_: harness.runner.run_trial.Runner\ntimeout: 5\n",
}
WORDS = {
    "evaluator/raises": "evaluate() failed at classes.py",
    "evaluator/dict": "gives an Evaluation, not a dict",
    "evaluator/clash": "gives true_reward, which is a metric of true_reward",
    "evaluator/uneven": "columns differ in length",
    "evaluator/text": "no finite number",
    "evaluator/lost": "no finite number",
    "evaluator/named": "gives a metric a name that MLflow takes not",
    "evaluator/absent": "gives absent by name",
    "evaluator/tables": "as rows of columns",
    "task/loads": "load() failed at classes.py",
    "task/scores": "score() raised ZeroDivisionError: float division by zero for the completion ''",
    "task/based": "base_rows(3)[0] lacks 'completion'",
    "adapter/nothing": "peft_config() gives one of peft's configurations, not None",
    "adapter/inference": "peft_config() has inference_mode=True",
    "adapter/nameless": "the class has no 'preset'",
    "algo/bare": "trainer() gives a Training, not NoneType",
    "algo/pair": "consumes must be one of pairs, unpaired, prompts, nothing, not 'pair'",
    "algo/silent": "give lists of errors, not NoneType",
    "reward/swapped": "takes rows first, and then completions",
    "task/drawn": "gives other rows than it gave when the trial was planned",
    "model/unseeded": "load() gives other weights each time",
    "algo/again": "has the name 'dpo', which one of harness's own has",
    "reward/untyped": "Untyped.bonus has no type",
    "reward/undecorated": "Undecorated is no dataclass of its own",
    "reward/empty": "division by zero",
    "reward/leaves": "something in it ends Python; your own are",
    "runner/slow": "runner.timeout: unknown key",
    "model/context": "gives a number of tokens, or None",
    "model/lost": "context_length() failed at classes.py",
    "model/none": "not a NoneType",
    "model/raises": "load() failed at classes.py",
}

SOUND = ("evaluator/good", "reward/named", "task/cities")
"""The reward reads a column of the task, which the embedded model cannot learn from: rows for that are not needed."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A package with the classes above, and a YAML for each mistake."""
    package = tmp_path / "mine_to_break"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "classes.py").write_text(CLASSES)
    for name in (*WORDS, *SOUND):
        group, kind = name.split("/")
        path = tmp_path / "conf" / group / f"{kind}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        of = {"evaluator": f"_target_: mine_to_break.classes.Says\nkind: {kind}\n", "model": SHAPE.format(kind=kind)}
        path.write_text(of.get(group, YAMLS.get(name, f"_target_: mine_to_break.classes.{kind.title()}\n")))
    return tmp_path


@pytest.mark.nightly
def test_validate_names_each_and_goes_on(folder, cache_dir):
    sandbox = Sandbox(folder, cache_dir)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = sandbox.run(
        "validate", "--config-dir=conf", "plugins=[mine_to_break]", quick=False, timeout=900, PYTHONPATH=path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    told = dict(part.split("\n", 1) for part in done.stdout.split("WRONG ")[1:])
    for name, words in WORDS.items():
        said = told[name.replace("/", "=")]
        assert words in said and "fix: " in said, (name, said)
    for name in SOUND:
        assert f"ok  {name.replace('/', '=')}" in done.stdout
    assert f"{len(WORDS)} wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    ("task=loads",), ("+evaluator@eval.evaluators.text=text",), ("+evaluator@eval.evaluators.clash=clash",),
    ("model=context",), ("model=raises", "train.max_length=64"),
])  # fmt: skip
def test_a_sweep_is_refused_before_it_trains(folder, cache_dir, overrides):
    sandbox = Sandbox(folder, cache_dir)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = sandbox.run(
        "--config-dir=conf", "plugins=[mine_to_break]", "algo=dpo", *overrides, "sweep=no", PYTHONPATH=path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert sandbox.folders("no") == []


def test_a_class_of_ones_own_is_found_wherever_it_stands():
    plain = {"eval": {"evaluators": {"w": {"_target_": "mine.W"}}}, "task": {"_target_": "harness.tasks.X"}, "n": 1}
    assert list(own_classes(plain)) == [("eval.evaluators.w", "mine.W")]
    with pytest.raises(KeyError):
        as_theirs(KeyError("ours"), {"task": {"_target_": "harness.tasks.X"}})
    said = str(as_theirs(TypeError("'<' not supported"), {"model": {"_target_": "mine.Model"}}))
    assert said.startswith("model: ") and "mine.Model" in said and "fix: " in said


def test_packages_that_are_not_there_are_named():
    assert plugin_problems(["json", "harness"]) == []
    (error,) = plugin_problems(["no_such_package_at_all"])
    assert error.key == "plugins" and "no_such_package_at_all" in str(error)


def test_an_evaluation_is_numbers_under_names_of_its_own():
    good = Evaluation({"words": 3, "share": 0.5}, examples={"prompts": {"example": ["a"], "words": [3.0]}})
    assert sound("mine", good, {"true_reward": "true_reward"}) == good
    wrong: list[tuple[Any, dict[str, str]]] = [
        ({"words": 1.0}, {}), (Evaluation({"words": "many"}), {}), (Evaluation({"words": float("inf")}), {}),  # type: ignore[dict-item]
        (Evaluation({"words": 1.0}), {"words": "another"}),
        (Evaluation({}, examples={"pairs": {"example": [1, 2], "x": [1.0]}}), {}),
    ]  # fmt: skip
    for found, taken in wrong:
        with pytest.raises(UserError, match="eval.evaluators.mine") as raised:
            sound("mine", found, taken)
        assert raised.value.fix


def test_what_a_model_loads_is_what_its_configuration_says():
    def model(layers: int) -> Any:
        config = SimpleNamespace(hidden_size=64, num_hidden_layers=layers, vocab_size=100)
        config.get_text_config = lambda: config
        return SimpleNamespace(config=config, generate=print)

    two = model(2)
    assert loaded_as_said(two, two.config) is two and loaded_as_said(two, None) is two
    with pytest.raises(UserError, match="num_hidden_layers 4, and not 2"):
        loaded_as_said(model(4), two.config)
    with pytest.raises(UserError, match="not a NoneType"):
        loaded_as_said(None, two.config)


@pytest.mark.parametrize(
    ("given", "words"),
    [(None, "not None"), (lambda: {"input_ids": [97, None]}, "gives None among the ids of 'a'")],
)
def test_what_a_model_gives_as_its_tokenizer_is_one(given, words):
    class Words:
        eos_token_id = None
        encode = decode = get_vocab = str

        def __call__(self, text: str) -> Any:
            return given()

    model: Any = SimpleNamespace(tokenizer=lambda source: given if given is None else Words())
    with pytest.raises(UserError, match=words):
        tokenizer_of(model, None)


def test_what_a_class_of_ones_own_raises_in_a_trial_is_said_as_its_own():
    from harness.runner.child import describe

    space: dict[str, Any] = {"__name__": "mine.rules"}
    exec(compile("def score(text):\n    return 1 / len(text)\n", "rules.py", "exec"), space)
    plain = {"reward": {"_target_": "mine.rules.Mine"}}
    try:
        space["score"]("")
    except ZeroDivisionError as error:
        told = describe(error, plain)
        assert told["error"] == "ZeroDivisionError" and "score() failed at rules.py:2" in str(told["message"])
        assert "fix: mend it" in str(told["message"]) and describe(error, {})["message"] == "division by zero"


def test_what_the_harness_itself_finds_below_a_class_of_ones_own_keeps_its_words():
    from harness.runner.child import describe

    space: dict[str, Any] = {"__name__": "mine.rules", "Diverged": Diverged}
    exec(compile("def evaluate():\n    raise Diverged('the loss is nan')\n", "rules.py", "exec"), space)
    try:
        space["evaluate"]()
    except Diverged as error:
        told = describe(error, {"reward": {"_target_": "mine.rules.Mine"}})
        assert told["error"] == "Diverged" and told["message"] == "the loss is nan"


def test_a_metric_that_is_a_tensor_becomes_a_number():
    import torch

    found = sound("mine", Evaluation({"size": torch.tensor(1.5)}))  # type: ignore[dict-item]
    assert type(found.metrics["size"]) is float and found.metrics["size"] == 1.5
