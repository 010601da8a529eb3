"""What is made of lm-eval's records: groups, results per document, calibration, leaks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import conf_dir
from harness.errors import UserError
from harness.evaluators.lm_eval import by_reported_name, choice_calibration, leaked, per_document
from harness.tasks.base import TaskData
from tests.inside import tell


def record(number: int, *log_likelihoods: float, right: int = 0, **more: Any) -> dict[str, Any]:
    """A multiple-choice record as lm-eval writes it."""
    best = max(range(len(log_likelihoods)), key=lambda i: log_likelihoods[i])
    return {
        "doc_id": number,
        "doc": {"question": f"question {number}"},
        "arguments": [("q", str(i)) for i in range(len(log_likelihoods))],
        "filtered_resps": [(value, False) for value in log_likelihoods],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(best == right),
        **more,
    }


def named(task: str, *records: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**r, "task": task} for r in records]


FIGURES = {"acc,none": 0.5}


# -- groups --------------------------------------------------------------------------------------------


def test_a_group_with_a_figure_is_one_task_with_the_documents_of_its_parts():
    samples = {"law": [record(0, 0.0, -1.0)], "physics": [record(0, 0.0, -1.0), record(1, 0.0, -1.0)]}
    subtasks = {"all": ["stem", "law"], "stem": ["physics"]}
    results = {name: FIGURES for name in ("all", "stem", "law", "physics")}
    found = by_reported_name(samples, subtasks, results, ["all"])
    assert list(found) == ["all"]
    assert [(s["task"], s["doc_id"]) for s in found["all"]] == [("physics", 0), ("physics", 1), ("law", 0)]
    assert list(by_reported_name(samples, subtasks, results, ["all", "law"])) == ["all", "law"]


def test_the_parts_of_a_group_without_a_figure_are_reported_each():
    samples = {"law": [record(0, 0.0, -1.0)], "physics": [record(0, 0.0, -1.0)]}
    results = {"all": {"alias": "all"}, "law": FIGURES, "physics": FIGURES}
    assert list(by_reported_name(samples, {"all": ["law", "physics"]}, results, ["all"])) == ["law", "physics"]


# -- documents -----------------------------------------------------------------------------------------


def test_results_per_document_are_kept_by_filter_and_only_where_all_have_them():
    own = named(
        "maths",
        record(0, 0.0, -1.0, filter="strict", metrics=["exact_match"], exact_match=1.0),
        record(1, 0.0, -1.0, filter="strict", metrics=["exact_match"], exact_match=0.0),
        record(0, 0.0, -1.0, filter="none", metrics=["acc", "words"], words="no number"),
        record(1, 0.0, -1.0, filter="none", metrics=["acc", "rare"], rare=1.0),
    )
    assert per_document("maths", own) == {
        "example": ["maths:0", "maths:1"],
        "maths/exact_match_strict": [1.0, 0.0],
        "maths/acc": [1.0, 1.0],
    }
    assert per_document("talk", named("talk", record(0, 0.0, -1.0, metrics=["words"], words="no number"))) == {}


# -- calibration ---------------------------------------------------------------------------------------


def test_three_right_of_four_at_confidence_three_quarters_is_calibrated():
    sure = (math.log(3), 0.0)  # softmax: 3/4, 1/4
    own = named("quiz", *(record(n, *sure, right=0 if n < 3 else 1) for n in range(4)))
    found = choice_calibration({"quiz": own})
    assert found["quiz/ece"] == pytest.approx(0.0, abs=1e-12)
    assert found["quiz/brier"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)


def test_a_wrong_answer_of_certainty_is_as_badly_calibrated_as_can_be():
    found = choice_calibration({"quiz": named("quiz", record(0, 0.0, -800.0, right=1))})
    assert found == {"quiz/ece": pytest.approx(1.0), "quiz/brier": pytest.approx(1.0)}


def test_tasks_without_choices_and_those_judged_otherwise_have_no_calibration():
    generated = {**record(0, 0.0, -1.0), "filtered_resps": ["19"], "arguments": [("q", {})]}
    twice_asked = {**record(0, 0.0, -1.0), "arguments": [("q", "a")] * 4}  # as acc_mutual_info asks
    graded = {**record(0, 0.0, -1.0), "acc": 0.37}
    for odd in (generated, twice_asked, graded):
        assert choice_calibration({"t": named("t", odd)}) == {}
        assert choice_calibration({"t": named("t", odd, record(1, 0.0, -1.0))}) == {}


# -- leaks ---------------------------------------------------------------------------------------------

LONG = "a train leaves the city at nine and travels at eighty kilometres an hour to the coast"


def context(*prompts: str, allowed: float = 0.0) -> Any:
    return SimpleNamespace(data=TaskData(train_prompts=[{"prompt": p} for p in prompts]), max_leaked=allowed)


def test_a_document_that_training_shows_stops_the_trial_and_is_named():
    own = named("maths", record(0, 0.0, -1.0, doc={"question": "What is Two  plus two?"}), record(1, 0.0, -1.0))
    with pytest.raises(UserError) as error:
        leaked({"maths": own}, context("what is two plus TWO?"))
    for part in ("50.0%", "maths", "What is Two", "what is two plus TWO?", "eval.max_leaked"):
        assert part in str(error.value)


def test_allowed_leaks_are_listed_and_a_passage_inside_a_prompt_is_one():
    own = named("maths", record(0, 0.0, -1.0, doc={"question": LONG, "n": 3}), record(1, 0.0, -1.0))
    (row,) = leaked({"maths": own}, context(f"Solve this: {LONG}. Think.", allowed=0.5))
    assert row["document"] == "maths:0" and "runs of 8 words" in row["how"] and row["text"] == LONG


def test_clean_documents_raise_nothing():
    assert leaked({"maths": named("maths", record(0, 0.0, -1.0))}, context("something else", LONG)) == []


ROWS = """
def rows(**_):
    from datasets import Dataset

    return {"test": Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(30) for b in range(9)])}
"""
SHOWN = """
task: shown
custom_dataset: !function shown_rows.rows
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: ["1", "2"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_leak_ends_the_trial_before_training(tmp_path: Path, monkeypatch):
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager  # listing the tasks that come with lm-eval takes 10 s
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **o: manager(**{**o, "include_defaults": False}))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "shown.yaml").write_text(SHOWN)
    (tasks / "shown_rows.py").write_text(ROWS)
    overrides = (
        "algo=dpo",
        "eval=none",
        "+evaluator@eval.evaluators.lm_eval=lm_eval",
        "eval.evaluators.lm_eval.tasks=[shown]",
        f"eval.evaluators.lm_eval.include_path={tasks}",
    )
    with pytest.raises(UserError, match="of the documents of shown are shown in training"):
        tell(tmp_path / "stopped", tmp_path / "cache", *overrides)
    told = tell(tmp_path / "allowed", tmp_path / "cache", *overrides, "eval.max_leaked=1")
    assert told.metrics.keys() >= {"eval/shown/acc", "eval/shown/ece", "baseline/shown/brier"}


# -- ready-made lists ----------------------------------------------------------------------------------


def test_every_task_of_the_ready_made_lists_comes_with_lm_eval():
    import lm_eval
    import yaml

    lists = {name: yaml.safe_load((conf_dir() / "evaluator" / f"{name}.yaml").read_text())["tasks"]
             for name in ("knowledge", "maths", "truthfulness", "instruction_following")}  # fmt: skip
    folder = Path(lm_eval.__file__).parent / "tasks"
    known = "\n".join(p.read_text(errors="replace") for p in folder.rglob("*.yaml") if p.stat().st_size < 20_000)
    for tasks in lists.values():
        for task in tasks:
            assert f"task: {task}\n" in known or f"group: {task}\n" in known, task
