"""A judge or writer that is to be the trained model is that model, with all that its configuration says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.config.building import build
from harness.config.compose import compose, hydra_config
from harness.judges.base import Judge, Pair
from harness.judges.local import Local
from harness.judges.reading import Reader
from tests.judges.small import save_small

SAID = (
    "model.revision=v2", "model.trust_remote_code=true", "model.eos_token='<eos>'", "model.pad_token='<pad>'",
    "model.stop_tokens=[x,y]", "model.chat_template=off", "model.attention=eager", "model.dtype=bfloat16",
)  # fmt: skip
TASK = ("task=constitution", "task.prompts=p.txt", "task.principles=p.txt")


def roles_of(*words: str) -> list[Local]:
    with hydra_config([]):
        plain = compose([*TASK, *words])
    return [build(plain["task"][role], path=f"task.{role}", base=Judge) for role in ("writer", "judge")]


def test_what_is_said_of_the_model_is_said_of_its_judge():
    for judge in roles_of("model=hf", "model.path=org/m", *SAID):
        model = judge.model
        assert (model.path, model.revision, model.trust_remote_code) == ("org/m", "v2", True)
        assert (model.eos_token, model.pad_token, model.stop_tokens) == ("<eos>", "<pad>", ("x", "y"))
        assert (model.chat_template, model.attention, judge.dtype) == ("off", "eager", "bfloat16")
        assert judge.problems() == []


def test_a_setting_counts_in_what_a_judge_is_only_where_it_is_set(tmp_path):
    judge = Local(path=str(save_small(tmp_path)), device="cpu")
    others = [
        replace(judge, stop_tokens=("x",)),
        replace(judge, chat_template="off"),
        replace(judge, attention="eager"),
    ]
    assert len({one.key for one in [judge, *others]}) == 4
    assert not {"stop_tokens", "chat_template", "attention"} & set(judge.identity)
    assert replace(judge, policy=("harness.models.HF", judge.path)).key == judge.key


def test_an_answer_ends_at_a_stop_token_and_a_question_is_plain_where_the_template_is_off(tmp_path):
    save_small(tmp_path)
    judge = Local(path=str(tmp_path), read="words", max_tokens=12, device="cpu")
    question = judge.asks(Pair("What?", "a", "b"))

    def said(one: Local) -> str:
        found = {}
        one.answers([question], found.__setitem__)
        return found[0].text

    whole = said(judge)
    stop = next(letter for letter in whole[1:] if letter != whole[0] and letter.isascii() and letter.isprintable())
    assert said(replace(judge, stop_tokens=(stop,))) == whole[: whole.index(stop)]
    plain, chat = (Reader(one) for one in (replace(judge, chat_template="off"), judge))
    assert plain._in_words("Hello") == plain.tokenizer("Hello\n\n")["input_ids"] != chat._in_words("Hello")


@pytest.mark.parametrize(
    ("words", "key", "rule"),
    [
        (("model=smollm2",), "task.writer.path", "a Wheel"),
        (("model=hf", "model.path=.", "model.gguf_file=x.gguf"), "task.writer.gguf_file", "packed"),
    ],
)
def test_a_policy_that_is_no_folder_of_whole_weights_is_refused_with_what_to_type(
    tmp_path, monkeypatch, words, key, rule
):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("One?\nTwo?\n")
    with hydra_config([]):
        plain = compose([*TASK, *words])
    with pytest.raises(UserError, match=rule) as caught:
        build(plain["task"], path="task").load()
    assert caught.value.key == key and "judge@task.writer=local task.writer.path=FOLDER" in str(caught.value)


@pytest.mark.parametrize("model", ["tiny", "shape/llama-10m"])
def test_a_policy_without_a_path_leaves_the_writer_to_be_named(model):
    with pytest.raises(UserError, match=r"task\.writer\.path: a value is required"):
        roles_of(f"model={model}")


@pytest.mark.parametrize("chosen", [("judge@task.writer=local",), ()])
def test_another_writer_is_taken_whatever_the_policy_is(tmp_path, chosen):
    writer, judge = roles_of("model=smollm2", *chosen, f"task.writer.path={save_small(tmp_path)}")
    assert writer.problems() == [] and judge.problems()
