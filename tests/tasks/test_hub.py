"""Data sets by name, offline: local folders and files stand in for the hub. And the YAMLs of all tasks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from harness.base.errors import UserError, UserErrors
from harness.config.building import import_component
from harness.tasks.base import Task
from harness.tasks.hub import Hub
from harness.tasks.hub_verifiable import HubVerifiable
from harness.tasks.judging.answers import same_answer, stated_answer
from harness.tasks.prompts import template_fields

CONF = Path(__file__).parents[2] / "conf" / "task"
GSM8K = r"#### (-?[\d,\.]+)"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and a cache that dies with the test."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def folder(path: Path, **splits) -> str:
    """A data set of JSON Lines files, one per split."""
    path.mkdir()
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def saved(path: Path, **splits) -> str:
    """A data set as ``save_to_disk`` writes it; split names are free there."""
    import datasets

    tables = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    datasets.DatasetDict(tables).save_to_disk(path)
    return str(path)


def pairs(numbers):
    return [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in numbers]


def problems(numbers):
    return [{"question": f"What is {i}+1?", "answer": f"{i}+1\n#### {i + 1}", "level": 1} for i in numbers]


def prompts_of(rows):
    return {row["prompt"] for row in rows}


# -- preferences ---------------------------------------------------------------------------------------


def test_a_local_folder_is_loaded_and_its_eval_split_halved(tmp_path):
    name = folder(tmp_path / "d", train=pairs(range(6)), test=pairs(range(6, 10)))
    data = Hub(name, eval_split="test").load()
    assert prompts_of(data.train_pairs) == {f"q{i}" for i in range(6)}
    assert [len(data.eval_pairs[s]) for s in ("validation", "test")] == [2, 2]


def test_a_local_file_and_a_data_set_saved_to_disk_are_loaded_too(tmp_path):
    name = folder(tmp_path / "d", train=pairs(range(6)))
    copy = saved(tmp_path / "saved", train=pairs(range(6)))
    assert Hub(f"{name}/train.jsonl").load().digest == Hub(copy).load().digest == Hub(name).load().digest
    with pytest.raises(UserError, match="task.split=test: .*saved has the splits train"):
        Hub(copy, split="test").load()


def test_training_rows_whose_prompt_is_held_out_are_dropped_and_counted(tmp_path):
    name = folder(tmp_path / "d", train=pairs(range(6)), test=pairs(range(4, 8)))
    data = Hub(name, eval_split="test").load()
    assert prompts_of(data.train_pairs) == {"q0", "q1", "q2", "q3"}
    assert "2 prompts are both in" in data.notes[0]
    with pytest.raises(UserError, match="task.eval_split=.*2 prompts are both in"):
        Hub(name, eval_split="test", overlap="error").load()


def test_max_rows_holds_for_every_split(tmp_path):
    name = folder(tmp_path / "d", train=pairs(range(6)), test=pairs(range(6, 10)))
    data = Hub(name, eval_split="test", max_rows=2).load()
    assert prompts_of(data.train_pairs) == {"q0", "q1"}
    assert prompts_of([*data.eval_pairs["validation"], *data.eval_pairs["test"]]) == {"q6", "q7"}


def test_ultrafeedback_rows_become_conversations(tmp_path):
    def row(i):
        head = {"role": "user", "content": f"q{i}"}
        said = {word: [head, {"role": "assistant", "content": word}] for word in ("chosen", "rejected")}
        return {"prompt": f"q{i}", "prompt_id": "0", **said, "messages": said["chosen"], "score_chosen": 9.0}

    name = saved(tmp_path / "d", train_prefs=[row(0)], test_prefs=[row(1), row(2)])
    data = task_of("ultrafeedback", name=name).load()
    assert data.train_pairs == [
        {
            "prompt": [{"role": "user", "content": "q0"}],
            "chosen": [{"role": "assistant", "content": "chosen"}],
            "rejected": [{"role": "assistant", "content": "rejected"}],
        }
    ]


def test_hh_rlhf_rows_become_conversations(tmp_path):
    head = "\n\nHuman: {}\n\nAssistant: Hm.\n\nHuman: so?\n\nAssistant:"
    rows = [{"chosen": head.format(i) + " I do.", "rejected": head.format(i) + " I don't."} for i in range(3)]
    data = task_of("hh_rlhf", name=folder(tmp_path / "d", train=rows[:1], test=rows[1:])).load()
    (row,) = data.train_pairs
    assert [m["content"] for m in row["prompt"]] == ["0", "Hm.", "so?"]
    assert row["chosen"] == [{"role": "assistant", "content": "I do."}]


def test_unpaired_rows_keep_their_labels(tmp_path):
    rows = [{"prompt": f"q{i % 10}", "completion": f"c{i}", "label": i < 10} for i in range(20)]
    data = Hub(folder(tmp_path / "d", train=rows), kind="unpaired").load()
    assert len(data.train_unpaired) == 16 and data.train_pairs == ()
    assert len(data.eval_pairs["validation"]) == len(data.eval_pairs["test"]) == 1


# -- prompts -------------------------------------------------------------------------------------------


def test_prompts_carry_the_answer_that_the_pattern_finds(tmp_path):
    name = folder(tmp_path / "d", train=problems(range(4)), test=problems(range(4, 8)))
    task = HubVerifiable(
        name, eval_split="test", columns={"prompt": "question"}, answer_column="answer", answer_pattern=GSM8K
    )
    data = task.load()
    assert data.train_prompts[0] == {"prompt": "What is 0+1?", "answer": "1"}
    assert [len(data.eval_prompts[s]) for s in ("validation", "test")] == [2, 2]
    assert data.train_pairs == () and data.eval_pairs == {"validation": [], "test": []}


def test_a_template_makes_the_prompt_and_a_system_prompt_makes_it_a_conversation(tmp_path):
    name = folder(tmp_path / "d", train=problems(range(4)))
    data = Hub(name, kind="prompts", prompt_template="[{level}] {question}", system_prompt="Be brief.").load()
    assert {"role": "system", "content": "Be brief."} == data.train_prompts[0]["prompt"][0]
    rows = [*data.train_prompts, *data.eval_prompts["validation"], *data.eval_prompts["test"]]
    texts = {row["prompt"][1]["content"] for row in rows}
    assert texts == {f"[1] What is {i}+1?" for i in range(4)}


def test_gsm8k_as_shipped_reads_its_columns(tmp_path):
    name = folder(tmp_path / "d", train=problems([1233]), test=problems([1, 2]))
    data = task_of("gsm8k", name=name, subset=None).load()
    assert data.train_prompts[0]["answer"] == "1234"
    assert data.train_prompts[0]["prompt"].startswith("What is 1233+1?\n\n")


def test_answers_that_the_pattern_misses_are_skipped_up_to_the_allowed_share(tmp_path):
    rows = [*problems(range(9)), {"question": "q", "answer": "none", "level": 1}]
    name = folder(tmp_path / "d", train=rows)
    task = {"columns": {"prompt": "question"}, "answer_column": "answer", "answer_pattern": GSM8K}
    notes = HubVerifiable(name, allow_skipped=0.1, **task).load().notes
    assert notes == [f"{name}[train]: 1 row skipped, answer does not match task.answer_pattern (row 10)"]
    with pytest.raises(UserError, match="task.allow_skipped=0.05: 1 of 10 rows"):
        HubVerifiable(name, **task).load()


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("2+2=4\n#### 4", "4"),
        ("#### $1,234.", "1234"),
        ("#### 5, no: #### 6", "6"),
        (r"#### 18 beats \boxed{7} and 9", "18"),
        (r"so \boxed{42} after 3 steps", "42"),
        (r"\boxed{\$1,000}", "1000"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("It costs $5.50, so 2 cost $11.00.", "11.00"),
        ("20-7", "7"),
        ("it is -7", "-7"),
        ("1,2,3", "3"),
        ("1,234,567 in all", "1234567"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_stated_answer_is_marked_or_boxed_or_the_last_number(completion, answer):
    assert stated_answer(completion) == answer


def test_answers_are_compared_as_numbers_where_they_are_numbers():
    assert same_answer("18.0", "18") and same_answer("1000", "1,000.") and same_answer("-2", "-2.00")
    assert not same_answer("18", "81") and not same_answer(r"\frac{1}{2}", "1")
    assert same_answer("x + 1", "x+1")


def test_the_true_reward_is_correctness_less_a_cost_per_character():
    task = HubVerifiable("n", answer_column="answer", length_cost=0.01)
    assert task.has_reward and not Hub("n").has_reward
    right, wrong = (task.score({"answer": "1,234"}, said) for said in ("#### 1234", "no idea"))
    assert (right.correct, right.reward) == (True, pytest.approx(1 - 0.09))
    assert (wrong.correct, wrong.reward) == (False, pytest.approx(-0.07))


# -- errors --------------------------------------------------------------------------------------------


def test_a_hub_out_of_reach_says_how_to_work_offline():
    with pytest.raises(UserError) as caught:
        Hub("openai/gsm8k", subset="main").load()
    assert str(caught.value).startswith("task.name=openai/gsm8k: the hub cannot be reached from here")
    assert "load_dataset('openai/gsm8k', 'main')" in caught.value.fix
    assert "task=preferences task.path=FILE" in caught.value.fix


def test_a_split_subset_or_file_that_does_not_exist_is_named(tmp_path):
    name = folder(tmp_path / "d", train=pairs(range(4)))
    with pytest.raises(UserError, match=r'task.split=nope: Unknown split "nope". Should be one of \[\'train\'\]'):
        Hub(name, split="nope").load()
    with pytest.raises(UserError, match="task.eval_split=dev: Unknown split"):
        Hub(name, eval_split="dev").load()
    with pytest.raises(UserError, match=r"task.subset=main: BuilderConfig 'main' not found"):
        Hub(name, subset="main").load()
    with pytest.raises(UserError, match=r"task.name=.*: the data set cannot be loaded"):
        (tmp_path / "empty").mkdir()
        Hub(str(tmp_path / "empty")).load()
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(UserError, match="a file must end in one of"):
        Hub(str(tmp_path / "notes.doc")).load()


def test_columns_that_do_not_exist_are_named_with_those_that_do(tmp_path):
    name = folder(tmp_path / "d", train=problems(range(4)))
    with pytest.raises(UserError, match="chosen is not there; found: question, answer, level"):
        Hub(name).load()
    with pytest.raises(UserError, match="task.prompt_template=.*the columns text are not there; found: question"):
        Hub(name, kind="prompts", prompt_template="{text}").load()
    with pytest.raises(UserError, match="task.answer_column=.*the columns gold are not there"):
        Hub(name, kind="prompts", columns={"prompt": "question"}, answer_column="gold").load()


def test_a_malformed_row_is_named_by_its_number(tmp_path):
    rows = [*pairs(range(3)), {"prompt": "q", "chosen": None, "rejected": "b"}]
    with pytest.raises(UserErrors, match=r"\[train\], row 4, chosen: is null"):
        Hub(folder(tmp_path / "d", train=rows)).load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer_column": "answer"}, "answer_column need kind=prompts, and kind is preferences"),
        ({"kind": "prompts", "answer_pattern": "x"}, "answer_pattern needs answer_column"),
        ({"kind": "prompts", "answer_column": "a", "answer_pattern": "("}, "no regular expression"),
        ({"kind": "prompts", "prompt_template": "{}"}, "no column name"),
        ({"kind": "prompts", "prompt_template": "{a.b}"}, "no column name"),
        ({"kind": "prompts", "prompt_template": "{a"}, "prompt_template"),
        ({"columns": {"question": "q"}}, "columns.question"),
        ({"held_out": 1.0}, "held_out"),
        ({"kind": "pairs"}, "kind"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused_when_the_task_is_built(fields, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Hub).validate_python({"name": "n", **fields})


def test_a_verifiable_task_needs_answers():
    for fields in ({}, {"kind": "preferences", "answer_column": None}):
        with pytest.raises(ValueError, match="needs kind=prompts and answer_column"):
            HubVerifiable("n", **fields)


def test_template_fields_are_distinct_and_doubled_braces_are_braces():
    assert template_fields("{a} {{x}} {b} {a}") == ("a", "b")


# -- the YAMLs -----------------------------------------------------------------------------------------


def node_of(name: str) -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)


def task_of(yaml: str, **fields) -> Task:
    node = {**node_of(yaml), **fields}
    target = import_component(node.pop("_target_"), key="task._target_")
    return TypeAdapter(target).validate_python(node)


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k", "hh_rlhf", "hub", "preferences", "ultrafeedback"])
def test_every_yaml_lists_every_field_so_that_overrides_need_no_plus(name):
    node = node_of(name)
    target = import_component(node.pop("_target_"), key="task._target_")
    assert list(node) == [field.name for field in dataclasses.fields(target)]
    required = {key: "x" for key, value in node.items() if value == "???"}
    task = task_of(name, **required)
    for field in dataclasses.fields(task):
        if name in ("arithmetic", "hub", "preferences") and field.name not in (*required, "columns", "curate"):
            assert getattr(task, field.name) == field.default
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")
