"""What is computed of a model before training is computed once, and is what it was when it comes from the cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.inside import Told, tell

JUDGED = ("eval.evaluators.win_rate={}", "eval.evaluators.lm_eval=null", "adapter=lora", "train.logging_steps=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


def stages(told: Told) -> list[tuple[str, bool]]:
    return [(e.data["stage"], e.data["hit"]) for e in told.events if e.kind == "stage"]


@pytest.mark.slow
def test_a_sweep_over_beta_scores_and_samples_its_base_once(tmp_path, cache):
    trials = [tell(tmp_path / str(k), cache, *JUDGED, f"algo.beta={0.1 * (k + 1)}") for k in range(5)]
    built = Counter(stage for told in trials for stage, hit in stages(told) if not hit)
    assert set(built.values()) == {1}, built
    assert built["held-out-pairs"] == 1, "what the baseline's pairs are is what the reference's are"
    assert built["held-out-samples"] == 1, "the true reward and both sides of the win rate are of one set of samples"
    other = tell(tmp_path / "other", tmp_path / "elsewhere", *JUDGED, "algo.beta=0.5")
    assert other.under("eval/") == trials[4].under("eval/") and other.under("baseline/") == trials[4].under("baseline/")
    assert other.series == trials[4].series


@pytest.mark.parametrize("rule", ["+curate@task.curate.cap=cap", "task.flipped=0.3"])
def test_trials_that_differ_in_training_rows_alone_are_judged_against_one_base(tmp_path, cache, rule):
    more = ("+curate@task.curate.cap=cap", "task.curate.cap.rows=40") if "curate" in rule else (rule,)
    trials = [tell(tmp_path / str(k), cache, *JUDGED, *words) for k, words in enumerate(((), more))]
    other = dict(stages(trials[1]))
    asked = {"baseline-preference", "baseline-true_reward", "held-out-pairs", "held-out-samples"}
    assert {stage for stage, hit in other.items() if hit} >= asked & other.keys() and asked - other.keys() <= {
        "held-out-samples", "held-out-pairs"
    }  # fmt: skip
    assert trials[0].under("baseline/") == trials[1].under("baseline/")
    assert trials[0].series != trials[1].series


def test_a_base_in_four_bits_is_another_one(tmp_path, cache):
    plain = tell(tmp_path / "lora", cache, *JUDGED)
    packed = tell(tmp_path / "qlora", cache, *JUDGED, "adapter=qlora")
    assert ("held-out-pairs", False) in stages(packed) and ("held-out-samples", False) in stages(packed)
    assert plain.metrics["eval/preference_accuracy"] is not None


@pytest.mark.slow
def test_another_limit_or_seed_is_another_question(tmp_path, cache):
    tell(tmp_path / "a", cache, *JUDGED)
    for k, override in enumerate(("eval.seed=7", "eval.max_length=48", "eval.batch_size=16")):
        assert ("held-out-pairs", False) in stages(tell(tmp_path / f"b{k}", cache, *JUDGED, override)), override
