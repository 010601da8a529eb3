"""Drift, diversity, win rate and calibration: hand-worked values, and exact ones on models of one token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from harness.base import calibration
from harness.evaluators import behaviour, scoring
from harness.evaluators.base import EvalContext
from harness.evaluators.behaviour import Behaviour
from harness.evaluators.calibration import Calibration
from harness.evaluators.preference import Preference
from harness.evaluators.scoring import PAIRS, PairLogProbs, pair_log_probs, ratio_with_stderr
from harness.evaluators.true_reward import TrueReward
from harness.evaluators.win_rate import WinRate
from harness.models.loading import character_tokenizer
from harness.tasks.arithmetic import Arithmetic
from tests.toys import random_llama

TOKENIZER = character_tokenizer(96)
TASK = Arithmetic(pairs=4, eval_pairs=29, eval_prompts=10)
DATA = TASK.load()


def context_of(model: Any, before: Any = None, **changes: Any) -> EvalContext:
    """A context of ``model``, trained where there is a model ``before``."""

    def make(model: Any, **more: Any) -> EvalContext:
        options: dict[str, Any] = {
            "tokenizer": TOKENIZER, "task": TASK, "data": DATA, "rows": lambda rows: [dict(r) for r in rows],
            "split": "test", "batch_size": 64, "max_length": 96, "max_completion_length": 12, "seed": 0,
            "device": "cpu",
        }  # fmt: skip
        return EvalContext(model=model, **{**options, **more})

    if before is None:
        return make(model, **changes)
    other = make(before)

    @contextmanager
    def turn() -> Iterator[EvalContext]:
        yield other

    return make(model, **{"beta": 0.1, "reference": pair_log_probs(other), "before_training": turn, **changes})


class Says:
    """A model that gives each token the same log-probability whatever came before."""

    def __init__(self, weights: dict[int, float]):
        logits = torch.full((len(TOKENIZER),), -1e9)
        for token, weight in weights.items():
            logits[token] = math.log(weight)
        self.logits, self.generation_config = logits, type("Config", (), {"eos_token_id": TOKENIZER.eos_token_id})()
        self.config, self.draws = LlamaConfig(vocab_size=len(TOKENIZER)), torch.Generator().manual_seed(0)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, -1)})()

    __call__ = forward

    def modules(self) -> tuple[()]:
        return ()

    def generate(self, input_ids: torch.Tensor, generation_config: Any, **_: Any) -> torch.Tensor:
        count = input_ids.shape[0] * generation_config.max_new_tokens
        drawn = torch.multinomial(self.logits.softmax(0), count, replacement=True, generator=self.draws)
        return torch.cat([input_ids, drawn.view(input_ids.shape[0], -1)], 1)


END, ONE, TWO = TOKENIZER.eos_token_id, *TOKENIZER("12")["input_ids"]


# -- drift ---------------------------------------------------------------------------------------------


def test_the_kl_of_models_with_one_distribution_per_token_is_near_its_exact_value():
    context = context_of(Says({ONE: 0.5, END: 0.5}), Says({ONE: 0.25, END: 0.75}), max_completion_length=30)
    found = Behaviour(samples=200).evaluate(context).metrics
    per_token = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert abs(found["kl_per_token"] - per_token) < 4 * found["kl_per_token_stderr"] < 0.05
    assert abs(found["kl_per_sequence"] - 2 * per_token) < 4 * found["kl_per_sequence_stderr"] < 0.2  # 2 tokens each
    assert found["entropy_per_token"] == pytest.approx(math.log(2))
    assert found["completion_tokens_p50"] in (1.0, 2.0)


def test_a_model_has_not_drifted_from_itself():
    model = random_llama(0)
    found = Behaviour().evaluate(context_of(model, model)).metrics
    assert found["kl_per_sequence"] == found["kl_per_token"] == 0.0


def test_without_another_model_there_is_no_drift_and_the_reason_is_said():
    found = Behaviour().evaluate(context_of(random_llama(0)))
    assert "kl_per_sequence" not in found.metrics and "no other model" in found.absent["kl_per_sequence"]
    assert "entropy_per_token" in found.metrics and "distinct_2" in found.metrics


def test_the_drift_of_given_samples_does_not_depend_on_the_batch_size():
    drawn, found = None, []
    for size in (1, 7, 64):
        context = context_of(random_llama(0), random_llama(1), batch_size=size)
        drawn = drawn or scoring.held_out_samples(context, per_prompt=4)[1]
        context.memo.once(("samples", 4, 1.0, 10), lambda drawn=drawn: drawn)
        found.append(Behaviour().evaluate(context).metrics)
    for name, value in found[0].items():
        assert all(other[name] == pytest.approx(value, abs=1e-6, rel=1e-6) for other in found), name


def test_a_ratio_of_sums_has_a_linearised_error():
    found = ratio_with_stderr("x", [1.0, 4.0, 4.0], [1.0, 2.0, 3.0])
    residuals = [1 - 1.5, 4 - 3.0, 4 - 4.5]
    spread = sum(r * r for r in residuals) / 2
    assert found == {"x": 1.5, "x_stderr": pytest.approx(math.sqrt(3 * spread) / 6)}
    assert ratio_with_stderr("x", [], []) == {} and ratio_with_stderr("x", [2.0], [4.0]) == {"x": 0.5}


# -- diversity -----------------------------------------------------------------------------------------


def test_texts_that_say_the_same_are_wholly_similar_and_disjoint_ones_not_at_all():
    assert behaviour.self_similarity([(1, 2), (1, 2), (1, 2)]) == 1.0
    assert behaviour.self_similarity([(1, 2), (3, 4)]) == 0.0
    assert behaviour.self_similarity([(1, 2), (1, 3)]) == pytest.approx(1 / 5)  # {1} of {1, 2, 3, 12, 13}
    assert behaviour.self_similarity([(), ()]) == 1.0


def test_a_phrase_that_comes_again_is_a_repetition():
    assert behaviour.repetition((1, 2, 3, 4, 1, 2, 3, 4)) == pytest.approx(1 / 5)
    assert behaviour.repetition((7,) * 12) == pytest.approx(8 / 9)
    assert behaviour.repetition((1, 2, 3)) == 0.0


def test_distinct_counts_different_n_grams():
    assert behaviour.distinct([(1, 2, 1), (1, 2)], 1) == pytest.approx(2 / 5)
    assert behaviour.distinct([(1, 2, 1), (1, 2)], 2) == pytest.approx(2 / 3)
    assert behaviour.distinct([(1,)], 2) == 0.0


def test_quantiles_are_lengths_that_occurred():
    assert behaviour.quantiles(range(1, 11)) == {"p10": 1.0, "p50": 5.0, "p90": 9.0}
    assert behaviour.quantiles([3]) == {"p10": 3.0, "p50": 3.0, "p90": 3.0}


def test_the_best_of_a_group_is_the_one_that_ranks_highest():
    assert behaviour.best_of([0.1, 0.2, 0.3, 0.9], [1.0, 2.0, 5.0, 4.0], 2) == [0.2, 0.3]


# -- win rate ------------------------------------------------------------------------------------------


def test_a_model_ties_with_itself():
    model = random_llama(0)
    found = WinRate().evaluate(context_of(model, model)).metrics
    assert found["win_rate"] == 0.5 and found["win_rate_stderr"] == 0.0
    assert found["win_rate_length_controlled"] == pytest.approx(0.5)


def test_a_short_wrong_answer_beats_a_long_wrong_one():
    found = WinRate().evaluate(context_of(Says({END: 1.0}), Says({TWO: 1.0}))).metrics
    assert found["win_rate"] == 1.0


def test_without_another_model_there_is_no_win_rate():
    assert "no other model" in WinRate().evaluate(context_of(random_llama(0))).absent["win_rate"]


# -- calibration ---------------------------------------------------------------------------------------


def scores(chosen: list[float], rejected: list[float]) -> PairLogProbs:
    ones = torch.ones(len(chosen), dtype=torch.long)
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (chosen, rejected)]
    return PairLogProbs(*as_tensor, ones, ones, 0)


def test_calibration_by_hand(monkeypatch):
    logit = math.log(0.8 / 0.2)  # 0.8 sure of the right side twice, of the wrong side once
    trained = scores([logit, logit, 0.0], [0.0, 0.0, logit])
    context = context_of(random_llama(0), random_llama(0), beta=1.0, reference=scores([0.0] * 3, [0.0] * 3))
    three = {split: pairs[:3] for split, pairs in context.data.eval_pairs.items()}
    context = replace(context, data=replace(context.data, eval_pairs=three))
    context.memo.once(PAIRS, lambda: trained)
    found = Calibration().evaluate(context)
    assert found.metrics["preference_brier"] == pytest.approx((2 * 0.04 + 0.64) / 3)
    assert found.metrics["preference_ece"] == pytest.approx(abs(0.8 - 2 / 3))
    # squares .04, .04, .64 of three prompts: deviation sqrt(.12), over sqrt(3)
    assert found.metrics["preference_brier_stderr"] == pytest.approx(0.2) and "preference_ece_stderr" in found.metrics
    (row,) = found.tables["reliability"]
    assert row["count"] == 3 and row["predicted"] == pytest.approx(0.8) and row["observed"] == pytest.approx(2 / 3)


def test_indifference_is_half_right():
    assert calibration.confidence([0.5, 0.9, 0.2]) == ([0.5, 0.9, 0.8], [0.5, 1.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "words"), [({"beta": None}, "no beta"), ({"split": "other"}, "no held-out pairs in split other")]
)
def test_what_cannot_be_calibrated_is_absent_with_its_reason(changes, words):
    context = context_of(random_llama(0), random_llama(1), **changes)
    found = Calibration().evaluate(context)
    assert words in found.absent["preference_ece"] and "preference_ece" not in found.metrics


def test_declining_is_counted_apart_for_prompts_with_and_without_an_answer():
    context = context_of(random_llama(0))
    rows = DATA.eval_prompts["test"]
    said = ["i dont know." if TASK.answerable(row) == (i % 2 == 0) else "7" for i, row in enumerate(rows)]
    drawn = [scoring.Sample(i, text, (1,), ended=True) for i, text in enumerate(said)]
    context.memo.once(("samples", 1, 1.0, len(rows)), lambda: drawn)
    found = Calibration(samples=1).evaluate(context).metrics
    for name, answerable in (("declined_answerable", True), ("declined_unanswerable", False)):
        shares = [
            float(TASK.declines(t)) for t, row in zip(said, rows, strict=True) if TASK.answerable(row) is answerable
        ]
        assert shares and found[name] == pytest.approx(sum(shares) / len(shares))


# -- shared work ---------------------------------------------------------------------------------------


def test_evaluators_share_scores_and_samples(monkeypatch):
    counted = {"pairs": 0, "samples": 0}
    score_pairs, sample = scoring._score_pairs, scoring.sample
    monkeypatch.setattr(
        scoring, "_score_pairs", lambda c: counted.__setitem__("pairs", counted["pairs"] + 1) or score_pairs(c)
    )
    monkeypatch.setattr(
        scoring, "sample", lambda *a, **k: counted.__setitem__("samples", counted["samples"] + 1) or sample(*a, **k)
    )
    context = context_of(random_llama(0), random_llama(1), reference=None)
    for evaluator in (Preference(), Calibration(), TrueReward(), WinRate(), Behaviour()):
        evaluator.evaluate(context)
    assert counted["pairs"] <= 2 and counted["samples"] == 2, "one set of samples for either model"


def test_a_context_of_another_model_shares_nothing():
    context = context_of(random_llama(0))
    first = pair_log_probs(context)
    assert pair_log_probs(context) is first
    assert not torch.equal(pair_log_probs(replace(context, model=random_llama(1))).chosen, first.chosen)


def test_results_per_example_average_to_the_metrics_and_name_their_examples():
    context = context_of(random_llama(0), random_llama(1))
    for evaluator in (Preference(), TrueReward(), WinRate(), Behaviour()):
        found = evaluator.evaluate(context)
        for columns in found.examples.values():
            names = columns["example"]
            assert len(names) == len(set(names)) or evaluator == Preference()
            for name, values in columns.items():
                if name not in ("example", "cluster"):
                    assert len(values) == len(names)
                    assert sum(values) / len(values) == pytest.approx(found.metrics[name]), name
