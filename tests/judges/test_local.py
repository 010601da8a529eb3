"""A judge that is a model in this process: what it reads, what its answers mean, what makes its identity."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.base.errors import UserError
from harness.judges.asking import Interview, ask
from harness.judges.base import Answer, Pair
from harness.judges.local import Local
from harness.judges.reading import Reader
from harness.judges.served import Served
from tests.judges.small import save_small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def judge(folder: Path) -> Local:
    return Local(path=str(folder), least=0.0, batch_size=3, device="cpu")


PAIRS = [Pair(f"question {i}?" + " and" * i, "yes" * (i + 1), "no, never") for i in range(5)]


def read(judge: Local, questions: list[str]) -> list[Answer]:
    found: dict[int, Answer] = {}
    judge.answers(questions, found.__setitem__)
    return [found[i] for i in range(len(questions))]


def test_letters_are_those_that_the_model_finds_most_probable_alone_and_in_a_batch(judge):
    questions = [judge.asks(pair) for pair in PAIRS]
    answers = read(judge, questions)
    reader = Reader(judge)
    for question, answer in zip(questions, answers, strict=True):
        text = f"user: {question}\nassistant:[["  # what the template makes of it, up to the letter
        ids = reader.tokenizer(text.replace("assistant:[[", "assistant: [["), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = reader.model(ids).logits[0, -1].softmax(-1)
        a, b, c = (float(logits[reader.tokenizer.convert_tokens_to_ids(letter)]) for letter in "ABC")
        assert answer.text.startswith(f"A {a:.3f}, B {b:.3f}, C {c:.3f}")
        best = max((a, "first"), (b, "second"), (c, "tie"))[1]
        assert answer.winner == best and answer.asked == ids.shape[1] and answer.said == 1


def test_a_model_that_would_write_something_else_gives_no_verdict_and_is_counted(tmp_path):
    judge = Local(path=str(save_small(tmp_path, mute=True)), device="cpu")
    verdicts, bill = ask(judge, PAIRS)
    assert all(v.straight is None and v.won is None for v in verdicts) and bill.asked == 10
    assert all(v.readable for v in ask(replace(judge, least=0.0), PAIRS)[0])


def test_a_question_that_the_model_cannot_read_is_answered_by_nobody(tmp_path):
    judge = Local(path=str(save_small(tmp_path, context=900)), least=0.0, device="cpu")
    short, long = read(judge, [judge.asks(Pair("a", "b", "c")), judge.asks(Pair("a" * 900, "b", "c"))])
    assert short.winner is not None and long.winner is None and "where the model takes 900" in long.text


def test_words_are_written_greedily_and_do_not_depend_on_the_batch(judge):
    writes = replace(judge, read="words", max_tokens=6)
    questions = [writes.asks(pair) for pair in PAIRS]
    together, alone = read(writes, questions), read(replace(writes, batch_size=1), questions)
    assert together == alone and all(1 <= a.said <= 6 for a in together)


def test_the_question_asks_for_a_comparison_only_where_words_are_read(judge):
    server = Served(model="any", read="letters")
    for alone in (judge, server):
        assert "Compare" not in alone.asks(PAIRS[0]) and "verdict alone: [[A]]" in alone.asks(PAIRS[0])
        assert "Compare" in replace(alone, read="words").asks(PAIRS[0])
        assert replace(alone, question="{first} or {second}?").asks(Pair("p", "a", "b")) == "a or b?"


def test_what_it_holds_is_freed_and_its_answers_are_kept_by_the_content_of_the_model(judge, folder, tmp_path):
    with Interview(judge, tmp_path) as interview:
        first = interview.verdicts(PAIRS[:2])[0]
        held = interview._answers.__self__.model  # type: ignore[union-attr]
        assert interview.verdicts(PAIRS[:3])[1].kept == 4
        assert interview._answers.__self__.model is held  # type: ignore[union-attr]
        gone = weakref.ref(held)
        del held
    gc.collect()
    assert gone() is None
    moved = folder.rename(tmp_path / "moved")
    verdicts, bill = ask(replace(judge, path=str(moved)), PAIRS[:2], tmp_path)
    moved.rename(folder)
    assert verdicts == first and (bill.asked, bill.kept) == (0, 4)


def test_all_that_can_change_an_answer_makes_its_identity_and_nothing_else(judge, tmp_path):
    other = str(save_small(tmp_path, seed=1))
    changed = [replace(judge, path=other), replace(judge, read="words"), replace(judge, least=0.2),
               replace(judge, dtype="bfloat16")]  # fmt: skip
    assert len({one.key for one in [judge, *changed]}) == 5
    assert replace(judge, batch_size=1).key == judge.key
    words = replace(judge, read="words")
    assert replace(words, least=0.3).key == words.key != replace(words, max_tokens=9).key


def test_what_is_wrong_with_the_model_is_said_in_the_judges_words(judge, tmp_path):
    for wrong, words in ((tmp_path / "none", "judge.path"), (tmp_path, "judge.path")):
        with pytest.raises(UserError, match=words):
            ask(replace(judge, path=str(wrong)), PAIRS[:1])
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{judge.path}"}}')
    (error,) = replace(judge, path=str(tmp_path)).problems()
    assert "adapter" in error.rule and "--merge" in str(error)


def test_it_grades_only_where_it_writes(judge):
    assert not judge.writes and replace(judge, read="words").writes


def test_samples_are_those_of_the_question_whatever_is_sampled_beside_it(judge):
    sampler = replace(judge, read="words", temperature=1.0, max_tokens=8)
    questions = [f"question {i}?" + " and" * i for i in range(5)]
    together = [answer.text for answer in read(sampler, questions)]
    assert together == [read(sampler, [question])[0].text for question in questions]
    again = sampler.again(1)
    assert again is not None and [a.text for a in read(again, questions)] != together
    assert again.key != sampler.key != replace(sampler, temperature=0.0).key
    cold = replace(sampler, temperature=1e-6)
    greedy = replace(sampler, temperature=0.0)
    assert [a.text for a in read(cold, questions)] == [a.text for a in read(greedy, questions)]
    assert judge.again(1) is None and greedy.again(1) is None, "they say the same each time"
    assert judge.key == replace(judge, seed=3).key, "of what draws nothing"


def test_a_command_with_a_local_judge_shows_its_own_lines_alone(folder, tmp_path):
    rows = [{"prompt": p.prompt, "chosen": p.first, "rejected": p.second} for p in PAIRS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("judge=local", f"judge.path={folder}", "judge.device=cpu", f"cache.dir={tmp_path / 'cache'}")
    command = ("label", "--data", "rows.jsonl", "--to", "out.jsonl", *options)
    done = subprocess.run(
        [sys.executable, "-m", "harness", *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith("label rows.jsonl") or "answers were asked for" in line for line in lines)
