"""Trials side by side that did not do comparable work are named, with what differs."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config.fingerprint import Fingerprint, as_text
from harness.report.comparability import differences
from harness.report.intervals import shared_value
from tests.report.test_report import trials

SAME: dict[str, Any] = {"eval/true_reward": 0.5, "budget/tokens": 100.0, "beta": 0.1}


def test_trials_that_did_the_same_work_raise_no_warning():
    assert differences(trials(SAME, SAME, {**SAME, "budget/tokens": 199.0})) == []
    assert differences(trials(SAME)) == []
    assert differences(trials({"outcome": "oom"}, {"outcome": "failed", "dataset_digest": "e"})) == []


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("dataset_digest", "data"),
        ("base_digest", "base model"),
        ("evaluator_digest", "evaluation (configuration, code or data of the evaluators, or the rule of the task)"),
        ("code_digest", "training code of the harness"),
        ("device_name", "device"),
        ("precision", "precision"),
    ],
)
def test_what_differs_is_named_with_its_rows_the_common_value_first(column, words):
    rows = trials({**SAME, column: "a"}, {**SAME, column: "b"}, {**SAME, column: "b"})
    assert differences(rows) == [f"{words}: b in t1, t2; a in t0."]


def test_trials_that_were_trained_on_other_rows_and_judged_by_the_same_share_their_base():
    rows = [
        {**SAME, "dataset_digest": d, "held_out_digest": h, "baseline/x": 0.25} for d, h in (("a", "h"), ("b", "h"))
    ]
    (said,) = differences(trials(*rows))
    assert said == "training data (the held-out rows are the same): a in t0; b in t1."
    assert shared_value(trials(*rows), "baseline/x") == 0.25
    others = [rows[0], {**rows[1], "held_out_digest": "i"}]
    assert differences(trials(*others))[0].startswith("data: ") and shared_value(trials(*others), "baseline/x") is None
    old = [rows[0], {**rows[1], "held_out_digest": None}]  # of before that was noted
    assert shared_value(trials(*old), "baseline/x") is None


@pytest.mark.parametrize(("column", "name"), [("evaluator_digest", "evaluator.true_reward"), ("base_digest", "base")])
def test_of_other_code_it_is_told_whether_it_behaves_alike(column, name):
    def row(digest, mean):
        return {**SAME, column: digest, f"fingerprint.{name}": as_text(Fingerprint({"rows": "r"}, {"mean": mean}))}

    (said,) = differences(trials(row("a", 1.0), row("b", 1.0), row("b", 1.0)))
    assert said.endswith("a in t0. Their code behaves alike on a fixture, so their figures can be compared.")
    (said,) = differences(trials(row("a", 1.0), row("b", 2.0)))
    assert "b in t1. Figures moved on the fixture: " in said and said.endswith("mean 1 → 2.")


def test_of_many_rows_the_first_are_named():
    rows = trials({**SAME, "precision": "fp32"}, *[{**SAME, "precision": "bf16"}] * 6)
    assert differences(rows) == ["precision: bf16 in t1, t2, t3, t4 and 2 more; fp32 in t0."]


def test_a_value_that_is_not_known_is_no_difference():
    assert differences(trials({**SAME, "precision": "fp32"}, {**SAME, "precision": None})) == []


def test_twice_the_tokens_are_named():
    (said,) = differences(trials(SAME, {**SAME, "budget/tokens": 300.0}))
    assert said == "tokens seen in training: from 100 in t0 to 300 in t1."


def test_micro_batches_matter_to_kto_alone():
    small, large = ({**SAME, "params.train.micro_batch_size": size} for size in ("8", "32"))
    assert differences(trials(small, large)) == []
    (said,) = differences(trials({**small, "algo": "kto"}, {**large, "algo": "kto"}))
    assert said.startswith("micro-batch, from which KTO estimates its KL term: 32 in t1; 8 in t0")


def test_what_the_policy_was_held_to_is_compared():
    base, copied, shared = (
        {**SAME, "reference": kind, "reference_quantized": "False"} for kind in ("base", "own", "shared")
    )
    assert differences(trials(base, copied, shared)) == []  # the same model, however it was kept
    none = {**SAME, "reference": "none"}
    (said,) = differences(trials(base, {**none, "beta": 0.0}, {**base, "reference_quantized": "True"}))
    assert said == "reference: none (beta 0) in t1; the base in t0; the base in 4 bits in t2."
    assert differences(trials(base, {**none, "algo": "orpo", "beta": 0.1})) == []  # which never has one
    assert differences(trials(base, SAME)) == []  # of a trial that did not say nothing is known


def test_rows_that_were_cut_are_named():
    cut = {**SAME, "eval/preference_pairs": 200.0, "eval/preference_truncated": 30.0}
    (said,) = differences(trials(SAME, cut))
    assert said == "up to 15% of the held-out pairs were cut at the length limit, in t1."
    assert differences(trials(SAME, {**cut, "eval/preference_truncated": 2.0})) == []


def test_names_are_data():
    (said,) = differences(trials({**SAME, "device_name": "a"}, {**SAME, "device_name": "<b>|"}))
    assert "&lt;b&gt;&#124;" in said


def test_rows_of_one_name_are_each_looked_at():
    rows = trials({**SAME, "device_name": "A100"}, {**SAME, "device_name": "H100"}).assign(trial_id="t", label="t")
    assert differences(rows) == ["device: A100 in t; H100 in t."]


def test_the_code_of_other_algorithms_is_no_difference_and_of_the_same_one_it_is():
    import pandas as pd

    from harness.report.comparability import differences

    def row(trial: str, algo: str, code: str) -> dict[str, object]:
        return {"trial_id": trial, "label": trial, "outcome": "finished", "algo": algo, "code_digest": code}

    alike = pd.DataFrame([row("a", "dpo", "x"), row("b", "ppo", "y"), row("c", "ppo", "y")])
    assert not [line for line in differences(alike) if "training code" in line]
    unlike = pd.DataFrame([row("a", "dpo", "x"), row("b", "ppo", "y"), row("c", "ppo", "z")])
    (line,) = [line for line in differences(unlike) if "training code" in line]
    assert "y in b; z in c" in line
