"""What is made of lm-eval's records: groups, results per document, calibration, leaks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from harness.base.errors import UserError
from harness.config.compose import conf_dir
from harness.evaluators.base import EvalContext, Evaluation
from harness.evaluators.lm_eval import LmEval, by_reported_name, choice_calibration, leaked, per_document
from harness.evaluators.lm_eval_model import CountingModel, length_for
from harness.models.loading import character_tokenizer
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from tests.inside import tell
from tests.toys import build_model, random_llama, write_jsonl


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


# -- length, chat template, generation -------------------------------------------------------------------

SIXTY = 60
"""Tokens of the toy's context (a character each)."""


def toy(**changes: Any) -> EvalContext:
    return EvalContext(
        **{
            "model": random_llama(0, context=SIXTY),
            "tokenizer": character_tokenizer(SIXTY),
            "task": Arithmetic(),
            "data": TaskData(),
            "rows": lambda rows: [dict(r) for r in rows],
            "split": "test",
            "batch_size": 4,
            "max_length": 16,  # of training: not lm-eval's
            "max_completion_length": 8,
            "seed": 0,
            "device": "cpu",
            **changes,
        }
    )


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch) -> Any:
    """``own_tasks(name, prompts, **yaml)`` -> an evaluator of one task with these prompts."""
    import lm_eval.tasks
    import yaml

    manager = lm_eval.tasks.TaskManager  # listing the tasks that come with lm-eval takes 10 s
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **o: manager(**{**o, "include_defaults": False}))

    def make(name: str, prompts: list[str], *, max_length: int | None = None, **fields: Any) -> LmEval:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}_rows.py").write_text(
            f"def rows(**_):\n    from datasets import Dataset\n\n"
            f"    return {{'test': Dataset.from_list([{{'prompt': p}} for p in {prompts!r}])}}\n"
        )
        text = yaml.safe_dump({"task": name, "test_split": "test", "doc_to_text": "{{prompt}}", **fields})
        (folder / f"{name}.yaml").write_text(f"custom_dataset: !function {name}_rows.rows\n{text}")
        return LmEval(tasks=(name,), include_path=str(folder), max_length=max_length)

    return make


def generating(**options: Any) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_target": "1",
        "generation_kwargs": {"until": ["~"], "do_sample": False, "max_gen_toks": 10, **options},
        "metric_list": [{"metric": "exact_match"}],
    }


CHOOSING = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["a", "abc"],
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


def test_a_template_is_compiled_once_and_nobody_is_asked_about_the_machine(own_tasks, monkeypatch):
    from jinja2 import Environment

    compiled: list[str] = []
    whole = Environment.compile

    def counted(self: Environment, source: Any, *arguments: Any, **options: Any) -> Any:
        compiled.append(source)
        return whole(self, source, *arguments, **options)

    monkeypatch.setattr(Environment, "compile", counted)
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: pytest.fail("asked"))
    prompts = [f"a{number}" for number in range(30)]
    told = own_tasks("many", prompts, **CHOOSING).evaluate(toy())
    assert compiled.count("{{prompt}}") == 1 and len(compiled) < 10
    assert {len(column) for column in told.examples["lm_eval_many"].values()} == {30} and "many/acc" in told.metrics


def test_documents_whose_prompt_is_cut_are_counted(own_tasks):
    prompts = ["a" * 50, "a" * 51, "b" * 58, "c" * 59, "d" * 5]
    told = own_tasks("wordy", prompts, **generating()).evaluate(toy())
    assert told.metrics["wordy/truncated"] == 3  # 60 tokens less 10 for the answer
    told = own_tasks("choosy", prompts, **CHOOSING).evaluate(toy())
    assert told.metrics["choosy/truncated"] == 1  # 59 + 3 > 61: the last token is only predicted
    told = own_tasks("asked", prompts, max_length=40, **generating()).evaluate(toy())
    assert told.metrics["asked/truncated"] == 4 and not told.notes


def test_the_length_of_training_is_not_lm_evals(own_tasks):
    assert own_tasks("short", ["1" * 40], **generating()).evaluate(toy()).metrics["short/truncated"] == 0


def test_lm_evals_length_is_the_models_context_and_at_most_8192_unless_asked_for():
    model = SimpleNamespace(config=LlamaConfig(max_position_embeddings=131_072))
    assert length_for(toy(model=model), None) == 8192
    assert length_for(toy(model=model), 20_000) == 20_000
    assert length_for(toy(), None) == SIXTY
    with pytest.raises(UserError, match="context is 60 tokens"):
        length_for(toy(), 61)


def test_a_task_that_asks_for_longer_answers_than_the_context_gets_shorter_ones_and_a_note(own_tasks):
    """As ``ifeval`` does, whose answers may have 1,280 tokens: lm-eval would end with an AssertionError."""
    told = own_tasks("ifeval_like", ["1" * 8], **generating(max_gen_toks=1280)).evaluate(toy())
    assert told.metrics["ifeval_like/truncated"] == 0 and "ifeval_like/exact_match" in told.metrics
    assert told.notes == [
        "ifeval_like: answers have 30 tokens at most, fewer than the task allows (of 60)"
    ]  # fmt: skip


def test_a_choice_longer_than_the_whole_length_is_a_user_error(own_tasks):
    evaluator = own_tasks("long_choice", ["b"], **{**CHOOSING, "doc_to_choice": ["a", "a" * 61]})
    with pytest.raises(UserError, match="scores a text of 61 tokens"):
        evaluator.evaluate(toy())


@pytest.mark.parametrize(("chat", "applied"), [(False, False), (True, True), (None, True)])
def test_the_chat_template_is_applied_where_the_trial_renders_with_it(own_tasks, monkeypatch, chat, applied):
    rendered: list[Any] = []
    monkeypatch.setattr(
        CountingModel, "apply_chat_template", lambda _, turns, **__: rendered.append(turns) or turns[-1]["content"]
    )
    tokenizer = character_tokenizer(SIXTY)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    own_tasks(f"chat_{chat}", ["1", "2"], **generating()).evaluate(toy(tokenizer=tokenizer, chat=chat))
    assert bool(rendered) == applied


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_the_trials_chat_template_is_lm_evals(tmp_path, monkeypatch, setting):
    seen: list[Any] = []
    monkeypatch.setattr(LmEval, "evaluate", lambda _, context: seen.append(context.chat) or Evaluation({}))
    folder = build_model(tmp_path / "model", "llama")
    rows = [{"prompt": f"say {i}", "chosen": f"{i}", "rejected": "no"} for i in range(40)]
    tell(
        tmp_path / "trial", tmp_path / "cache", "algo=none", "model=hf", f"model.path={folder}", "task=preferences",
        f"task.path={write_jsonl(tmp_path / 'rows.jsonl', rows)}", "eval=none", f"model.chat_template={setting}",
        "+evaluator@eval.evaluators.lm_eval=lm_eval", "eval.evaluators.lm_eval.tasks=[gsm8k]", "train.max_length=96",
        "train.max_completion_length=16", sizes=(),
    )  # fmt: skip
    assert set(seen) == {setting == "auto"}


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.0}], ids=["greedy", "sampling"])
def test_the_models_generation_configuration_does_not_bend_a_generating_task_and_the_tasks_own_options_do(
    own_tasks, monkeypatch, options
):
    said: list[list[str]] = []
    generate = CountingModel.generate_until
    monkeypatch.setattr(
        CountingModel, "generate_until", lambda *a, **o: said.append(found := generate(*a, **o)) or found
    )
    served = random_llama(0, context=SIXTY)
    for name, value in {
        "repetition_penalty": 3.0,
        "min_p": 0.5,
        "min_new_tokens": 5,
        "top_k": 1,
        "num_beams": 2,
    }.items():
        setattr(served.generation_config, name, value)
    prompts = [f"{i}+1=" for i in range(8)]
    for i, model in enumerate((random_llama(0, context=SIXTY), served)):
        own_tasks(f"plain{i}", prompts, **generating(**options)).evaluate(toy(model=model))
    own_tasks("bent", prompts, **generating(**options, repetition_penalty=3.0)).evaluate(toy())
    assert said[0] == said[1] != said[2]
    assert served.generation_config.repetition_penalty == 3.0


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
