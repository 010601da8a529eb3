"""What of a task judges completions is in the keys of everything that they are judged by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from harness.judges.principles import Constitution
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.code import Code
from harness.tasks.hub import Hub
from harness.tasks.hub_verifiable import HubVerifiable
from harness.tasks.preferences import Preferences
from harness.tasks.problems import Problems
from harness.tasks.reasoning import ReasoningGym
from harness.trial.assemble import assemble
from harness.trial.identify import identify
from tests.inside import tell
from tests.toys import build_model, write_jsonl

RULES: dict[type, set[str]] = {
    Arithmetic: {"length_cost", "steps"}, Problems: {"length_cost", "answers"}, Preferences: set(),
    Hub: {"length_cost"}, HubVerifiable: {"length_cost", "answers"}, Code: {"sandbox", "timeout_s", "memory_mb"},
    ReasoningGym: {"name", "options", "length_cost"}, Constitution: set(),
}  # fmt: skip


@pytest.mark.parametrize("task", RULES)
def test_every_field_is_of_the_rows_or_of_the_rule(task):
    names = {field.name for field in fields(task)}
    assert task.shape_rows <= names
    assert names - task.shape_rows == RULES[task]


def test_a_field_of_a_users_own_task_judges_unless_it_says_otherwise():
    @dataclass(frozen=True)
    class Mine(Problems):
        strictness: float = 0.5

    assert Mine(path="x.jsonl").judged_by == {"length_cost": 0.0, "answers": "number", "strictness": 0.5}


@pytest.mark.parametrize("change", ["task.length_cost=0.01", "task.answers=math"])
def test_trials_that_are_judged_by_other_rules_differ_in_evaluation_and_have_their_rows_in_common(
    tmp_path, compose, change
):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(40)])
    build_model(tmp_path / "model", "qwen2")
    problems = (
        "task=problems", f"task.path={tmp_path / 'p.jsonl'}", "model=hf", f"model.path={tmp_path / 'model'}",
        "algo=grpo", "train.max_length=64",
    )  # fmt: skip
    trials = []
    for words in ((), (change,)):
        plain: dict[str, Any] = compose(*problems, "reward=length", *words)
        setup = assemble(plain)
        trials.append(identify(setup, setup.task.load(), device="cpu"))
    one, other = (trial.digests for trial in trials)
    assert one["held_out"] == other["held_out"] and one["evaluators"] != other["evaluators"]


@pytest.mark.slow
def test_the_base_is_judged_anew_by_another_rule_and_scored_once(tmp_path):
    """Its samples are the same; what they are worth is not."""
    quick = ("eval.evaluators.lm_eval=null", "algo=none", "adapter=full")
    told = [tell(tmp_path / str(n), tmp_path / "cache", *quick, f"task.length_cost={n / 100}") for n in (1, 2)]
    stages = told[1].stages
    assert stages["held-out-samples"] and not stages["baseline-true_reward"]
    one, other = (t.metrics["baseline/true_reward"] for t in told)
    assert one > other


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [pytest.param("model.attention=eager", marks=pytest.mark.nightly), "train.share_prefix=false"]
)
def test_how_a_model_is_read_is_known_of_all_that_is_kept_of_it(tmp_path, change):
    quick = ("eval.evaluators.lm_eval=null", "eval.evaluators.true_reward=null", "algo=dpo", "adapter=lora",
             "algo.share_reference=true")  # fmt: skip
    told = [tell(tmp_path / str(n), tmp_path / "cache", *quick, *more) for n, more in enumerate(((), (change,)))]
    again = told[1].stages
    kept = {"baseline-preference", "held-out-pairs", "reference"}
    assert kept <= again.keys(), again
    assert {stage for stage in kept if again[stage]} == set()
    assert again["sft"], "the weights are the same"
