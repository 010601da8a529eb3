"""Seeds of one recipe become one row, with an interval and a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.base.stats import Verdict
from harness.report import recipes
from harness.report.leaderboard import told_apart
from tests.report.test_report import cells, trials

METRIC = "eval/true_reward"


def seeds_of(algo: str, values: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": f"{algo}-lora-s{seed}-0123456{seed}",
            "seed": float(seed),
            "params.algo.name": algo,
            "params.seed": str(seed),
            "params.train.seed": str(seed),
            "params.model.seed": "0",
            "eval/true_reward": value,
            "eval/true_reward_stderr": 0.02,
            "memory/peak_mb": 100.0 + seed,
            **more,
        }
        for seed, value in enumerate(values)
    ]


def kept(values: dict[str, list[float]], names: list[str] | None = None) -> dict[str, pd.DataFrame]:
    return {
        trial: pd.DataFrame({"example": names or [str(i) for i in range(len(v))], "true_reward": v})
        for trial, v in values.items()
    }


def test_trials_that_differ_in_their_seed_alone_are_one_recipe_and_the_best_comes_first():
    found = recipes.recipes(trials(*seeds_of("dpo", [0.4, 0.5]), *seeds_of("grpo", [0.7, 0.6, 0.8])), METRIC)
    assert [(r.label, len(r.frame)) for r in found] == [("grpo-lora", 3), ("dpo-lora", 2)]
    estimate = found[0].estimate(METRIC)
    assert estimate is not None and estimate.mean == pytest.approx(0.7) and estimate.method == "t"


def test_a_setting_that_differs_makes_two_recipes_that_are_told_apart():
    slow, fast = seeds_of("dpo", [0.4], **{"params.beta": "0.1"}), seeds_of("dpo", [0.4], **{"params.beta": "0.5"})
    fast[0]["trial_id"] = "dpo-lora-s0-aaaaaaaa"
    found = recipes.recipes(trials(*slow, *fast), METRIC)
    assert sorted(r.label for r in found) == ["dpo-lora beta=0.1", "dpo-lora beta=0.5"]


@pytest.mark.parametrize(("part", "one"), [("reward", True), ("task", False)])
def test_a_part_that_has_the_trials_seed_is_no_other_recipe_and_other_data_are(part, one):
    rows = seeds_of("grpo", [0.4, 0.5, 0.6])
    for seed, row in enumerate(rows):
        row[f"params.{part}.seed"] = str(seed)
    found = recipes.recipes(trials(*rows), METRIC)
    assert [len(r.frame) for r in found] == ([3] if one else [1, 1, 1])
    if one:
        others = seeds_of("dpo", [0.7], **{"params.reward.pairs": "50", "params.reward.seed": "0"})
        two = recipes.recipes(trials(*rows, *others), METRIC)
        assert [(r.label, len(r.frame)) for r in two] == [("dpo-lora", 1), ("grpo-lora", 3)]
    rows[2][f"params.{part}.seed"] = "7"
    assert len(recipes.recipes(trials(*rows), METRIC)) == 3, "it does not follow the seed"


def test_trials_that_did_not_finish_are_no_seeds():
    rows = seeds_of("dpo", [0.4, 0.5])
    rows[1]["outcome"] = "oom"
    (found,) = recipes.recipes(trials(*rows), METRIC)
    assert len(found.frame) == 1 and not recipes.several_seeds([found])
    assert recipes.recipes(trials(*({**r, "outcome": "oom"} for r in rows))) == []


def test_three_seeds_give_a_verdict_against_the_best_and_say_over_what():
    found = recipes.recipes(trials(*seeds_of("dpo", [0.40, 0.41, 0.42]), *seeds_of("grpo", [0.70, 0.73, 0.71])), METRIC)
    verdicts = recipes.compared(found, METRIC, {})
    assert verdicts["dpo-lora", "grpo-lora"].verdict is Verdict.WORSE
    heading, table, words = recipes.section(found, METRIC, verdicts)
    rows = [cells(line) for line in table.splitlines()]
    assert heading == "## Leaderboard" and rows[2][:3] == [
        "grpo-lora",
        "3",
        "0.713 [0.674, 0.753]",
    ]  # no narrower than the rows
    assert rows[2][-1] == "best" and rows[3][-1] == "worse"
    assert "one comparison (Holm)" in words and "Brackets hold 95 % intervals" in words


def test_two_seeds_that_wander_are_not_enough():
    found = recipes.recipes(trials(*seeds_of("dpo", [0.4, 0.6]), *seeds_of("grpo", [0.7, 0.6])), METRIC)
    verdicts = recipes.compared(found, METRIC, {})
    assert str(verdicts["dpo-lora", "grpo-lora"]).startswith("needs more seeds (about ")
    assert "needs more seeds (about" in (recipes.runner_up(found, METRIC, verdicts) or "")


def test_one_seed_is_compared_row_by_row():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0.4, 0.3, 200).tolist(), rng.normal(0.7, 0.3, 200).tolist()
    rows = [*seeds_of("dpo", [float(np.mean(low))]), *seeds_of("grpo", [float(np.mean(high))])]
    found = recipes.recipes(trials(*rows), METRIC)
    examples = kept({rows[0]["trial_id"]: low, rows[1]["trial_id"]: high})
    said = recipes.runner_up(found, METRIC, recipes.compared(found, METRIC, examples))
    assert said is not None and "200 held-out rows, paired: one seed settles nothing" in said
    assert recipes.section(found, METRIC, {}) == []


@pytest.mark.parametrize("names", [["a", "b"], None])
def test_one_seed_judged_on_other_examples_or_on_unknown_ones_is_not_compared(names):
    rows = [*seeds_of("dpo", [0.4]), *seeds_of("grpo", [0.7])]
    found = recipes.recipes(trials(*rows), METRIC)
    examples = kept({rows[0]["trial_id"]: [0.0, 1.0]}, ["x", "y"])
    if names:
        examples |= kept({rows[1]["trial_id"]: [1.0, 1.0]}, names)
    assert recipes.compared(found, METRIC, examples) == {}
    assert "not compared row by row" in (recipes.runner_up(found, METRIC, {}) or "")


def test_recipes_are_compared_by_all_of_their_seeds_whichever_these_are():
    rows = [*seeds_of("dpo", [0.4, 0.5]), *({**r, "seed": r["seed"] + 7} for r in seeds_of("grpo", [0.7, 0.6]))]
    found = recipes.recipes(trials(*rows), METRIC)
    assert recipes.compared(found, METRIC, {})["grpo-lora", "dpo-lora"].interval.mean == pytest.approx(0.2)


def test_the_terminal_gets_the_same_rows():
    found = recipes.recipes(trials(*seeds_of("dpo", [0.40, 0.41]), *seeds_of("grpo", [0.70, 0.73])), METRIC)
    shown = recipes.render_terminal(found, recipes.compared(found, METRIC, {}))
    assert "grpo-lora" in shown and "best" in shown and max(map(len, shown.splitlines())) <= 100


def test_a_long_name_and_an_open_verdict_fit_100_columns():
    rows = [*seeds_of("a-plugin-with-a-name", [0.4, 0.6]), *seeds_of("grpo", [0.7, 0.6])]
    rows = [{**r, "eval/preference_accuracy": 0.71, "eval/kl_per_sequence": 12.3, "time/train_s": 1234.5} for r in rows]
    found = recipes.recipes(trials(*rows), METRIC)
    shown = recipes.render_terminal(found, recipes.compared(found, METRIC, {}))
    assert max(map(len, shown.splitlines())) <= 100
    assert "needs more seeds" in shown and "a-plugin-with-a-name-lora" in shown and "vs. best" in shown


def test_a_setting_that_a_stage_repeats_is_named_once():
    rows = [
        {"trial_id": f"grpo-s0-0000000{n}", "params.reward.pairs": n, "params.reward.spec.pairs": n} for n in (5, 9)
    ]
    assert told_apart(["grpo", "grpo"], pd.DataFrame(rows)) == ["grpo pairs=5", "grpo pairs=9"]


def test_recipes_with_other_seeds_and_one_name_are_told_apart():
    def row(rate: str, seed: int, reward: float) -> dict:
        name = {"trial_id": f"dpo-s{seed}-{seed:08x}", "seed": float(seed), "params.seed": str(seed)}
        return {**name, "params.train.learning_rate": rate, METRIC: reward}

    frame = trials(row("1e-4", 0, 0.2), row("1e-4", 1, 0.2), row("1e-5", 2, 0.8), row("1e-5", 3, 0.8))
    found = recipes.recipes(frame, METRIC)
    assert [r.label for r in found] == ["dpo learning_rate=1e-5", "dpo learning_rate=1e-4"]
    lost = frame.assign(outcome=["failed", *["finished"] * 3])
    assert recipes.recipe_labels(lost) == recipes.recipe_labels(frame)


def test_trials_without_a_seed_are_counted_and_not_compared():
    frame = trials(*[{"trial_id": f"x-{i}", "seed": None, "params.a": "1", METRIC: 0.1 * i} for i in range(3)])
    (found,) = recipes.recipes(frame, METRIC)
    assert len(found.frame) == 3 and found.scores(METRIC, {}) == {}


def test_averages_are_over_seeds_and_so_are_their_errors():
    rows = [
        {
            "trial_id": f"a-s{s}-00000000",
            "seed": float(s),
            "params.a": "1",
            METRIC: m,
            f"{METRIC}_stderr": 0.5,
            "model": "x",
        }
        for s, m in enumerate([0.1, 0.2, 0.3])
    ]
    (row,) = recipes.averages(recipes.recipes(trials(*rows), METRIC)).to_dict("records")
    assert (row["label"], row["model"], row[METRIC]) == ("a", "x", pytest.approx(0.2))
    assert row[f"{METRIC}_stderr"] == pytest.approx(0.1 / 3**0.5)
    (alone,) = recipes.averages(recipes.recipes(trials(rows[0]), METRIC)).to_dict("records")
    assert alone[f"{METRIC}_stderr"] == 0.5
