"""The gate: what it decides, what it refuses to read, and what a build sees of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import t as student

from harness.base.errors import UserError, UserErrors
from harness.gate import baseline as store
from harness.gate.baseline import Baseline, Record
from harness.gate.decide import Finding, Outcome, decide
from harness.gate.judge import judge
from harness.gate.render import as_github, as_junit, as_markdown, as_text, verdict
from harness.gate.rules import Rule, Rules, read_rules
from tests.conftest import QUICK
from tests.report.test_report import trials
from tests.runs import Sandbox

DIGESTS = {"dataset": "d1", "base": "b1", "evaluators": "e1"}
REWARD = "eval/true_reward"


def record(*values: float, name: str = REWARD, **changes: Any) -> Record:
    first = Record(DIGESTS, "cpu", {"algo.name": "dpo"}, list(range(len(values))), {name: list(values)})
    return replace(first, **changes)


def rules(direction: Any = "up", false_alarms: float = 0.05, inconclusive: Any = "pass", **rule: Any) -> Rules:
    return Rules({REWARD: Rule(direction, **rule)}, false_alarms, inconclusive)


def decided(before: Record, after: Record | None, asked: Rules) -> Finding:
    (found,) = decide({"dpo": before}, {} if after is None else {"dpo": after}, asked)
    return found


# -- decisions -----------------------------------------------------------------------------------------

STEADY = (0.50, 0.52, 0.48, 0.51, 0.49, 0.50)


def test_the_interval_is_that_of_two_means_with_a_pooled_spread():
    after = (0.40, 0.42, 0.41)
    found = decided(record(*STEADY), record(*after), rules(false_alarms=0.01))
    pooled = (5 * np.var(STEADY, ddof=1) + 2 * np.var(after, ddof=1)) / 7
    reach = student.ppf(0.99, 7) * math.sqrt(pooled * (1 / 6 + 1 / 3))
    change = np.mean(after) - np.mean(STEADY)
    assert (found.change, found.low, found.high) == pytest.approx((change, change - reach, change + reach))
    assert found.outcome is Outcome.REGRESSED and found.fails and found.seeds == (6, 3)


def test_a_base_that_measures_otherwise_is_told_and_judged_all_the_same():
    before = record(0.7, 0.71, 0.72, of_base={REWARD: 0.141})
    for now, told in ((0.122, True), (0.143, False)):
        after = record(0.7, 0.71, 0.72, of_base={REWARD: now})
        found = decide({"dpo": before}, {"dpo": after}, rules(absolute=0.05))
        said = [f.note for f in found if f.outcome is Outcome.CHANGED]
        assert bool(said) is told, said
        assert not told or f"{REWARD} 0.141 → 0.122" in said[0]
        assert any(f.metric == REWARD for f in found) and not any(f.fails for f in found)


def test_a_rule_against_the_base_holds_each_seed_to_it_whatever_the_baseline_has():
    own, changes = (0.60, 0.58, 0.59), (-0.10, -0.12, -0.11)
    after = record(*own)
    after = replace(after, metrics={REWARD: list(own), "delta/true_reward": list(changes)})
    asked = rules(absolute=0.02, against="base", false_alarms=0.05)
    found = decided(record(0.1, 0.1), after, asked)
    reach = student.ppf(0.95, 2) * 0.01 / math.sqrt(3)
    assert (found.change, found.low, found.high) == pytest.approx((-0.11, -0.11 - reach, -0.11 + reach))
    assert found.before == pytest.approx(0.70) and found.outcome is Outcome.REGRESSED and found.fails
    assert not decided(record(0.9, 0.9), after, rules(absolute=0.15, against="base")).fails
    small = replace(after, metrics={REWARD: list(own), "delta/true_reward": [-0.11]})
    assert decided(after, small, asked).outcome is Outcome.INCONCLUSIVE
    unjudged = decided(after, record(*own), asked)
    assert unjudged.outcome is Outcome.SKIPPED and "eval.baseline=none" in unjudged.note and not unjudged.fails


def test_a_sweep_is_held_to_its_own_base_without_a_baseline_file():
    figures = {REWARD: 0.5, "delta/true_reward": -0.31, "params.algo.name": "dpo"}
    frame = trials(*[{"trial_id": f"dpo-s{s}-00000000", "seed": float(s), **figures} for s in range(3)])
    (found,) = [f for f in judge(frame, frame, rules(absolute=0.02, against="base")) if f.metric]
    assert found.change == pytest.approx(-0.31) and found.note == "against the base" and found.fails
    general = read_rules("general")
    assert all(rule.against == "base" and rule.tolerance(0.5) <= 0.05 for rule in general.metrics.values())


def test_only_evaluators_metrics_can_be_held_to_the_base():
    with pytest.raises(ValueError, match="eval/"):
        Rules({"memory/peak_mb": Rule("down", against="base")})


def test_false_alarms_are_shared_out_over_all_metrics_and_recipes():
    alone = decided(record(*STEADY), record(*STEADY), rules(false_alarms=0.04))
    two = {name: record(*STEADY) for name in ("dpo", "kto")}
    shared = decide(two, two, rules(false_alarms=0.08))
    assert all(f.low == pytest.approx(alone.low) for f in shared)


@pytest.mark.parametrize(
    ("shift", "tolerance", "outcome"),
    [
        (-0.10, 0.01, Outcome.REGRESSED),
        (-0.10, 0.20, Outcome.SAME),  # certain, and tolerated
        (-0.03, 0.01, Outcome.REGRESSED),
        (-0.01, 0.00, Outcome.INCONCLUSIVE),
        (-0.01, 0.04, Outcome.SAME),
        (0.00, 0.03, Outcome.SAME),
        (0.00, 0.00, Outcome.INCONCLUSIVE),
        (0.10, 0.01, Outcome.IMPROVED),
        (0.03, 0.10, Outcome.SAME),
    ],
)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_each_outcome_for_either_direction(shift, tolerance, outcome, direction):
    moved = [v + (shift if direction == "up" else -shift) for v in STEADY]
    found = decided(record(*STEADY), record(*moved), rules(direction, absolute=tolerance))
    assert found.outcome is outcome
    assert found.fails == (outcome is Outcome.REGRESSED)


def test_the_rules_say_whether_an_open_question_fails():
    asked = rules(absolute=0.0, inconclusive="fail")
    assert decided(record(*STEADY), record(*STEADY), asked).fails


def test_a_relative_tolerance_is_a_share_of_the_baselines_mean():
    assert Rule("up", relative=0.1).tolerance(-20.0) == 2.0
    assert Rule("up").tolerance(5.0) == 0.0
    with pytest.raises(ValueError, match="not both"):
        Rule("up", relative=0.1, absolute=0.1)


def test_values_that_coincide_are_as_uncertain_as_their_step():
    """They had an error of 0, and any difference was certain. Two levels, 0.1 apart: that is all the step one knows."""
    level = (0.5, 0.5, 0.5)
    assert decided(record(*level), record(*level), rules()).outcome is Outcome.SAME
    found = decided(record(*level), record(0.4, 0.4), rules(absolute=0.05))
    reach = student.ppf(0.95, 3) * math.sqrt(0.1**2 / 4 * (1 / 3 + 1 / 2))
    assert found.outcome is Outcome.INCONCLUSIVE and found.high == pytest.approx(-0.1 + reach)
    fine = decided(record(0.5, 0.5, 0.501), record(0.4, 0.4), rules(absolute=0.05))
    assert fine.outcome is Outcome.REGRESSED  # now the step is known to be small


def test_a_step_that_all_values_share_raises_few_false_alarms():
    """Equal sides in multiples of 1/8 with a spread of half a step; at most 5 in 100 fail."""
    rng, failed = np.random.default_rng(0), 0
    for _ in range(1000):
        values = np.round(rng.normal(0.5, 1 / 16, 8) * 8) / 8
        failed += decided(record(*values[:4]), record(*values[4:]), rules()).fails
    assert failed <= 65


@pytest.mark.parametrize(("before", "after"), [((0.5,), (0.1,)), (STEADY, (0.1,)), ((0.5,), STEADY)])
def test_one_seed_on_either_side_is_inconclusive_blind_and_says_why(before, after):
    found = decided(record(*before), record(*after), rules())
    assert found.outcome is Outcome.INCONCLUSIVE and "one seed" in found.note and found.low is None
    assert found.blind and found.detectable is None and not found.fails
    assert decided(record(*before), record(*after), replace(rules(), fail_if_blind=True)).fails


# -- what could not have been seen, and what changed -----------------------------------------------------


def test_the_loss_that_would_have_been_seen_is_found_in_80_of_100_gates():
    rng, caught, gates = np.random.default_rng(0), 0, 400
    told = []
    for _ in range(gates):
        before, after = rng.normal(0.5, 0.02, 20), rng.normal(0.5, 0.02, 4)
        told.append(decided(record(*before), record(*after), rules()).detectable)
    loss = float(np.mean(told))
    for _ in range(gates):
        before, after = rng.normal(0.5, 0.02, 20), rng.normal(0.5 - loss, 0.02, 4)
        caught += decided(record(*before), record(*after), rules()).outcome is Outcome.REGRESSED
    assert 0.72 <= caught / gates <= 0.88


def test_an_open_question_is_blind_only_where_the_loss_that_matters_would_go_unseen():
    wide, narrow = (0.3, 0.7, 0.5, 0.45), STEADY
    for values, blind in ((wide, True), (narrow, False)):
        found = decided(record(*values), record(*values), rules())
        assert found.outcome is Outcome.INCONCLUSIVE and found.blind is blind
    assert decided(record(*narrow), record(*narrow), rules(must_see=0.005)).blind
    assert Rule("up", relative=0.1).matters(200.0) == 40.0 and Rule("up", absolute=0.02).matters(1.0) == 0.1


def test_a_gate_that_saw_nothing_says_so_in_its_first_line():
    one = decide({"dpo": record(0.5)}, {"dpo": record(0.1)}, rules())
    first = as_text(one, "sweep a against b").splitlines()[0]
    assert first == "passed, but could not have seen any loss in 1 of 1 metrics: 1 inconclusive"
    own = decide({"dpo": record(0.5, 0.9, name="eval/x")}, {"dpo": record(0.5, 0.9, name="eval/x")}, rules())
    assert verdict(own) == "passed, but could not have seen any loss in 1 of 1 metrics: 1 skipped"
    wide = decide({"dpo": record(0.3, 0.7, 0.5)}, {"dpo": record(0.3, 0.7, 0.5)}, rules())
    error = 0.2 * math.sqrt(2 / 3)
    least = (student.ppf(0.95, 4) + student.ppf(0.8, 4)) * error
    assert (
        verdict(wide) == f"passed, but could not have seen a loss below {least:.3f} in 1 of 1 metrics: 1 inconclusive"
    )
    assert verdict(decide({"dpo": record(*STEADY)}, {"dpo": record(*STEADY)}, rules(absolute=0.03))) == "passed: 1 same"


def test_what_changed_in_a_recipe_under_the_same_name_is_named():
    """N9: "0.385 → 0.139", and not that the learning rate was another one."""
    before = record(*STEADY, config={"train.learning_rate": "0.001", "train.steps": "150", "old.only": "1"})
    after = record(*STEADY, config={"train.learning_rate": "0.1", "train.steps": "150", "new.only": "2"})
    told, found = decide({"dpo": before}, {"dpo": after}, rules(absolute=0.03))
    assert (told.outcome, told.fails) == (Outcome.CHANGED, False)
    assert told.note == "another recipe under this name: train.learning_rate 0.001 → 0.1"
    assert found.outcome is Outcome.SAME
    told, _ = decide({"dpo": replace(before, config={})}, {"dpo": after}, rules(absolute=0.03))
    assert "cannot be told" in told.note


def test_a_recipe_or_metric_that_is_gone_fails():
    gone = decided(record(*STEADY), None, rules())
    assert (gone.outcome, gone.metric, gone.fails) == (Outcome.MISSING, None, True)
    other = decided(record(*STEADY), record(*STEADY, name="eval/other"), rules())
    assert (other.outcome, other.metric, other.fails) == (Outcome.MISSING, REWARD, True)


def test_a_trial_that_did_not_finish_fails_with_its_reason():
    crashed = {"dpo": "dpo-s3 is oom (9,000 MB)"}
    found = decide({"dpo": record(*STEADY)}, {"dpo": record(*STEADY)}, rules(absolute=0.1), crashed)
    assert [f.outcome for f in found] == [Outcome.MISSING, Outcome.SAME]
    assert found[0].fails and "9,000 MB" in found[0].note


@pytest.mark.parametrize("name", DIGESTS)
def test_other_data_base_or_evaluators_are_not_comparable_and_named(name):
    after = record(*STEADY, digests={**DIGESTS, name: "new"})
    found = decided(record(*STEADY), after, rules())
    assert (found.outcome, found.fails) == (Outcome.NOT_COMPARABLE, True)
    assert f"other {name} {DIGESTS[name]} → new" in found.note


def test_other_data_can_be_judged_despite_that_and_it_is_told():
    before, after = {"dpo": record(*STEADY)}, {"dpo": record(0.1, 0.1, digests={**DIGESTS, "dataset": "new"})}
    told, found = decide(before, after, rules(), despite=["dataset"])
    assert told.note == "judged despite other dataset d1 → new" and not told.fails
    assert found.outcome is Outcome.REGRESSED
    (still,) = decide(before, after, rules(), despite=["base"])
    assert still.outcome is Outcome.NOT_COMPARABLE


def test_what_depends_on_the_device_is_skipped_on_another_one():
    asked = rules("down", relative=0.1, same_device=True)
    assert decided(record(*STEADY), record(9, 9, 9), asked).outcome is Outcome.REGRESSED
    found = decided(record(*STEADY), record(9, 9, 9, device="gpu"), asked)
    assert found.outcome is Outcome.SKIPPED and not found.fails and "cpu" in found.note and "gpu" in found.note


def test_a_rule_for_some_recipes_says_nothing_about_others_and_takes_no_share_of_false_alarms():
    before = {"dpo-lora": record(*STEADY), "grpo-lora": record(*STEADY)}
    after = {"dpo-lora": record(0.1, 0.1, 0.1), "grpo-lora": record(0.1, 0.1, 0.1)}
    (found,) = decide(before, after, rules(only=("grpo-*",), false_alarms=0.04))
    assert (found.recipe, found.outcome) == ("grpo-lora", Outcome.REGRESSED)
    alone = decide({"grpo-lora": before["grpo-lora"]}, after, rules(false_alarms=0.04))[0]
    assert (found.low, found.high) == (alone.low, alone.high)


def test_a_metric_that_the_baseline_has_not_got_is_told():
    asked = Rules({REWARD: Rule("up"), "eval/new": Rule("up"), "eval/none": Rule("up")}, 0.01)
    after = record(*STEADY, metrics={REWARD: [0.5], "eval/new": [0.5]})
    found = decide({"dpo": record(*STEADY)}, {"dpo": after}, asked)
    assert [(f.metric, f.outcome, f.fails) for f in found[1:]] == [
        ("eval/new", Outcome.NEW, False), ("eval/none", Outcome.SKIPPED, False),
    ]  # fmt: skip


def test_a_rule_for_recipes_that_are_not_there_is_refused():
    frame = trials(*[{"trial_id": f"dpo-s{s}-00000000", "seed": float(s), REWARD: 0.5} for s in range(3)])
    judge(frame, frame, rules(only=("dpo*",)))
    with pytest.raises(UserError, match="only=ppo-.: matches no recipe"):
        judge(frame, frame, rules(only=("dpo*", "ppo-*")))
    with pytest.raises(UserError, match="has no seed"):
        judge(frame.assign(seed=math.nan), frame, rules())


def test_a_new_recipe_is_told_and_does_not_fail():
    found = decide({"dpo": record(*STEADY)}, {"dpo": record(*STEADY), "ppo": record(1.0)}, rules(absolute=0.1))
    assert found[-1].recipe == "ppo" and found[-1].outcome is Outcome.NEW and not found[-1].fails


def test_an_unchanged_recipe_fails_one_gate_in_a_hundred_at_most():
    rng = np.random.default_rng(0)
    names = [f"eval/m{i}" for i in range(4)]
    asked = Rules({n: Rule("up") for n in names}, 0.01)
    failed = 0
    for _ in range(1500):
        sides = [
            {r: Record(DIGESTS, "cpu", {}, list(range(n)), {m: list(rng.normal(0.7, 0.02, n)) for m in names})
             for r in ("dpo", "grpo")}
            for n in (20, 4)
        ]  # fmt: skip
        failed += any(f.fails for f in decide(sides[0], sides[1], asked))
    assert failed / 1500 <= 0.017  # 0.01, and three standard errors


# -- the file ------------------------------------------------------------------------------------------


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "baseline.json"
    found = Baseline(1, "first", "2026-01-01T00:00Z", "ci", "python -m harness", "abc", {}, {"dpo": record(*STEADY)})
    store.write(path, replace(found, **changes))
    return path


def test_a_baseline_comes_back_as_it_was_and_a_metric_is_one_line(tmp_path):
    path = written(tmp_path)
    assert store.read(path).recipes == {"dpo": record(*STEADY)}
    assert any(REWARD in line and "0.48" in line for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["recipes"]["dpo"].update(metrcs={}), "recipes.dpo.metrcs is not a field"),
        (lambda d: d["recipes"]["dpo"].pop("metrics"), "recipes.dpo.metrics is missing"),
        (lambda d: d["recipes"]["dpo"]["metrics"].update({REWARD: [0.5, "high"]}), r"true_reward.1"),
        (lambda d: d["recipes"]["dpo"]["metrics"][REWARD].pop(), "5 values for 6 seeds"),
        (lambda d: d["recipes"]["dpo"]["seeds"].__setitem__(0, 1), "a seed twice"),
        (lambda d: d.update(schema_version=2), "schema version 2, and this harness reads 1"),
        (lambda d: d.update(recipes={}), "no recipe"),
        (lambda d: d.pop("schema_version"), "schema version None"),
    ],
)
def test_a_file_edited_by_hand_is_refused_where_it_is_wrong(tmp_path, edit, words):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        store.read(path)
    assert str(path) in str(error.value) and "--update" in str(error.value)


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON"), ("[1]", "schema version None"), (None, "cannot")])
def test_what_is_no_baseline_is_said_so(tmp_path, content, words):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as refused:
        store.read(path)
    assert "python -m harness gate --update" in str(refused.value.fix)


def test_policies_are_found_by_name_or_file_and_checked(tmp_path):
    assert read_rules("ci").metrics[REWARD].direction == "up"
    with pytest.raises(UserError, match="known: ci"):
        read_rules("strict")
    for text, words in (
        ("_target_: harness.gate.rules.Rules\nmetrics: {}", "name no metric"),
        ("_target_: harness.gate.rules.Rules\nmetrics: {a: {direction: sideways}}", "direction"),
        ("_target_: harness.gate.rules.Rules\nmetrics: {a: {direction: up, absolut: 1}}", "absolut"),
        ("{", r": not YAML \(while parsing"),
    ):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises((UserError, UserErrors), match=words):
            read_rules(str(tmp_path / "p.yaml"))


# -- what a build sees ---------------------------------------------------------------------------------

EVIL = "dpo</td><script>|`x`\n::error::no"


def findings() -> list[Finding]:
    before = {EVIL: record(*STEADY), "kto": record(*STEADY), "sft": record(*STEADY)}
    after = {EVIL: record(*(v - 0.3 for v in STEADY)), "kto": record(*STEADY)}
    return decide(before, after, rules(absolute=0.0))


def test_every_format_tells_the_failures_and_takes_names_as_data():
    found = findings()
    assert verdict(found) == "FAILED: 1 regressed, 1 inconclusive, 1 missing"
    text = as_text(found, "sweep a against b")
    lines = text.splitlines()  # the verdict stands first and last
    assert len(lines) == 7 and lines[0] == lines[-1] == verdict(found) and "✗" in text
    markdown = as_markdown(found, "a|b")
    assert "<script>" not in markdown
    (row,) = [line for line in markdown.splitlines() if line.startswith("| ✗ | dpo")]
    assert row.count("|") == 11
    suite = ElementTree.fromstring(as_junit(found, "t").split("\n", 1)[1])
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    lines = as_github(found, "t").splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["::error", "::error", "::notice"]


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Sandbox:
    """A folder with a sweep of three seeds and the baseline written from it."""
    box = Sandbox(tmp_path_factory.mktemp("gate"), cache_dir)
    done = box.run("-m", "algo=sft,dpo", "seed=0,1,2", "sweep=monday", "train.steps=2")
    assert done.returncode == 0, done.stderr
    done = box.run("gate", "--baseline", "gate/b.json", "--update", "--reason", "the first", quick=False)
    assert done.returncode == 0, done.stderr
    assert "3 seeds" in done.stdout and "20 or more" in done.stdout
    return box


def gate(sandbox: Sandbox, *arguments: str) -> Any:
    return sandbox.call("gate", *arguments)


@pytest.mark.slow
def test_a_sweep_against_its_own_values_passes(sandbox: Sandbox):
    done = gate(sandbox, "--baseline", "gate/b.json", "--format", "text,markdown,junit,github", "--out", "said")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "values of this very sweep (monday)" in done.stderr
    assert {p.name for p in (sandbox.cwd / "said").iterdir()} == {"gate.txt", "gate.md", "gate.xml", "gate.github.txt"}
    content = json.loads((sandbox.cwd / "gate" / "b.json").read_text())
    assert content["reason"] == "the first" and len(content["recipes"]) == 2
    for kept in content["recipes"].values():
        assert kept["seeds"] == [0, 1, 2] and {"eval/true_reward", "memory/peak_mb"} <= kept["metrics"].keys()
    again = gate(sandbox, "--baseline", "monday")
    assert again.returncode == 0, again.stdout + again.stderr


def changed(sandbox: Sandbox, edit: Any) -> str:
    content = json.loads((sandbox.cwd / "gate" / "b.json").read_text())
    edit(content["recipes"])
    (sandbox.cwd / "gate" / "edited.json").write_text(json.dumps(content))
    return "gate/edited.json"


@pytest.mark.slow
def test_a_regression_a_missing_recipe_and_other_data_fail(sandbox: Sandbox):
    def better(recipes: Any) -> None:
        first, second = recipes.values()
        first["metrics"]["eval/true_reward"] = [v + 0.5 for v in first["metrics"]["eval/true_reward"]]
        second["digests"]["dataset"] = "other"
        recipes["gone"] = first

    done = gate(sandbox, "--baseline", changed(sandbox, better))
    assert done.returncode == 1 and "very sweep" not in done.stderr, done.stderr
    for words in ("regressed", "missing", "not comparable", "other dataset", "FAILED"):
        assert words in done.stdout


@pytest.mark.slow
def test_other_code_that_does_the_same_passes_and_what_moved_is_named(sandbox: Sandbox):
    def other_code(recipes: Any) -> None:
        for kept in recipes.values():
            kept["digests"] |= {"evaluators": "of old code", "base": "of old code too"}

    def other_figure(recipes: Any) -> None:
        other_code(recipes)
        for kept in recipes.values():
            kept["fingerprints"]["evaluator.true_reward"]["figures"]["true_reward"] += 0.5

    def none(recipes: Any) -> None:
        other_code(recipes)
        for kept in recipes.values():
            kept["fingerprints"] = {}

    done = gate(sandbox, "--baseline", changed(sandbox, other_code))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "other evaluators of old code → " in done.stdout and "and the same behaviour" in done.stdout
    assert "other base of old code too → " in done.stdout and "passed" in done.stdout
    done = gate(sandbox, "--baseline", changed(sandbox, other_figure))
    assert done.returncode == 1 and "figures moved on the fixture: true_reward: true_reward" in done.stdout
    done = gate(sandbox, "--baseline", changed(sandbox, none))
    assert done.returncode == 1 and "there is no fingerprint of the baseline" in done.stdout


@pytest.mark.slow
def test_bad_input_ends_with_2_and_no_traceback(sandbox: Sandbox):
    for arguments, words in (
        (("--baseline", "gate/b.json", "--update"), "without a reason"),
        (("--baseline", "gate/b.json", "--reason", "x"), "belongs to --update"),
        (("--baseline", "gate/none.json"), "cannot be read"),
        (("--baseline", "gate/b.json", "--candidate", "tuesday"), "no such sweep"),
        (("--baseline", "gate/b.json", "--format", "pdf"), "unknown format"),
        (("--baseline", "gate/b.json", "--rules", "none"), "no such rules"),
        (("--baseline", "gate/b.json", "--despite", "data"), "known: dataset, base, evaluators"),
        (("--baseline", "nowhere"), "no such sweep"),
        ((), "--baseline"),
        (("--baseline", changed(sandbox, lambda r: r.clear())), "no recipe"),
    ):
        done = gate(sandbox, *arguments)
        assert done.returncode == 2, (arguments, done.stdout)
        assert words in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_sweep_of_other_code_is_no_candidate(sandbox: Sandbox, tmp_path: Path):
    """A copy of the sweep whose keys are not this checkout's."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{sandbox.cwd}/mlflow.db")
    run = sandbox.runs("monday")[0]
    kept = run.data.tags["train_key"]
    client.set_tag(run.info.run_id, "train_key", "0" * 16)
    try:
        done = gate(sandbox, "--baseline", "gate/b.json")
        assert done.returncode == 2 and "does not come from the code under test" in done.stderr
    finally:
        client.set_tag(run.info.run_id, "train_key", kept)
    assert asdict(read_rules("ci"))["false_alarms"] == 0.01


@pytest.mark.slow
def test_the_script_that_ci_runs_sweeps_reports_and_gates(sandbox: Sandbox):
    script = Path(__file__).parents[2] / "scripts" / "gate.sh"
    small = [*QUICK, "eval.evaluators.true_reward.samples=2", "train.steps=2"]

    def run(baseline: str, **more: str) -> Any:
        environment = sandbox.environment(PYTHON=sys.executable, SWEEP="ci", BASELINE=baseline, **more)
        return subprocess.run(
            ["bash", str(script), *small], cwd=sandbox.cwd, env=environment, capture_output=True, text=True, check=False
        )

    done = run("gate/none.json")
    assert done.returncode == 2 and "cannot be read" in done.stderr, done.stdout + done.stderr
    first = ("--update", "--reason", "first", "--rules", "ci")
    done = gate(sandbox, *first, "--baseline", "gate/ci.json", "--candidate", "ci")
    assert done.returncode == 0, done.stderr
    summary = sandbox.cwd / "summary.md"
    done = run("gate/ci.json", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "::notice title=Gate::" in done.stdout
    assert ", rules ci\n" in done.stdout  # the one that the baseline was written with
    assert summary.read_text().startswith("## Gate passed") and "# Sweep ci" in summary.read_text()
    assert "](quality_against_memory.png)" not in summary.read_text()  # it could not be shown there
    made = {p.name for p in (sandbox.cwd / "reports" / "ci").iterdir()}
    assert {"report.md", "report.html", "results.csv", "gate.md", "gate.xml", "gate.txt"} <= made


@pytest.mark.slow
def test_the_power_of_a_gate_is_estimated_from_distinct_seeds(sandbox: Sandbox):
    script = Path(__file__).parents[2] / "scripts" / "gate_power.py"
    done = subprocess.run(
        [sys.executable, str(script), "--sweep", "monday", "--candidate-seeds", "1"],
        cwd=sandbox.cwd, env=sandbox.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 seeds, 3 splits: 1 against the 2 others" in done.stdout
    assert "unchanged, gate fails:" in done.stdout and "worse by 0.05, caught:" in done.stdout
