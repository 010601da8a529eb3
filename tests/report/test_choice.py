"""Which recipe to take, what a choice costs, and the page people open: derived from verdicts, names as data."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

import pandas as pd
import pytest

from harness.report import choice, effects, yardsticks
from harness.report.html import page
from harness.report.intervals import LENGTH, length_rule
from harness.report.recipes import compared, recipes
from harness.report.sections import uses
from harness.report.standings import find
from tests.report.test_report import trials

METRIC = "eval/true_reward"


def seeds(name: str, rewards: list[float], *, mb: float = 100, s: float = 10, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": f"{name}-s{seed}-00000000", "algo": name, "seed": seed, "params.algo.name": name,
            METRIC: reward, "memory/peak_mb": mb, "time/train_s": s, **more,
        }
        for seed, reward in enumerate(rewards)
    ]  # fmt: skip


def of(*groups: list[dict[str, Any]]) -> tuple[Any, Any]:
    found = recipes(trials(*(row for group in groups for row in group)), METRIC)
    return found, compared(found, METRIC, {})


# -- what did not train --------------------------------------------------------------------------------


def test_recipes_that_changed_no_weight_are_named_first():
    found, verdicts = of(
        seeds("idle", [0.5, 0.5, 0.5], **{"params/changed": 0.0}),
        seeds("one_idle", [0.8, 0.81, 0.5]),
        seeds("good", [0.8, 0.81, 0.79], **{"params/changed": 0.9}),
    )
    first = choice.sentences(found, METRIC, verdicts, "reward")[0]
    assert first.startswith("Training changed no weight of **idle**: it is the base")
    found, verdicts = of(seeds("good", [0.8, 0.81, 0.79], **{"params/changed": 0.9}))
    assert "no weight" not in " ".join(choice.sentences(found, METRIC, verdicts, "reward"))


# -- the front -----------------------------------------------------------------------------------------


def test_a_recipe_that_ties_and_costs_more_is_beaten_and_one_that_is_open_is_not():
    found, verdicts = of(
        seeds("best", [0.80, 0.81, 0.79]),
        seeds("costly", [0.79, 0.80, 0.80], mb=300),
        seeds("quick", [0.50, 0.51, 0.49], s=1),
        seeds("bad", [0.30, 0.31, 0.29]),
        seeds("open", [0.95, 0.40, 0.85]),
    )
    assert choice.front(found, METRIC, verdicts) == {"best", "quick", "open"}


def test_differences_of_a_few_percent_in_memory_beat_nobody():
    found, verdicts = of(seeds("a", [0.80, 0.81, 0.79], mb=100), seeds("b", [0.80, 0.81, 0.79], mb=103))
    assert choice.front(found, METRIC, verdicts) == {"a", "b"}


def test_the_front_is_never_empty_even_where_tolerances_form_a_ring():
    def steady(name: str, reward: float, mb: float) -> list[dict[str, Any]]:
        return seeds(name, [reward, reward + 0.001, reward - 0.001], mb=mb)

    found, verdicts = of(steady("a", 0.50, 1000), steady("b", 0.52, 1040), steady("c", 0.54, 1081))
    assert choice.front(found, METRIC, verdicts) == {"c"}


# -- sentences -----------------------------------------------------------------------------------------


def said(*groups: list[dict[str, Any]], base: float | None = None) -> str:
    found, verdicts = of(*groups)
    rows = [{**row, "baseline/true_reward": base} for group in groups for row in group]
    before = None if base is None else yardsticks.base_of(trials(*rows), found, METRIC, {}, None)
    return " ".join(choice.sentences(found, METRIC, verdicts, "reward", before))


def test_the_cheapest_of_a_tie_is_named():
    words = said(seeds("slow", [0.80, 0.81, 0.79], s=90), seeds("fast", [0.79, 0.80, 0.79], s=9))
    assert "Best reward: **slow**" in words and "Cheapest within a tie of it: **fast**, 9.0 s" in words


def test_the_best_may_be_the_cheapest_too():
    words = said(seeds("a", [0.80, 0.81, 0.79], s=5), seeds("b", [0.79, 0.80, 0.79], s=9))
    assert "also the cheapest of the 2 that were compared and tie" in words


def test_where_nothing_was_compared_nothing_is_said_of_ties():
    assert said(seeds("a", [0.9]), seeds("b", [0.2])) == "Best reward: **a** with 0.900."


def test_a_recipe_without_the_metric_hides_no_warning():
    words = said(seeds("a", [0.8, 0.81]), seeds("b", [0.1, 0.11]), seeds("c", [math.nan, math.nan]), base=0.5)
    assert "Avoid **b**" in words


def test_without_a_tie_nothing_is_recommended_in_its_place():
    assert "None is shown to tie with it, and one recipe would need more seeds" in said(
        seeds("a", [0.9, 0.5, 0.8]), seeds("b", [0.6, 0.7, 0.6])
    )
    assert "Nothing ties with it" in said(seeds("a", [0.9, 0.91, 0.9]), seeds("b", [0.2, 0.21, 0.2]))


def test_what_to_avoid_is_below_the_base_or_worse_for_certain():
    good, bad = seeds("good", [0.9, 0.91, 0.9]), seeds("bad", [0.2, 0.21, 0.2])
    assert "Avoid **bad**: 0.203" in (words := said(good, bad, base=0.4)) and "below the base" in words
    assert "Avoid **bad**: worse than the best by 0.7" in said(good, bad)
    assert "Avoid" not in said(seeds("good", [0.9]), seeds("bad", [0.2]), base=0.4)  # one seed
    assert "Avoid" not in said(seeds("a", [0.9, 0.5, 0.8]), seeds("b", [0.6, 0.7, 0.6]))


def test_recipes_of_one_seed_whose_rows_lie_below_the_base_are_named_without_a_verdict():
    def one(name: str, mean: float, stderr: float) -> list[dict[str, Any]]:
        return [{**row, METRIC + "_stderr": stderr} for row in seeds(name, [mean])]

    words = said(one("best", 0.9, 0.01), one("b", 0.2, 0.01), one("c", 0.1, 0.01), one("wide", 0.3, 0.2), base=0.4)
    assert "On the held-out rows of one seed, **b**, **c** are below the base." in words and "wide" not in words


def of_prompts(*trained: float, untrained: dict[str, float], base: float) -> str:
    """Sentences on recipes of one prompt beside bases of several, all by true reward."""
    shots = {"params.prompt.shots": "0", "baseline/true_reward": base}
    rows = [{**row, **shots} for row in seeds("dpo", list(trained))]
    for number, reward in untrained.items():
        row = seeds("none", [reward])[0] | {"trial_id": f"none-{number}", "baseline/true_reward": reward}
        rows.append(row | {"params.prompt.shots": number})
    for row in rows:
        if row["params.prompt.shots"] == "0":
            del row["params.prompt.shots"]  # as trials without a prompt of their own have it
    standing = find(trials(*rows))
    return " ".join(
        choice.sentences(standing.recipes, METRIC, standing.verdicts, "reward", standing.base, standing.length)
    )


def test_training_has_to_beat_the_best_prompt_and_not_the_base_under_its_own():
    words = of_prompts(0.5, 0.52, 0.51, untrained={"0": 0.2, "4": 0.45}, base=0.2)
    assert words.startswith("**dpo** is shown to beat the best prompt (0.450, none"), words
    assert "Best reward: **dpo**" in words
    lost = of_prompts(0.4, 0.42, 0.41, untrained={"0": 0.2, "4": 0.45}, base=0.2)
    assert "is worse than the best prompt (0.450" in lost
    assert "Keep the base, and the best prompt: no recipe has a higher reward. Highest reward: **dpo" in lost


def test_of_a_prompt_without_an_untrained_row_the_base_of_its_trials_counts():
    words = of_prompts(0.5, 0.52, 0.51, untrained={"4": 0.1}, base=0.2)
    assert words.startswith("**dpo** is shown to beat the best prompt (0.200, that of dpo"), words


def test_one_prompt_is_the_base_as_ever():
    words = of_prompts(0.5, 0.52, 0.51, untrained={}, base=0.2)
    assert words.startswith("**dpo** is shown to beat the base (0.200)"), words


def test_the_seed_that_is_offered_is_the_one_that_stands_first_in_the_table():
    found, _ = of([{**row, "folder": f"f{i}"} for i, row in enumerate(seeds("a", [0.2, 0.5, 0.4]))])
    assert uses.best_seed(found[0], METRIC)["folder"] == "f1" and uses.best_seed(found[0], None)["folder"] == "f0"


def test_what_keeps_a_recipe_from_being_better_than_the_base_is_said_in_a_few_words():
    def caveat(*values: float, base: float) -> str:
        rows = [{**row, "baseline/true_reward": base} for row in seeds("a", list(values))]
        found, _ = of(rows)
        before = yardsticks.base_of(trials(*rows), found, METRIC, {}, None)
        assert before is not None and before.caveat("other") == "not compared with the base"
        return before.caveat("a")

    assert caveat(0.9, 0.91, 0.9, base=0.1) == ""
    assert caveat(0.2, 0.9, 0.5, base=0.4) == "not shown to beat the base"
    assert caveat(0.9, base=0.1) == "higher than the base on the held-out rows of one seed"


def test_a_recipe_that_loses_to_the_base_is_never_recommended():
    words = said(seeds("good", [0.139, 0.14, 0.138]), seeds("bad", [0.1, 0.11, 0.1]), base=0.141)
    assert words.startswith("**good** is not shown to beat the base (0.141): difference in true reward -0.002 [")
    assert "Keep the base: no recipe has a higher reward. Highest reward: **good**" in words
    assert "Best" not in words and "heapest" not in words


def test_what_is_above_the_base_and_not_for_certain_is_the_highest_and_not_the_best():
    words = said(seeds("a", [0.5, 0.7]), seeds("b", [0.4, 0.5]), base=0.45)
    assert words.startswith("**a** is not shown to beat the base (0.450): difference in true reward +0.150 [")
    assert "over 2 seeds, needs more seeds" in words and "Highest reward: **a**" in words and "Best" not in words


def test_of_recipes_the_best_that_is_shown_to_beat_the_base_is_recommended():
    words = said(seeds("wild", [0.2, 0.9, 0.8]), seeds("sure", [0.60, 0.61, 0.60]), base=0.1)
    assert words.startswith("**sure** is shown to beat the base (0.100): difference in true reward +0.503 [")
    assert "Best reward: **sure**" in words


def test_one_seed_says_what_the_rows_show():
    frame = trials(*({**row, "baseline/true_reward": 0.2} for row in seeds("a", [0.5])))
    (found,) = recipes(frame, METRIC)
    trial = str(found.frame["trial_id"].iloc[0])
    rows = pd.DataFrame({"example": list("pqrs"), "true_reward": [0.4, 0.6, 0.4, 0.6]})
    base = pd.DataFrame({"example": list("pqrs"), "true_reward": [0.1, 0.3, 0.2, 0.2]})
    yard = yardsticks.base_of(frame, [found], METRIC, {trial: rows}, base)
    assert yard is not None and yard.says(found, str) == (
        "On the held-out rows of one seed a is above the base (0.200): difference in true reward +0.300 [0.170, 0.430]."
    )
    other = yardsticks.base_of(frame, [found], METRIC, {trial: rows}, base.assign(example=list("wxyz")))
    said = "a is higher than the base (0.200): difference in true reward +0.300."
    assert other is not None and said in other.says(found, str)


def test_an_accuracy_below_length_alone_is_said_by_whichever_side_wins():
    """N2: 0.667 from six pairs of two prompts, where preferring the shorter answer scores 0.833."""
    accuracy = {"eval/preference_accuracy": 4 / 6, "eval/length_only_accuracy": 1 / 6}
    frame = trials(*({**row, **accuracy} for row in seeds("a", [0.5])))
    (found,) = recipes(frame, METRIC)
    table = pd.DataFrame(
        {
            "example": list("abcdef"), "cluster": list("xxxyyy"), "preference_accuracy": [1, 1, 1, 0, 0, 1.0],
            "length_only_accuracy": [0, 0, 0, 0, 0, 1.0],
        }
    )  # fmt: skip
    yard = yardsticks.length_of(frame, [found], {str(found.frame["trial_id"].iloc[0]): table})
    assert yard is not None and yard.value == pytest.approx(5 / 6)
    said = yard.says(found, str)
    assert "not told apart from length alone (0.833, shorter wins): difference in preference accuracy -0.167 [" in said
    gap = yard.verdicts["a"].interval  # differences 0, 0, 0 and -1, -1, 1 with a mean of -1/6: sums of residuals ±½
    assert gap.high is not None and gap.high - gap.mean == pytest.approx(12.7062 * math.sqrt(2 * 0.5) / 6, rel=1e-4)


# -- effects -------------------------------------------------------------------------------------------


def grid() -> pd.DataFrame:
    rows = []
    for algo, gain in (("dpo", 0.0), ("ppo", 0.3)):
        for adapter, cost, mb in (("full", 0.0, 400), ("lora", -0.05, 100)):
            for seed in range(3):
                rows.append({
                    "trial_id": f"{algo}-{adapter}-s{seed}-00000000", "algo": algo, "adapter": adapter, "seed": seed,
                    "beta": 0.1 if algo == "dpo" else 0.05, "rank": 16 if adapter == "lora" else math.nan,
                    METRIC: 0.4 + gain + cost + seed / 1000, "memory/peak_mb": mb * (2 if algo == "ppo" else 1),
                    "time/train_s": 10.0,
                })  # fmt: skip
    return trials(*rows)


def test_the_effect_of_an_adapter_is_its_mean_over_algorithms_and_seeds():
    algo, adapter = effects.effects(grid(), METRIC)
    assert (adapter.axis, adapter.before, adapter.after) == ("adapter", "full", "lora")
    assert (adapter.cells, adapter.seeds) == (6, 3)
    assert adapter.quality.mean == pytest.approx(-0.05) and adapter.memory == pytest.approx(0.25)
    assert (algo.axis, algo.cells) == ("algo", 6)
    assert algo.quality.mean == pytest.approx(0.3) and algo.memory == pytest.approx(2.0) and algo.time == 1.0


def test_beta_and_rank_that_follow_from_another_choice_are_no_axes_of_their_own():
    assert {e.axis for e in effects.effects(grid(), METRIC)} == {"algo", "adapter"}
    swept = grid()
    swept = pd.concat([swept, swept.assign(beta=0.7, **{METRIC: swept[METRIC] - 0.1})])
    found = {(e.axis, e.before, e.after): e for e in effects.effects(swept, METRIC)}
    assert found["beta", "0.05", "0.7"].quality.mean == pytest.approx(-0.1)


def test_cells_of_one_seed_are_not_independent():
    """Two algorithms times three seeds: the interval is over the three means of a seed, and not over six cells."""
    frame = grid()
    lora = frame["adapter"] == "lora"
    frame.loc[lora, METRIC] += frame.loc[lora, "seed"].map({0: 0.0, 1: 0.03, 2: -0.03})
    _, adapter = effects.effects(frame, METRIC)
    assert adapter.quality.high is not None and adapter.quality.mean == pytest.approx(-0.05)
    assert adapter.quality.high + 0.05 == pytest.approx(4.302653 * 0.03 / math.sqrt(3), abs=1e-6)
    _, single = effects.effects(frame[frame["seed"] == 1], METRIC)
    assert (single.cells, single.seeds, single.quality.low) == (2, 1, None)


def test_differences_that_coincide_are_no_certain_effect():
    _, adapter = effects.effects(grid(), METRIC)  # every cell says -0.05; the metric has steps of 0.001
    assert adapter.quality.high is not None
    assert adapter.quality.high + 0.05 == pytest.approx(4.302653 * 0.001 * math.sqrt(0.5 / 6), rel=1e-6)


def test_one_pair_has_no_interval_and_a_sweep_of_one_trial_no_section():
    two = grid().query("seed == 0 and algo == 'dpo'")
    (only,) = effects.effects(two, METRIC)
    assert only.cells == 1 and only.quality.low is None
    assert effects.section(effects.effects(two.head(1), METRIC), METRIC) == []
    assert effects.effects(two, None) == []


# -- the page ------------------------------------------------------------------------------------------


def test_raw_html_in_the_markdown_is_shown_and_not_obeyed():
    evil = "</td><script>alert(1)</script>"
    found = page(f"# a\n\n| x |\n| :--- |\n| {evil} |\n\n{evil}\n\n![p](p.png)\n", f"t{evil}")
    assert "<script>" not in found and found.count("&lt;script&gt;") == 3
    assert '<img src="p.png" alt="p"' in found and "<table>" in found


def test_the_page_carries_its_plots_and_can_be_sent_alone(tmp_path):
    (tmp_path / "p.png").write_bytes(b"not looked at")
    found = page("![p](p.png) ![q](q.png) ![r](../p.png)\n", "t", tmp_path)
    assert f'<img src="data:image/png;base64,{b64encode(b"not looked at").decode()}" alt="p"' in found
    assert '<img src="q.png"' in found and '<img src="../p.png"' in found


@pytest.mark.parametrize(("longer", "said", "shown"), [(0.36, "shorter wins", 0.64), (0.7, "longer wins", 0.7)])
def test_length_alone_is_one_rule_with_one_figure_wherever_it_stands(longer, said, shown):
    frame = pd.DataFrame({"base_digest": ["b"], "dataset_digest": ["d"], LENGTH: [longer], f"{LENGTH}_stderr": [0.02]})
    found, words = length_rule(frame)
    assert words == said and found.mean == pytest.approx(shown)
    assert found.low < shown < found.high


def test_links_that_would_run_something_are_no_links():
    assert "href" not in page("[x](javascript:alert(1))", "t").replace('rel="icon" href', "")


def test_an_effect_is_of_pairs_that_agree_in_every_setting_that_was_chosen():
    def row(adapter: str, steps: int, seed: int, reward: float) -> dict[str, Any]:
        return {
            "trial_id": f"{adapter}-{steps}-s{seed}", "adapter": adapter, "seed": float(seed), METRIC: reward,
            "params.adapter.name": adapter, "params.train.steps": str(steps), "params.seed": str(seed),
        }  # fmt: skip

    rows = [row("full", 10, s, 0.2) for s in (0, 1)] + [row("lora", 10, s, 0.1) for s in (0, 1)]
    rows += [row("lora", 1000, s, 0.9) for s in (0, 1)]  # more steps, which full fine-tuning never had
    (found,) = [e for e in effects.effects(trials(*rows), METRIC) if e.axis == "adapter"]
    assert (found.cells, found.quality.mean) == (2, pytest.approx(-0.1))
