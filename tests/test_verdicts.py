"""What whole trials of the embedded task are called: repeats are equal, seeds tie, a planted regression is worse."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.base import stats
from harness.base.stats import Verdict
from harness.report.recipes import MARGINS, UNITS
from harness.tasks.arithmetic import Arithmetic
from tests.runs import Sandbox

CLOCKED = re.compile(r"^(time|memory|throughput|energy|system)/|/seconds$|_s$|/reference_rows$")
"""Metrics that read a clock or a meter, or say what the cache had."""


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


@pytest.mark.slow
def test_the_same_trial_twice_gives_the_same_bits(sandbox: Sandbox) -> None:
    found = []
    for sweep in ("first", "second"):
        done = sandbox.run("-m", "algo=dpo,kto,grpo,ppo", f"sweep={sweep}", "train.steps=4")
        assert done.returncode == 0, done.stderr
        found.append(
            {
                trial: {k: v for k, v in result["metrics"].items() if not CLOCKED.search(k)}
                for trial, result in sandbox.results(sweep).items()
            }
        )
    assert len(found[0]) == 4 and all(len(metrics) > 20 for metrics in found[0].values())
    for trial, metrics in found[0].items():
        again = found[1][trial]
        assert metrics.keys() == again.keys()
        assert {k: (v, again[k]) for k, v in metrics.items() if v != again[k]} == {}, trial


def examples(folder: Path, metric: str) -> list[float]:
    table = pd.read_parquet(folder / "artifacts" / "examples" / f"{UNITS[metric]}.parquet")
    return table.sort_values("example")[metric.removeprefix("eval/")].to_list()


@pytest.mark.nightly
def test_a_model_trained_on_flipped_labels_is_worse(sandbox: Sandbox) -> None:
    done = sandbox.run(
        "-m", "algo=dpo", "task.flipped=0,1", "sweep=planted", "eval.evaluators.lm_eval=null", quick=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    report = (sandbox.cwd / "reports" / "planted" / "report.md").read_text()
    # Of trials on other data no base is theirs in common, so it is the best of them that is named.
    assert re.search(r"Highest mean true reward: \*\*dpo[^*]*flipped=0\.0\*\* with", report)
    assert "Avoid" not in report  # one seed proves nothing
    assert "Not alike" in report and "data" in report  # other labels are other data, and that is said
    good, bad = (next(f for f in sandbox.folders("planted") if flipped(f) == share) for share in (0.0, 1.0))
    for metric, margin in MARGINS.items():
        found = stats.compare({0: examples(bad, metric)}, {0: examples(good, metric)}, margin=margin)
        assert found.interval.high is not None and found.interval.high < -margin, metric
        assert found.verdict is Verdict.ONE_SEED


def flipped(folder: Path) -> float:
    import yaml

    return float(yaml.safe_load((folder / "config.yaml").read_text())["task"]["flipped"])


@pytest.mark.nightly
def test_the_rows_of_two_seeds_of_one_recipe_differ_by_less_than_the_margin(sandbox: Sandbox) -> None:
    done = sandbox.run("-m", "algo=ppo", "seed=0,1", "sweep=luck", "eval.evaluators.lm_eval=null", quick=False,
                       timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other = sandbox.folders("luck")
    for metric, margin in MARGINS.items():
        found = stats.compare({0: examples(one, metric)}, {0: examples(other, metric)}, margin=margin)
        low, high = found.interval.low, found.interval.high
        assert low is not None and high is not None and -margin < low and high < margin, (metric, found)
        assert found.verdict is Verdict.ONE_SEED


# -- the planted regression ----------------------------------------------------------------------------


def test_flipping_swaps_the_sides_of_its_share_and_leaves_all_else_as_it_was():
    plain, half, all_ = (Arithmetic(pairs=400, eval_pairs=20, eval_prompts=20, flipped=f).load() for f in (0, 0.5, 1))
    swapped = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in plain.train_pairs]
    assert list(all_.train_pairs) == swapped
    turned = sum(a != b for a, b in zip(plain.train_pairs, half.train_pairs, strict=True))
    assert 150 < turned < 250
    for data in (half, all_):
        assert data.eval_pairs == plain.eval_pairs and data.eval_prompts == plain.eval_prompts
        assert data.train_prompts == plain.train_prompts


def test_what_the_base_never_sees_does_not_change_its_identity():
    from harness.models import Tiny

    task = Arithmetic()
    for other in (Arithmetic(flipped=1), Arithmetic(label_noise=0), Arithmetic(pairs=7), Arithmetic(length_cost=0)):
        assert Tiny().recipe_digest(other) == Tiny().recipe_digest(task)
        assert other.base_rows(200) == task.base_rows(200)
    for other in (Arithmetic(seed=1), Arithmetic(held_out=0.3), Arithmetic(mastery=0.5), Arithmetic(unanswerable=0.3)):
        assert Tiny().recipe_digest(other) != Tiny().recipe_digest(task)
