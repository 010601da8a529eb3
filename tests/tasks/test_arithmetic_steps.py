"""Chained sums: their steps and labels worked out by hand, held-out prompts apart, and today's world unchanged."""

from __future__ import annotations

import random

import pytest

from harness.models.loading import character_tokenizer
from harness.tasks.arithmetic import DECLINE, Arithmetic
from harness.tasks.arithmetic_steps import labels, lucky, slipped, worked

CHAINED = Arithmetic(steps=2, pairs=300, eval_pairs=60, eval_prompts=40)
ROW = {"prompt": "12+7-3=", "answer": "16"}


def value(prompt: str) -> int:
    """What a sum comes to, by Python's own reading of it."""
    return eval(prompt.rstrip("="))


def test_the_world_of_one_operation_is_the_one_that_it_was():
    one = Arithmetic()
    assert one.load().digest == "a9ff5ae8d9ed3527"
    assert "steps" not in one.base_recipe() and one.step_separator is None
    assert one.score({"prompt": "1+1=", "answer": "2"}, "1=2").correct is False


def test_a_sum_is_worked_operation_by_operation():
    assert worked("12+7-3=") == ["19-3", "16"]
    assert worked("8-8+40-1=") == ["0+40-1", "40-1", "39"]


def test_the_true_reward_is_that_of_the_last_step_and_of_all_characters():
    assert CHAINED.score(ROW, "19-3=16").correct and CHAINED.score(ROW, "29-3=16").correct
    assert CHAINED.score(ROW, "16").correct and CHAINED.score(ROW, "well, the answer is 16.").correct
    assert not CHAINED.score(ROW, "19-3=26").correct and not CHAINED.score(ROW, "19-3=").correct
    assert CHAINED.score(ROW, "19-3=16").reward == pytest.approx(1 - 7 * 0.02)
    assert CHAINED.score({"prompt": "12+?-3=", "answer": None}, DECLINE).correct


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (["19-3", "16"], [True, True]),
        (["29-3", "16"], [False, True]),  # a right answer after a wrong step
        (["29-3", "26"], [False, False]),  # the slip is carried on
        (["19-3", "26"], [True, False]),
        (["16"], [True]),
        (["19-3", "16", "16"], [True, False, True]),  # nothing is left to be done in the second
    ],
)
def test_a_step_is_right_if_it_is_what_is_left_of_the_sum(said, right):
    assert labels("12+7-3=", said, answered=said[-1] == "16") == right


def test_of_a_lucky_completion_one_step_before_the_last_is_wrong_and_of_a_slipped_one_all_from_there():
    rng = random.Random(0)
    for _ in range(50):
        said = lucky(rng, "12+7-3+5=")
        assert said[-1] == "21" and labels("12+7-3+5=", said, answered=True).count(False) == 1
        said = slipped(rng, "12+7-3+5=")
        found = labels("12+7-3+5=", said, answered=said[-1] == "21")
        assert found == sorted(found, reverse=True) and not found[-1]


def test_rows_of_steps_have_the_labels_that_arithmetic_gives_and_any_number_of_them():
    rows = CHAINED.step_rows("train", 500)
    assert rows == CHAINED.step_rows("train", 500) != CHAINED.step_rows("test", 500)
    assert rows[:100] == CHAINED.step_rows("train", 100)
    kinds = set()
    for row in rows:
        kinds.add((len(row["steps"]), tuple(row["labels"])))
        for step, right in zip(row["steps"], row["labels"], strict=True):
            if "?" not in row["prompt"] and step != DECLINE:
                assert right == (value(step) == value(row["prompt"])), row
    wanted = {
        (2, (True, True)),
        (2, (False, True)),
        (2, (False, False)),
        (2, (True, False)),
        (1, (True,)),
        (1, (False,)),
    }
    assert wanted <= kinds


def test_held_out_prompts_are_in_no_row_that_is_learned_from():
    data = CHAINED.load()
    seen = {row["prompt"] for row in (*data.train_prompts, *data.train_pairs, *CHAINED.base_rows(2000))}
    seen |= {row["prompt"] for row in CHAINED.step_rows("train", 2000)}
    for split in ("validation", "test"):
        held = {row["prompt"] for row in (*data.eval_prompts[split], *data.eval_pairs[split])}
        assert not seen & (held | {row["prompt"] for row in CHAINED.step_rows(split, 500)})


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_the_answers_are_right_and_fit_into_the_embedded_model(steps):
    task = Arithmetic(steps=steps, pairs=200, eval_pairs=20, eval_prompts=20)
    tokenizer = character_tokenizer(96)
    for row in task.load().train_prompts:
        assert row["answer"] is None or int(row["answer"]) == value(row["prompt"]) >= 0
    for row in task.base_rows(500):
        whole = row["prompt"] + row["completion"]
        assert tokenizer.decode(tokenizer(whole)["input_ids"]) == whole and len(row["completion"]) < 32
