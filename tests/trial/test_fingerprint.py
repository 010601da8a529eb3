"""Comparable by behaviour: code that was rewritten and does the same is told from code that says something else."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import fingerprint
from harness.config.fingerprint import BASE, JUDGING, Fingerprint, as_text, compare, differences, from_text
from harness.evaluators.base import Evaluation
from harness.evaluators.true_reward import TrueReward
from harness.evaluators.win_rate import WinRate
from harness.gate.baseline import Record
from harness.gate.decide import Outcome, alike, decide
from harness.gate.rules import Rule, Rules
from harness.models import Tiny
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.conversation import as_messages
from harness.trial import behaviour
from harness.trial.assemble import assemble
from harness.trial.behaviour import (
    asked_of,
    asked_of_base,
    context_on_toys,
    figures_of,
    fixture_rows,
    of_base,
    of_evaluator,
    of_rules,
)
from harness.trial.checks import check_data
from harness.trial.identify import identify
from harness.trial.keys import judging_code
from tests.inside import plain_config, tell
from tests.toys import conversational_rows

TASK = Arithmetic(pairs=4, eval_pairs=12, eval_prompts=8)
DATA = fixture_rows(TASK.load(), "test")


def of(settings: str = "s", **figures: float) -> dict[str, Fingerprint]:
    return {"evaluator.length": Fingerprint({"configuration": settings, "rows": "r"}, figures)}


# -- compared ------------------------------------------------------------------------------------------


def test_figures_that_differ_by_rounding_are_the_same_and_others_are_named():
    before = of(mean=0.5, share=100.0, count=0.0)
    assert compare(before, of(mean=0.5000005, share=100.05, count=0.0), JUDGING).alike
    found = compare(before, of(mean=0.51, share=100.0, spread=1.0), JUDGING)
    assert not found.alike
    assert found.why == (
        "figures moved on the fixture: length: count 0 → absent; length: mean 0.5 → 0.51; length: spread absent → 1"
    )


def test_of_many_figures_that_moved_the_first_are_named():
    before, after = ({f"f{i}": value for i in range(7)} for value in (0.0, 1.0))
    found = compare(of("s", **before), of("s", **after), JUDGING)
    assert found.why.endswith("length: f3 0 → 1 and 3 more")


def test_what_is_asked_something_else_is_not_alike_whatever_it_says():
    found = compare(of(mean=1.0), of("other", mean=1.0), JUDGING)
    assert (found.alike, found.why) == (False, "asked something else: length (configuration)")
    more = {**of(mean=1.0), "evaluator.new": Fingerprint({}, {})}
    assert compare(of(mean=1.0), more, JUDGING).why == "on one side alone: new"
    assert compare(of(mean=1.0), {**of(mean=1.0), "base": Fingerprint({}, {})}, JUDGING).alike  # of another kind


def test_without_a_fingerprint_nothing_is_known_and_the_way_out_is_told():
    for before, after, side in (({}, of(a=1.0), "the baseline"), (of(a=1.0), {}, "the candidate"), ({}, {}, "either")):
        found = compare(before, after, JUDGING)
        assert not found.alike and f"no fingerprint of {side}" in found.why
        assert ("gate --update" in found.why) is bool(after and not before)


def test_a_fingerprint_comes_back_from_its_text():
    one = of(mean=1 / 3)["evaluator.length"]
    assert from_text(as_text(one)) == one


def test_very_many_figures_fit_into_a_tag_and_none_is_lost():
    many = {f"a figure with a long name {i:04}": float(i) for i in range(1000)}
    one = Fingerprint({}, fingerprint.rounded(many))
    other = Fingerprint({}, fingerprint.rounded(many | {"a figure with a long name 0999": 0.0}))
    assert len(as_text(one)) < 8000 and any("more, together" in line for line in differences(one, other))
    assert fingerprint.rounded({"a": float("nan"), "b": 1 / 3}) == {"b": 0.333333}


# -- the gate ------------------------------------------------------------------------------------------

REWARD = "eval/true_reward"
ASKED = Rules({REWARD: Rule("up", absolute=0.1)})


def record(prints: dict[str, Fingerprint] | None = None, evaluators: str = "e1", base: str = "b1") -> Record:
    digests = {"dataset": "d", "base": base, "evaluators": evaluators}
    return Record(digests, "cpu", {}, [0, 1, 2], {REWARD: [0.5, 0.51, 0.52]}, prints or {})


def test_other_code_of_evaluators_that_does_the_same_is_judged_with_a_note():
    before, after = record(of(mean=1.0)), record(of(mean=1.0), "e2")
    note, told, judged = decide({"dpo": before}, {"dpo": after}, ASKED)
    assert told.outcome is Outcome.CHANGED and not told.fails  # these baselines hold no settings to compare
    assert (note.outcome, note.fails) == (Outcome.SKIPPED, False)
    assert note.note == "other evaluators e1 → e2, and the same behaviour: all 1 figures of the fixture agree"
    assert judged.outcome is Outcome.SAME


def test_other_code_of_evaluators_that_says_something_else_fails_and_names_the_figure():
    (found,) = decide({"dpo": record(of(mean=1.0))}, {"dpo": record(of(mean=2.0), "e2")}, ASKED)
    assert found.outcome is Outcome.NOT_COMPARABLE and found.fails
    assert found.note == "other evaluators e1 → e2 (figures moved on the fixture: length: mean 1 → 2)"


def test_a_baseline_without_fingerprints_says_so_and_equal_digests_need_none():
    (found,) = decide({"dpo": record()}, {"dpo": record(of(mean=1.0), "e2")}, ASKED)
    assert found.outcome is Outcome.NOT_COMPARABLE and "no fingerprint of the baseline" in found.note
    assert alike(record(), record()).obstacles == ()


def test_the_base_has_a_fingerprint_of_its_own_and_data_has_none():
    base = {BASE: Fingerprint({"rows": "r"}, {"loss": 3.0})}
    assert alike(record(base), record(base, base="b2")).obstacles == ()
    moved = {BASE: Fingerprint({"rows": "r"}, {"loss": 2.0})}
    assert "base: loss 3 → 2" in alike(record(base), record(moved, base="b2")).obstacles[0]
    other = replace(record(base), digests={**record().digests, "dataset": "d2"})
    assert alike(record(base), other).obstacles == ("other dataset d → d2",)
    assert alike(record(base), other, ["dataset"]).notes == ("judged despite other dataset d → d2",)


# -- made ----------------------------------------------------------------------------------------------

MODULE = '''
"""An evaluator of the user's."""
from dataclasses import dataclass
from harness.evaluators.base import Evaluation, Evaluator
from harness.evaluators.scoring import held_out_samples


def length(sample):
    return float(sample.tokens)


@dataclass(frozen=True)
class Lengths(Evaluator):
    def evaluate(self, context):
        _, drawn = held_out_samples(context, per_prompt=2)
        return Evaluation({"mean_length": sum(map(length, drawn)) / len(drawn), "count": float(len(drawn))})
'''
FAST = (
    "task.pairs=4", "task.eval_pairs=2", "task.eval_prompts=2", "eval.max_completion_length=3",
    "model.config.vocab_size=64", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
)  # fmt: skip
OPTIONS = (
    "algo=none", "model=shape/llama-10m", "plugins=[lengths_of_mine]", "eval=none",
    "+eval.evaluators.mine={_target_:lengths_of_mine.Lengths}",
)  # fmt: skip


def recorded(folder: Path, monkeypatch: Any, source: str) -> Record:
    """What a gate knows of a trial whose evaluator has this source."""
    (folder / "lengths_of_mine.py").write_text(source)
    monkeypatch.delitem(sys.modules, "lengths_of_mine", raising=False)
    told = tell(folder / "trial", folder / "cache", *OPTIONS, sizes=FAST)
    setup = assemble(plain_config(*OPTIONS, sizes=FAST))
    trial = identify(setup, check_data(setup))
    digests = {name: trial.digests[name] for name in ("dataset", "base", "evaluators")}
    return Record(digests, "cpu", {}, [0, 1], {REWARD: [0.5, 0.51]}, fingerprint.told(told.events))


def test_a_renamed_helper_keeps_a_baseline_and_a_changed_formula_names_the_figure(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = recorded(tmp_path, monkeypatch, MODULE)
    assert {*before.fingerprints} == {"evaluator.mine", "evaluator.task"}
    renamed = recorded(
        tmp_path, monkeypatch, MODULE.replace("length(", "tokens_of(").replace("map(length", "map(tokens_of")
    )
    assert renamed.digests["evaluators"] != before.digests["evaluators"]
    found = alike(before, renamed)
    assert found.obstacles == () and "the same behaviour" in found.notes[0]
    doubled = recorded(tmp_path, monkeypatch, MODULE.replace("float(sample.tokens)", "2.0 * sample.tokens"))
    (obstacle,) = alike(before, doubled).obstacles
    assert "figures moved on the fixture: mine: mean_length" in obstacle and "count" not in obstacle


def test_an_evaluator_that_fails_on_the_fixture_leaves_a_note_and_the_trial_goes_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    broken = MODULE.replace("_, drawn", "assert context.reference is None, 'not on a trained model'\n        _, drawn")
    (tmp_path / "lengths_of_mine.py").write_text(broken)
    monkeypatch.delitem(sys.modules, "lengths_of_mine", raising=False)
    with pytest.raises(AssertionError):  # a trial has a reference after training: so has the fixture
        tell(tmp_path / "trial", tmp_path / "cache", *OPTIONS, sizes=FAST)
    notes = [json.loads(line) for line in (tmp_path / "trial" / "worker-train.jsonl").read_text().splitlines()]
    said = [str(n.get("message")) for n in notes if n["kind"] == "note"]
    assert "no fingerprint of evaluator.mine: AssertionError: not on a trained model" in said
    assert any(n["kind"] == "phase" and n["name"] == "evaluate" for n in notes)


def test_threads_do_not_move_a_fingerprint():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            figures = of_evaluator(TrueReward(), context_on_toys(TASK, DATA, chat=False))
            found.append(Fingerprint({}, fingerprint.rounded(figures)))
    finally:
        torch.set_num_threads(before)
    assert differences(*found) == [] and found[0].digest == found[1].digest


def test_a_judge_is_a_toy_on_the_fixture_and_its_scores_count():
    context = context_on_toys(TASK, DATA, chat=False)
    by_rule = of_evaluator(WinRate(), context)
    by_model = of_evaluator(WinRate(judge="owner/name"), context)
    assert 0 < by_model["win_rate"] < 1 and by_rule != by_model


def test_rows_of_conversations_have_a_fingerprint_too():
    rows = conversational_rows(4)
    data = replace(DATA, eval_pairs={"test": rows}, eval_prompts={"test": [as_messages({"prompt": "a b"})]})
    context = context_on_toys(TASK, data, chat=True)
    assert of_evaluator(_evaluator("preference"), context)["preference_pairs"] == 4
    plain = context_on_toys(TASK, replace(data, retention=()), chat=True)
    assert "arithmetic_generate/exact_match" in of_evaluator(_evaluator("lm_eval"), plain)  # on rows of its own


def _evaluator(name: str) -> Any:
    setup = assemble(plain_config("eval.evaluators.lm_eval.limit=null"))
    return setup.eval.active[name]


def test_the_order_of_results_per_example_counts():
    one = figures_of(Evaluation({"m": 0.5}, examples={"rows": {"example": ["a", "b"], "m": [0.0, 1.0]}}))
    other = figures_of(Evaluation({"m": 0.5}, examples={"rows": {"example": ["a", "b"], "m": [1.0, 0.0]}}))
    assert one == {"m": 0.5, "m by rows": pytest.approx(2 / 3)} and other["m by rows"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("attribute", ["score", "declines", "answerable"])
def test_a_changed_rule_of_the_task_moves_its_fingerprint(monkeypatch, attribute):
    before, rule = of_rules(TASK, DATA), getattr(Arithmetic, attribute)

    def other(self, *arguments):
        found = rule(self, *arguments)
        return replace(found, reward=-found.reward) if attribute == "score" else not found

    monkeypatch.setattr(Arithmetic, attribute, other)
    assert differences(Fingerprint({}, before), Fingerprint({}, of_rules(TASK, DATA)))


def test_what_an_evaluator_is_asked_is_told_apart_from_what_it_does(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code = judging_code([TrueReward()], TASK)
    one, other = asked_of(TrueReward(), code), asked_of(TrueReward(samples=9), code)
    assert {k for k in one if one[k] != other[k]} == {"configuration"}
    judged = asked_of(WinRate(judge=str(tmp_path)), code)
    (tmp_path / "config.json").write_text("{ }")
    assert {k for k, v in asked_of(WinRate(judge=str(tmp_path)), code).items() if v != judged[k]} == {"content"}


# -- the base ------------------------------------------------------------------------------------------


def test_the_bases_stage_is_known_by_a_few_steps_and_all_its_rows(monkeypatch):
    model, task = Tiny(steps=4, batch_size=4), Arithmetic(pairs=4, eval_pairs=2, eval_prompts=2)
    before = Fingerprint({}, fingerprint.rounded(of_base(model, task)))
    assert differences(before, Fingerprint({}, fingerprint.rounded(of_base(model, task)))) == []
    other = Fingerprint({}, fingerprint.rounded(of_base(replace(model, warmup_ratio=0.9), task)))
    assert any(line.startswith("train/loss") for line in differences(before, other))
    asked = asked_of_base(model, task)
    rows = Arithmetic.base_rows
    monkeypatch.setattr(Arithmetic, "base_rows", lambda self, count: rows(self, count)[::-1])
    assert {k for k, v in asked_of_base(model, task).items() if v != asked[k]} == {"rows"}


def test_what_was_made_once_is_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    first = recorded(tmp_path, monkeypatch, MODULE)
    monkeypatch.setattr(behaviour, "of_evaluator", lambda *_: pytest.fail("made again"))
    assert recorded(tmp_path, monkeypatch, MODULE) == first
