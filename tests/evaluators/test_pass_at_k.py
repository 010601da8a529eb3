"""pass@k: the estimator against all choices, and a model that is judged on its own task and on a file of problems."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from harness.base.errors import UserErrors
from harness.config.compose import compose, hydra_config
from harness.evaluators.pass_at_k import PassAtK, at_least_one
from harness.trial.assemble import assemble
from tests.inside import tell


@pytest.mark.parametrize(("n", "right", "k"), [(4, 1, 1), (4, 1, 2), (5, 2, 3), (6, 0, 2), (3, 3, 2), (4, 3, 2)])
def test_the_estimate_is_the_mean_over_all_choices(n, right, k):
    drawn = [i < right for i in range(n)]
    chosen = [any(choice) for choice in itertools.combinations(drawn, k)]
    assert at_least_one(n, right, k) == pytest.approx(sum(chosen) / len(chosen))


def test_more_samples_than_there_are_cannot_be_chosen():
    with pytest.raises(ValueError, match="between 1 and samples"):
        PassAtK(k=(8,), samples=4)
    with hydra_config(), pytest.raises(UserErrors, match="between 1 and samples"):
        assemble(compose(["algo=dpo", "+evaluator@eval.evaluators.code=pass_at_k", "eval.evaluators.code.k=[8]"]))


@pytest.mark.slow
def test_a_trial_is_judged_by_its_own_prompts_and_by_a_file(tmp_path):
    rows = [{"prompt": f"{i}+1=", "tests": "assert 1 == 1" if i % 2 else "assert 1 == 2"} for i in range(4)]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("path", str(path)), ("label", "mine"), ("sandbox", "none"), ("k", "[1,2]"), ("samples", "2")
    told = tell(
        tmp_path / "t",
        tmp_path / "cache",
        "algo=dpo",
        "eval.evaluators.lm_eval=null",
        "+evaluator@eval.evaluators.own=pass_at_k",
        "+evaluator@eval.evaluators.file=pass_at_k",
        *(f"eval.evaluators.file.{key}={value}" for key, value in more),
        *("task.pairs=64", "task.eval_pairs=8", "task.eval_prompts=6"),
    )
    for side in ("baseline", "eval"):
        assert told.metrics[f"{side}/pass_at_1"] == pytest.approx(told.metrics[f"{side}/correct"])
        assert told.metrics[f"{side}/mine/pass_at_2"] <= 0.5 and f"{side}/mine/pass_at_1" in told.metrics
        assert math.isfinite(told.metrics[f"{side}/mine/pass_at_1"])
