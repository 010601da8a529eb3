"""What stands before every prompt: as text, as messages, from whichever source, and what is not the policy's."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.base.errors import UserError, UserErrors
from harness.config import identity
from harness.config.building import build
from harness.plan import predict
from harness.sweep import deep_checks
from harness.tasks.base import TaskData
from harness.tasks.conversation import Style
from harness.tasks.preamble import Preamble, Prompt, preamble_of
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from harness.trial.identify import identify
from tests.inside import plain_config
from tests.toys import write_jsonl

SHOT = {"prompt": "1+1=", "completion": "2"}
PAIRS = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
    {"prompt": "1+1=", "chosen": "2.", "rejected": "3"},
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
]


def made(prompt: Prompt, data: TaskData | None = None, **options: Any) -> Preamble | None:
    options = {"allow_skipped": 0.05, "chat": False, "embedded": False, **options}
    return preamble_of(prompt, data or TaskData(train_pairs=PAIRS), **options)


def turn(role: str, words: str) -> dict[str, str]:
    return {"role": role, "content": words}


# -- what is written -----------------------------------------------------------------------------------


def test_a_text_comes_after_the_system_message_and_the_examples():
    before = made(Prompt(system="Add.", shots=(SHOT,)))
    assert before is not None and before.before("3+4=") == "Add.\n\n1+1=2\n\n3+4="
    space = made(Prompt(shots=(SHOT,)), embedded=True)
    assert space is not None and space.before("3+4=") == "1+1=2 3+4="
    chosen = made(Prompt(system="Add.", join="\\n"))
    assert chosen is not None and chosen.before("3+4=") == "Add.\n3+4="


def test_messages_get_turns_of_examples_and_their_own_system_message_is_replaced():
    before = Preamble("Add.", (("1+1=", "2"),))
    solved = [turn("user", "1+1="), turn("assistant", "2")]
    asked = [turn("user", "3+4=")]
    assert before.before(asked) == [turn("system", "Add."), *solved, *asked]
    assert before.before([turn("system", "Be kind."), *asked]) == [turn("system", "Add."), *solved, *asked]
    alone = Preamble(None, (("1+1=", "2"),))
    assert alone.before([turn("system", "Be kind."), *asked]) == [turn("system", "Be kind."), *solved, *asked]


def test_an_example_of_messages_brings_its_turns_without_its_system_message():
    shot = ([turn("system", "Be kind."), turn("user", "1+1=")], [turn("assistant", "2")])
    asked = [turn("user", "3+4=")]
    found = Preamble("Add.", (shot,)).before(asked)
    assert found == [turn("system", "Add."), turn("user", "1+1="), turn("assistant", "2"), *asked]


def test_an_example_is_not_shown_before_its_own_prompt():
    before = Preamble(None, (("1+1=", "2"), ("2+2=", "4")))
    assert before.before("1+1=") == "2+2=4\n\n1+1="
    assert before.before([turn("user", "2+2=")])[0] == turn("user", "1+1=")
    assert len(before.before([turn("user", "2+2=")])) == 3


def test_a_style_writes_it_before_the_prompt_alone_and_its_bare_form_does_not():
    style = Style(chat=True, folds_system=True, preamble=Preamble("Add."))
    row = {"prompt": "3+4=", "chosen": "7", "rejected": "8"}
    assert style.rows([row])[0]["prompt"] == [turn("user", "Add.\n\n3+4=")]
    assert style.rows([row])[0]["chosen"] == [turn("assistant", "7")]
    assert style.bare.rows([row])[0]["prompt"] == [turn("user", "3+4=")]


# -- where examples come from --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        TaskData(train_pairs=PAIRS),
        TaskData(
            train_unpaired=[
                {"prompt": "1+1=", "completion": "3", "label": False},
                {"prompt": "1+1=", "completion": "2", "label": True},
                {"prompt": "2+2=", "completion": "4", "label": True},
            ]
        ),
        TaskData(
            train_prompts=[
                {"prompt": "?", "answer": None},
                {"prompt": "1+1=", "answer": 2},
                {"prompt": "2+2=", "answer": 4},
            ]
        ),
    ],
    ids=["pairs", "unpaired", "answers"],
)  # fmt: skip
def test_a_number_takes_so_many_solved_training_rows_of_different_prompts(data):
    found = made(Prompt(shots=2), data)
    assert found is not None and found.shots == (("1+1=", "2"), ("2+2=", "4"))
    with pytest.raises(UserError, match="2 solved prompts"):
        made(Prompt(shots=3), data)


def test_a_file_is_read_and_its_content_is_part_of_the_key(tmp_path):
    path = write_jsonl(tmp_path / "shots.jsonl", [SHOT])
    found = made(Prompt(shots=str(path)))
    assert found is not None and found.shots == (("1+1=", "2"),)

    def key() -> str:
        setup = assemble(plain_config("algo=none", f"prompt.shots={path}"))
        return identify(setup, check_data(setup)).train_key

    before = key()
    write_jsonl(path, [{"prompt": "1+1=", "completion": "two"}])
    assert key() != before


def test_nothing_before_a_prompt_is_no_preamble_and_no_part_of_a_trial():
    assert not Prompt() and made(Prompt()) is None
    setup = assemble(plain_config("algo=none"))
    assert "prompt" not in identify(setup, check_data(setup)).config
    asked = assemble(plain_config("algo=none", "prompt.shots=1"))
    found = identify(asked, check_data(asked))
    assert found.config["prompt"] == {"shots": 1}
    plain = identify(setup, check_data(setup))
    assert found.trial_id != plain.trial_id and found.digests["dataset"] == plain.digests["dataset"]


def test_predictions_and_checks_are_of_the_prompt_too(tmp_path):
    """Longer rows take more memory, and may not fit into the context."""
    path = write_jsonl(tmp_path / "shots.jsonl", [SHOT])
    prompts = [(), ("prompt.shots=1",), ("prompt.system=Add.",), (f"prompt.shots={path}",)]
    plains = [plain_config("algo=dpo", *words) for words in prompts]
    setups = [assemble(plain) for plain in plains]
    assert len({identity.digest(predict.inputs(s, predict.Target(False))) for s in setups}) == 4
    before = predict.inputs(setups[3], predict.Target(False))
    write_jsonl(path, [{"prompt": "1+1=", "completion": "two"}])
    assert predict.inputs(setups[3], predict.Target(False)) != before
    assert len({str(deep_checks._read(plain)) for plain in plains}) == 4
    assert [deep_checks._needs_checking(s) for s in setups[1:]] == [True] * 3


def test_one_kind_of_algorithm_is_checked_as_another_is_not():
    plains = [plain_config(*words) for words in (("algo=dpo",), ("algo=grpo",), ("algo=dpo", "eval.max_length=32"))]
    assert len({str(deep_checks._read(plain)) for plain in plains}) == 3
    assert deep_checks._read(plain_config("algo=dpo", "beta=0.3")) == deep_checks._read(plains[0])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(shots=({"prompt": "9+9=", "completion": "18"},)), "held-out prompt"),
        (Prompt(shots=({"prompt": [turn("user", "1+1=")], "completion": "2"},)), "made of messages"),
        (Prompt(shots="nowhere.jsonl"), "nowhere.jsonl|no such file|not there"),
    ],
)
def test_examples_that_cannot_be_are_refused(prompt, words):
    held = {"test": [{"prompt": "9+9=", "answer": "18"}]}
    with pytest.raises(UserError) as refused:
        made(prompt, TaskData(train_pairs=PAIRS, eval_prompts=held))
    assert refused.value.key == "prompt.shots"
    assert re.search(words, str(refused.value))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shots": -1}, "greater than or equal to 0"),
        ({"shots": True}, "shots"),
        ({"shots": [{"prompt": "1+1="}]}, "must have prompt and completion"),
        ({"system": " "}, "blank"),
        ({"sytem": "Add."}, "sytem"),
    ],
)
def test_wrong_settings_are_named(fields, words):
    with pytest.raises(UserErrors, match=words):
        build({"_target_": "harness.tasks.preamble.Prompt", **fields}, path="prompt")


def test_a_system_message_comes_from_one_place():
    config = dict(plain_config("algo=none", "prompt.system=Sum."))
    config["task"] = {"_target_": "harness.tasks.problems.Problems", "path": "x.jsonl", "system_prompt": "Add."}
    with pytest.raises(UserErrors, match=r"task\.system_prompt"):
        assemble(config)
