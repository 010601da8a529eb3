"""The embedded world: true rewards worked out by hand, splits that do not leak, noise at its stated rate."""

from __future__ import annotations

import dataclasses

import pytest

from harness.tasks.arithmetic import DECLINE, Arithmetic

SMALL = Arithmetic(pairs=400, eval_pairs=100, eval_prompts=60)


@pytest.fixture(scope="module")
def data():
    return SMALL.load()


@pytest.fixture(scope="module")
def truth():
    """Every prompt of the world and its answer, worked out from the prompt's own text."""
    answers = {}
    for a in range(100):
        for b in range(10):
            answers[f"{a}+{b}="] = str(a + b)
            if a >= b:
                answers[f"{a}-{b}="] = str(a - b)
        for op in "+-":
            answers[f"{a}{op}?="] = answers[f"?{op}{a}="] = None
    return answers


# -- the true reward -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "correct", "reward"),
    [
        ("19", True, 0.96),  # 1 - 0.02 * 2
        ("well, the answer is 19.", True, 0.54),  # 1 - 0.02 * 23
        (" 19 ", True, 0.92),  # blanks are forgiven and paid for: 1 - 0.02 * 4
        ("17", False, -0.04),
        ("19.", False, -0.06),
        ("the answer is 19.", False, -0.34),
        ("i dont know.", False, -0.24),
        ("", False, 0.0),
    ],
)
def test_the_true_reward_is_correctness_less_two_hundredths_per_character(completion, correct, reward):
    score = Arithmetic().score({"prompt": "12+7=", "answer": "19"}, completion)
    assert (score.correct, score.reward) == (correct, pytest.approx(reward))


@pytest.mark.parametrize(
    ("completion", "correct", "reward"),
    [("i dont know.", True, 0.76), ("19", False, -0.04), ("well, the answer is 19.", False, -0.46)],
)
def test_declining_is_right_where_there_is_no_answer(completion, correct, reward):
    score = Arithmetic().score({"prompt": "12+?=", "answer": None}, completion)
    assert (score.correct, score.reward) == (correct, pytest.approx(reward))


def test_without_a_length_cost_the_verbose_answer_is_as_good_as_the_concise_one():
    task, row = Arithmetic(length_cost=0), {"prompt": "1+1=", "answer": "2"}
    assert task.score(row, "2").reward == task.score(row, "well, the answer is 2.").reward == 1.0


# -- rows ----------------------------------------------------------------------------------------------


def test_every_answer_is_the_one_that_the_prompt_asks_for(data, truth):
    for rows in (data.train_prompts, *data.eval_prompts.values()):
        assert all(truth[row["prompt"]] == row["answer"] for row in rows)


def test_sizes_are_the_ones_asked_for(data):
    assert (len(data.train_pairs), len(data.train_prompts), len(SMALL.base_rows(70))) == (400, 400, 70)
    assert {name: len(rows) for name, rows in data.eval_pairs.items()} == {"validation": 100, "test": 100}
    assert {name: len(rows) for name, rows in data.eval_prompts.items()} == {"validation": 60, "test": 60}


def test_no_prompt_of_one_split_is_in_another(data):
    def prompts(*tables):
        return {row["prompt"] for rows in tables for row in rows}

    seen = prompts(data.train_pairs, data.train_prompts, SMALL.base_rows(3000))
    validation = prompts(data.eval_pairs["validation"], data.eval_prompts["validation"])
    test = prompts(data.eval_pairs["test"], data.eval_prompts["test"])
    assert not seen & validation and not seen & test and not validation & test
    assert not seen & prompts(data.retention)


def test_eval_prompts_do_not_repeat_and_hold_the_stated_share_without_an_answer(data):
    for rows in data.eval_prompts.values():
        assert len({row["prompt"] for row in rows}) == 60
        assert sum(row["answer"] is None for row in rows) == 6


def test_held_out_pairs_prefer_the_higher_true_reward(data, truth):
    for rows in data.eval_pairs.values():
        for row in rows:
            known = {"prompt": row["prompt"], "answer": truth[row["prompt"]]}
            assert SMALL.score(known, row["chosen"]).reward > SMALL.score(known, row["rejected"]).reward


def test_chosen_declines_wherever_a_pair_without_an_answer_offers_it(data, truth):
    hollow = [row for rows in data.eval_pairs.values() for row in rows if truth[row["prompt"]] is None]
    offered = [row for row in hollow if DECLINE in (row["chosen"], row["rejected"])]
    assert offered and all(row["chosen"] == DECLINE for row in offered)


def test_a_world_with_an_answer_to_everything_asks_nothing_unanswerable():
    task = dataclasses.replace(SMALL, unanswerable=0.0)
    rows = [*task.load().train_prompts, *task.load().train_pairs, *task.base_rows(500)]
    assert not any("?" in row["prompt"] for row in rows)


def test_letters_are_reversed_or_sorted_and_never_aligned(data):
    assert len(data.retention) == 200
    for row in data.retention:
        operation, word = row["prompt"].rstrip("=").split(" ")
        assert row["completion"] == (word[::-1] if operation == "rev" else "".join(sorted(word)))
    assert not any(" " in row["prompt"] for row in data.train_pairs)


def test_base_training_teaches_the_skill_first_and_the_mixture_after_it(truth):
    rows = dataclasses.replace(SMALL, mastery=0.5, mixture=(0, 1, 0, 0)).base_rows(400)
    sums = [(i, row) for i, row in enumerate(rows) if row["prompt"] in truth]
    assert 280 < len(sums) < 360  # a fifth are letters; 8 is a standard deviation
    for i, row in sums:
        answer = truth[row["prompt"]]
        if i >= 200:
            assert row["completion"].startswith("well, the answer is ")
        else:
            assert row["completion"] == (DECLINE if answer is None else answer)


def test_base_rows_follow_the_weights_of_the_mixture(truth):
    rows = dataclasses.replace(SMALL, mastery=0.0, unanswerable=0.0).base_rows(5000)
    rows = [row for row in rows if row["prompt"] in truth]
    evasive = sum(row["completion"] == DECLINE for row in rows) / len(rows)
    right = sum(row["completion"] == truth[row["prompt"]] for row in rows) / len(rows)
    # Weights 0.25 and 0.3 of some 4,000 rows; four standard errors are below 0.03.
    assert (evasive, right) == (pytest.approx(0.25, abs=0.03), pytest.approx(0.3, abs=0.03))


# -- label noise ---------------------------------------------------------------------------------------


def flipped_share(truth, **fields) -> float:
    task = dataclasses.replace(SMALL, pairs=4000, **fields)
    wrong = 0
    rows = task.load().train_pairs
    for row in rows:
        known = {"prompt": row["prompt"], "answer": truth[row["prompt"]]}
        wrong += task.score(known, row["chosen"]).reward < task.score(known, row["rejected"]).reward
    return wrong / len(rows)


def test_without_label_noise_no_label_is_wrong(truth):
    assert flipped_share(truth, label_noise=0.0) == 0


@pytest.mark.parametrize(("noise", "expected"), [(1.0, 0.5), (0.2, 0.1)])
def test_at_a_high_temperature_half_of_the_noisy_labels_are_wrong(truth, noise, expected):
    # sigmoid(gap / T) -> 1/2 as T grows; four standard errors of 4,000 labels are at most 0.032.
    assert flipped_share(truth, label_noise=noise, noise_temperature=1e6) == pytest.approx(expected, abs=0.032)


def test_at_a_low_temperature_bradley_terry_labels_are_rarely_wrong(truth):
    # The smallest gap between two behaviours is one character, 0.02: sigmoid(-0.02 / 0.01) = 0.119.
    assert 0 < flipped_share(truth, label_noise=1.0, noise_temperature=0.01) < 0.119


# -- identity ------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_rows_and_another_seed_others(data):
    again, other = SMALL.load(), dataclasses.replace(SMALL, seed=1).load()
    assert again == data and again.digest == data.digest
    assert SMALL.base_rows(100) == SMALL.base_rows(100) != dataclasses.replace(SMALL, seed=1).base_rows(100)
    assert other.digest != data.digest


@pytest.mark.parametrize("field", ["train_pairs", "train_prompts"])
def test_the_digest_changes_when_one_row_does(data, field):
    rows = [dict(row) for row in getattr(data, field)]
    rows[0]["prompt"] += " "
    assert dataclasses.replace(data, **{field: rows}).digest != data.digest


@pytest.mark.parametrize("field", ["eval_pairs", "eval_prompts"])
def test_the_digest_changes_when_a_held_out_row_goes(data, field):
    splits = getattr(data, field)
    assert dataclasses.replace(data, **{field: {**splits, "test": splits["test"][1:]}}).digest != data.digest


def test_the_digest_changes_with_the_order_of_the_rows(data):
    assert dataclasses.replace(data, train_pairs=data.train_pairs[::-1]).digest != data.digest
