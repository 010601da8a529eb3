"""A whole trial whose prompts have something before them: policy and base alike, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inside import tell


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.mark.slow
def test_training_and_both_evaluations_see_what_stands_before_the_prompts(tmp_path, cache):
    sizes = ("algo=dpo", "train.logging_steps=1")
    plain = tell(tmp_path / "plain", cache, *sizes)
    shown = tell(tmp_path / "shown", cache, *sizes, "prompt.shots=2")
    again = tell(tmp_path / "again", cache, *sizes, "prompt.shots=2")
    assert not any(hit for stage, hit in shown.stages.items() if stage.startswith("baseline"))
    assert all(hit for stage, hit in again.stages.items() if stage.startswith("baseline"))
    for side in ("baseline/", "eval/"):
        assert shown.under(side).keys() == plain.under(side).keys() and shown.under(side) != plain.under(side)
    assert shown.metrics["budget/tokens"] > 1.3 * plain.metrics["budget/tokens"]
    assert shown.metrics["budget/prompts"] == plain.metrics["budget/prompts"]
    assert shown.series == again.series != plain.series
    assert shown.under("eval/") == again.under("eval/")


@pytest.mark.slow
def test_an_online_trial_and_its_reward_model_run_under_a_system_message(tmp_path, cache):
    """The reward model is the same one as without: it reads the task's own prompts."""
    sizes = ("algo=grpo", "reward=model", "reward.steps=2", "adapter=lora")
    plain = tell(tmp_path / "plain", cache, *sizes)
    shown = tell(tmp_path / "shown", cache, *sizes, "prompt.system='add.'", "prompt.shots=1")
    assert plain.stages["reward_model"] is False and shown.stages["reward_model"] is True
    assert shown.under("eval/") != plain.under("eval/")
