"""Evaluators judge pair by pair and sample by sample: no figure may depend on batches, order or leftover state."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.base.calibration import clustered_error, t_quantile, wilson
from harness.base.errors import Diverged
from harness.evaluators.base import EvalContext, Evaluator
from harness.evaluators.lm_eval import EMBEDDED, LmEval, embedded_rows, plain_metrics
from harness.evaluators.preference import Preference, wins
from harness.evaluators.scoring import (
    completion_log_probs,
    pair_log_probs,
    sample,
    with_stderr,
)
from harness.evaluators.true_reward import TrueReward
from harness.models import prefixes
from harness.models.loading import character_tokenizer
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.tasks.conversation import PLAIN_TEMPLATE, Style, as_messages, encode, is_conversational
from tests.toys import random_llama

TOKENIZER = character_tokenizer(96)
TASK = Arithmetic(pairs=4, eval_pairs=29, eval_prompts=10)
DATA = TASK.load()


@pytest.fixture
def context() -> EvalContext:
    return EvalContext(
        model=random_llama(0),
        tokenizer=TOKENIZER,
        task=TASK,
        data=DATA,
        rows=lambda rows: [dict(r) for r in rows],
        split="test",
        batch_size=64,
        max_length=96,
        max_completion_length=12,
        seed=0,
        device="cpu",
        beta=0.1,
    )


@pytest.fixture
def reference(context: EvalContext) -> Any:
    return pair_log_probs(replace(context, model=random_llama(1)))


def with_pairs(context: EvalContext, pairs: Sequence[Any]) -> EvalContext:
    return replace(context, data=replace(context.data, eval_pairs={"test": list(pairs)}))


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


# -- log-probabilities ---------------------------------------------------------------------------------


def test_log_probs_are_those_of_each_sequence_computed_alone(context):
    sequences = [(ids_of(p), [*ids_of(c), EOS]) for p, c in (("12+7=", "19"), ("1+1=", "i dont know."), ("9=", ""))]
    sums, counts = completion_log_probs(context, sequences)
    assert counts.tolist() == [3, 13, 1]
    for (prompt, completion), found in zip(sequences, sums.tolist(), strict=True):
        with torch.no_grad():
            log_probs = torch.log_softmax(context.model(torch.tensor([prompt + completion])).logits[0], -1)
        naive = sum(log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion))
        assert found == pytest.approx(naive, abs=1e-5)


def test_log_probs_of_all_one_token_continuations_add_up_to_one(context):
    prompt = ids_of("12+7=")
    sums, _ = completion_log_probs(context, [(prompt, [token]) for token in range(len(TOKENIZER))])
    assert sums.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_tokens_beyond_the_length_limit_are_not_scored(context):
    sequence = (ids_of("12+7="), ids_of("1234567"))
    whole, _ = completion_log_probs(context, [(sequence[0], sequence[1][:3])])
    cut, counts = completion_log_probs(replace(context, max_length=8), [sequence])
    assert counts.tolist() == [3] and cut.item() == pytest.approx(whole.item(), abs=1e-6)


def test_pairs_that_were_cut_are_counted(context):
    pairs = [
        {"prompt": "1+1=", "chosen": "2", "rejected": "i dont know."},  # 4 + 13 tokens with the end of sequence
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
    ]
    assert pair_log_probs(with_pairs(replace(context, max_length=16), pairs)).truncated == 1
    assert pair_log_probs(with_pairs(replace(context, max_length=17), pairs)).truncated == 0


def test_no_forward_pass_makes_more_logits_than_the_limit_and_the_sums_stay(context, monkeypatch):
    whole = pair_log_probs(context)
    cells: list[int] = []
    hook = context.model.register_forward_hook(lambda *given: cells.append(given[-1].logits.numel()))
    monkeypatch.setattr("harness.evaluators.scoring.MOST_LOGITS", limit := 5_000)
    parts = pair_log_probs(replace(context))
    hook.remove()
    assert len(cells) > 1 and max(cells) <= limit
    assert torch.allclose(parts.chosen, whole.chosen, atol=1e-5)
    assert torch.equal(parts.chosen_tokens, whole.chosen_tokens)


# -- preference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7])
def test_preference_figures_do_not_depend_on_the_batch_size(context, reference, size):
    judged = [Preference().evaluate(replace(context, batch_size=n, reference=reference)).metrics for n in (64, size)]
    assert judged[0].keys() == judged[1].keys()
    for name, value in judged[0].items():
        assert judged[1][name] == pytest.approx(value, abs=1e-6, rel=1e-6), name


def test_preference_figures_do_not_depend_on_the_order_of_pairs(context):
    order = list(range(29))
    random.Random(0).shuffle(order)
    pairs = DATA.eval_pairs["test"]
    judged = []
    for rows in (pairs, [pairs[i] for i in order]):
        mixed = with_pairs(replace(context, batch_size=7), rows)
        mixed = replace(mixed, reference=pair_log_probs(replace(mixed, model=random_llama(1))))
        judged.append(Preference().evaluate(mixed).metrics)
    for name, value in judged[0].items():
        assert judged[1][name] == pytest.approx(value, abs=1e-6, rel=1e-6), name


def test_ties_count_one_half():
    assert wins([1.0, 0.0, 2.0], [0.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]


def test_pairs_of_one_prompt_are_one_cluster_in_every_error(context):
    """The same pairs, under six prompts and under two: other errors, and a column that says which belong together."""
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": "9" * (i + 1)} for i in range(6)]
    few = [{**pair, "prompt": pairs[i % 2]["prompt"]} for i, pair in enumerate(pairs)]
    judged = Preference().evaluate(replace(context, data=TaskData(eval_pairs={"test": few})))
    columns, metrics = judged.examples["pairs"], judged.metrics
    assert list(columns["cluster"]) == [pair["prompt"] for pair in few]
    for name in ("likelihood_margin", "likelihood_accuracy"):
        assert metrics[f"{name}_stderr"] == pytest.approx(clustered_error(columns[name], columns["cluster"]))
    assert 0 <= metrics["likelihood_accuracy_low"] <= metrics["likelihood_accuracy"]
    assert metrics["likelihood_accuracy_high"] - metrics["likelihood_accuracy_low"] > 0.5  # two prompts tell little


def test_an_untrained_policy_against_itself_ties_everywhere(context):
    metrics = Preference().evaluate(replace(context, reference=pair_log_probs(context))).metrics
    assert metrics["preference_accuracy"] == 0.5 and metrics["preference_accuracy_stderr"] == 0.0
    assert metrics["logratio_margin"] == metrics["preference_margin"] == 0.0


def test_on_the_baseline_the_implicit_reward_is_absent_with_a_reason(context):
    found = Preference().evaluate(context)
    assert "preference_accuracy" not in found.metrics and "preference_margin" not in found.metrics
    assert "0.5 by construction" in found.absent["preference_accuracy"]
    assert {"likelihood_accuracy", "length_only_accuracy"} <= found.metrics.keys()


def test_where_the_longer_answer_always_wins_length_alone_is_always_right(context):
    pairs = [{"prompt": f"{i}+1=", "chosen": "well, " + str(i), "rejected": str(i)} for i in range(5)]
    assert Preference().evaluate(with_pairs(context, pairs)).metrics["length_only_accuracy"] == 1.0
    turned = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
    assert Preference().evaluate(with_pairs(context, turned)).metrics["length_only_accuracy"] == 0.0


def test_answers_of_equal_length_tie_on_length(context):
    pairs = [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}, {"prompt": "1+1=", "chosen": "2", "rejected": "42"}]
    assert Preference().evaluate(with_pairs(context, pairs)).metrics["length_only_accuracy"] == 0.25


def test_margins_are_differences_of_log_ratios_plain_and_times_beta(context, reference):
    scores = pair_log_probs(context)
    margin = ((scores.chosen - reference.chosen) - (scores.rejected - reference.rejected)).mean().item()
    metrics = Preference().evaluate(replace(context, reference=reference)).metrics
    assert metrics["logratio_margin"] == pytest.approx(margin, abs=1e-9)
    assert metrics["preference_margin"] == pytest.approx(0.1 * margin, abs=1e-9)
    assert metrics["chosen_logratio"] - metrics["rejected_logratio"] == pytest.approx(margin, abs=1e-9)


def test_without_beta_the_scaled_margin_is_absent_and_not_zero(context, reference):
    found = Preference().evaluate(replace(context, beta=None, reference=reference))
    assert "preference_margin" not in found.metrics and "no beta" in found.absent["preference_margin"]


def test_the_likelihood_is_normalised_by_length(context):
    """A long answer has the lower sum of log-probabilities; only its mean per token may count."""
    pairs = DATA.eval_pairs["test"]
    scores = pair_log_probs(context)
    expected = [
        1.0 if c / n > r / m else 0.0
        for c, n, r, m in zip(
            scores.chosen.tolist(),
            [len(p["chosen"]) + 1 for p in pairs],
            scores.rejected.tolist(),
            [len(p["rejected"]) + 1 for p in pairs],
            strict=True,
        )
    ]
    assert Preference().evaluate(context).metrics["likelihood_accuracy"] == pytest.approx(sum(expected) / 29)


def test_a_mean_has_the_standard_error_of_its_sample():
    # mean 2; squares 1 + 0 + 1 = 2; variance 2 / 2 = 1; standard error sqrt(1 / 3)
    assert with_stderr("x", [1.0, 2.0, 3.0]) == {"x": 2.0, "x_stderr": pytest.approx(math.sqrt(1 / 3))}
    assert with_stderr("x", []) == {} and with_stderr("x", [5.0]) == {"x": 5.0}


# -- sampling ------------------------------------------------------------------------------------------


def test_sampling_is_reproducible_and_leaves_the_global_random_state_alone(context):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = sample(context, ["12+7=", "1+1=", "30-4="], per_prompt=3, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert sample(context, ["12+7=", "1+1=", "30-4="], per_prompt=3, temperature=1.0) == first
    assert sample(replace(context, seed=1), ["12+7=", "1+1=", "30-4="], per_prompt=3, temperature=1.0) != first


def test_samples_come_in_the_order_of_prompts_whatever_their_length(context):
    drawn = sample(context, ["12+7=", "1+1=", "i dont know="], per_prompt=2, temperature=1.0)
    assert [d.row for d in drawn] == [0, 0, 1, 1, 2, 2]


def test_greedy_samples_of_one_prompt_are_equal_and_do_not_depend_on_the_batch(context):
    prompts = ["12+7=", "1+1=", "30-4="]
    drawn = sample(context, prompts, per_prompt=2, temperature=0)
    assert all(drawn[i].text == drawn[i + 1].text for i in (0, 2, 4))
    assert sample(replace(context, batch_size=1), prompts, per_prompt=2, temperature=0) == drawn


@pytest.mark.parametrize("together", [False, True])
def test_a_sample_is_its_own_whatever_is_sampled_beside_it_and_however_prompts_are_read(context, together):
    prompts = ["12+7=", "1+1=", "30-4=", "i dont know="]
    plain = sample(context, prompts, per_prompt=3, temperature=1.0)
    if together:
        assert prefixes.ready(context.model, True, longest=96, device="cpu", precision="fp32") is not None
    told: list[int] = []
    for size in (1, 2, 5, 64):
        own = replace(context, batch_size=size, progress=lambda _, done, total: told.append(done))
        assert sample(own, prompts, per_prompt=3, temperature=1.0) == plain
        assert told == sorted(told) and told[-1] == 12 and len(told) > 12
        told.clear()
    assert sample(context, prompts[:2], per_prompt=3, temperature=1.0) == plain[:6]
    assert len({s.ids for s in plain}) > 6


def test_a_prompt_is_read_once_for_its_samples_and_an_adapter_is_added_meanwhile(context):
    from peft import LoraConfig, get_peft_model

    shared = prefixes.ready(context.model, True, longest=96, device="cpu", precision="fp32")
    assert shared is not None
    policy = get_peft_model(context.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    learned = replace(context, model=policy)
    shared.why = "not now"
    plain = sample(replace(learned, batch_size=1), ["12+7=", "30-4="], per_prompt=4, temperature=1.0)
    shared.why = ""
    read, adapted = [], []
    body = policy.get_base_model().model
    body.register_forward_pre_hook(lambda _, a, o: read.append(tuple(o["input_ids"].shape)), with_kwargs=True)
    policy.base_model.model.model.layers[0].mlp.up_proj.lora_A.default.register_forward_hook(
        lambda *_: adapted.append(1)
    )
    assert sample(learned, ["12+7=", "30-4="], per_prompt=4, temperature=1.0) == plain
    assert read[0] == (2, 5) and all(width == 1 for _, width in read[1:]) and not adapted
    assert read[-1][0] <= 8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_is_no_longer_one_is_said_to_have_diverged(context, temperature):
    with torch.no_grad():
        context.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="not finite"):
        sample(context, ["1+1="], per_prompt=2, temperature=temperature)


def test_samples_follow_the_models_own_distribution(context):
    """2,000 draws of one token: frequencies within four standard errors of the model's probabilities."""
    drawn = sample(
        replace(context, max_completion_length=1, batch_size=2000), ["12+7="], per_prompt=2000, temperature=1.0
    )
    with torch.no_grad():
        logits = context.model(torch.tensor([ids_of("12+7=")])).logits[0, -1]
    probability = torch.softmax(logits, -1)[EOS].item()
    share = sum(d.ended for d in drawn) / 2000
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 2000) + 1e-9
    top = 3 + int(logits[3:].argmax())  # the likeliest character; 0 to 2 are special tokens
    share = sum(d.text == TOKENIZER.decode([top]) for d in drawn) / 2000
    probability = torch.softmax(logits, -1)[top].item()
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 2000)


class Parrot:
    """Stands in for a model: continues each row with the next of the given token lists, padded on the right."""

    training = False

    def __init__(self, *continuations: list[int], eos: Any = EOS):
        self.continuations = list(continuations)
        self.generation_config = SimpleNamespace(eos_token_id=eos)

    def modules(self) -> list[Any]:
        return [self]

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        assert (input_ids[attention_mask == 0] == PAD).all()  # padding on the left
        rows = [self.continuations.pop(0) for _ in input_ids]
        width = max(map(len, rows))
        return torch.cat([input_ids, torch.tensor([r + [PAD] * (width - len(r)) for r in rows])], 1)


def test_tokens_are_counted_up_to_and_with_the_end_and_what_never_ends_is_not_ended(context):
    said = Parrot([*ids_of("19"), EOS], ids_of("1234"), [EOS], [*ids_of("19"), EOS, *ids_of("7")])
    drawn = sample(replace(context, model=said), ["1+1=", "2+2=", "3+3=", "4+4="], per_prompt=1, temperature=1.0)
    assert [(d.text, d.tokens, d.ended) for d in drawn] == [
        ("19", 3, True),
        ("1234", 4, False),
        ("", 1, True),
        ("19", 3, True),
    ]


def test_any_of_the_models_own_end_tokens_ends_a_sample(context):
    stop = ids_of(".")[0]
    said = Parrot([*ids_of("19"), stop], eos=[EOS, stop])
    (drawn,) = sample(replace(context, model=said), ["1+1="], per_prompt=1, temperature=1.0)
    assert (drawn.tokens, drawn.ended) == (3, True)


def test_true_reward_averages_within_a_prompt_first_so_that_prompts_are_the_unit_of_its_error(context):
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+3=", "answer": "5"}]
    #        right 0.98     wrong -0.02   right 0.98     never ends, wrong -0.08
    said = Parrot([*ids_of("2"), EOS], [*ids_of("3"), EOS], [*ids_of("5"), EOS], ids_of("5555"))
    judged = TrueReward(samples=2).evaluate(replace(context, model=said, data=TaskData(eval_prompts={"test": rows})))
    bounds = {n: judged.metrics[n] for n in judged.metrics if n.endswith(("_low", "_high"))}
    assert bounds.keys() == {f"{n}_{end}" for n in ("correct", "ended_by_eos") for end in ("low", "high")}
    assert all(0 <= v <= 1 for v in bounds.values())
    # per prompt: 0.48 and 0.45; mean 0.465; standard error |0.48 - 0.45| / 2 = 0.015
    assert {n: v for n, v in judged.metrics.items() if n not in bounds} == {
        "true_reward": pytest.approx(0.465),
        "true_reward_stderr": pytest.approx(0.015),
        "correct": pytest.approx(0.5),
        "correct_stderr": pytest.approx(0.0),
        "completion_tokens": pytest.approx(2.5),
        "completion_tokens_stderr": pytest.approx(0.5),
        "ended_by_eos": pytest.approx(0.75),
        "ended_by_eos_stderr": pytest.approx(0.25),
    }
    assert list(judged.tables["samples"]) == [
        {"prompt": "1+1=", "completion": "2", "reward": 0.98, "correct": True, "tokens": 2, "ended": True},
        {"prompt": "2+3=", "completion": "5", "reward": 0.98, "correct": True, "tokens": 2, "ended": True},
    ]


def test_true_reward_looks_at_no_more_prompts_than_asked(context):
    judged = TrueReward(samples=1, max_prompts=3).evaluate(context)
    assert len(judged.tables["samples"]) == 3
    assert [row["prompt"] for row in judged.tables["samples"]] == [r["prompt"] for r in DATA.eval_prompts["test"][:3]]


@pytest.mark.parametrize("evaluator", [Preference(), TrueReward(), LmEval()], ids=lambda e: type(e).__name__)
def test_an_evaluator_says_why_it_does_not_apply_to_a_task_without_its_rows(evaluator: Evaluator):
    assert evaluator.not_applicable(TASK, DATA) is None
    assert evaluator.not_applicable(TASK, TaskData())


# -- lm-eval -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> TaskData:
    return replace(DATA, retention=DATA.retention[:8])


def test_lm_eval_runs_the_embedded_tasks_and_leaves_mode_and_torchs_random_state_as_they_were(context, small):
    context = replace(context, data=small)
    context.model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    metrics = LmEval().evaluate(context).metrics
    assert context.model.training and torch.equal(torch.get_rng_state(), before)
    assert {name for name in metrics if not name.endswith(("_stderr", "_low", "_high"))} == {
        "arithmetic_generate/exact_match",
        "arithmetic_choice/acc",
        "arithmetic_choice/ece",
        "arithmetic_choice/brier",
        "letters/exact_match",
        "arithmetic_generate/truncated",
        "arithmetic_choice/truncated",
        "letters/truncated",
    }
    assert all(0 <= value <= 1 for value in metrics.values())
    torch.manual_seed(6)
    assert LmEval().evaluate(context).metrics == metrics  # and says the same again


def test_lm_eval_leaves_the_random_state_of_python_and_numpy_as_it_was(context, small):
    import numpy

    random.seed(5)
    numpy.random.seed(5)
    before = random.getstate(), numpy.random.get_state()[1].tolist()
    LmEval(tasks=("letters",)).evaluate(replace(context, data=small))
    same = (random.getstate() == before[0], numpy.random.get_state()[1].tolist() == before[1])
    assert same == (True, True)


def test_lm_eval_chooses_the_likeliest_of_four_answers(context, small):
    """Its accuracy is that of our own log-probabilities of the choices."""
    context = replace(context, data=small)
    right = []
    for row in embedded_rows(context)["choice"]:
        sums, _ = completion_log_probs(context, [(ids_of(row["prompt"]), ids_of(c)) for c in row["choices"]])
        right.append(float(int(sums.argmax()) == row["target"]))
    found = LmEval(tasks=("arithmetic_choice",)).evaluate(context).metrics
    assert found["arithmetic_choice/acc"] == pytest.approx(sum(right) / len(right))


def test_an_unknown_lm_eval_task_is_a_user_error(context, small, monkeypatch):
    import lm_eval.tasks

    from harness.base.errors import UserError

    manager = lm_eval.tasks.TaskManager  # listing the tasks that come with lm-eval takes 10 s
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **o: manager(**{**o, "include_defaults": False}))
    with pytest.raises(UserError, match="unknown to lm-eval"):
        LmEval(tasks=("embedded", "no_such_task_anywhere")).evaluate(replace(context, data=small))


def test_metric_names_lose_the_comma_and_keep_the_filter():
    results = {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.25,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,strict-match": 0.1,
            "sample_len": 101,
        },
        "letters": {"exact_match,none": 1.0, "perplexity,none": 7.5, "acc,none": math.nan, "bypass": True},
    }
    metrics = plain_metrics(results, {"gsm8k": 101, "letters": 1})
    bounds = [metrics.pop(f"gsm8k/exact_match_strict-match_{end}") for end in ("low", "high")]
    assert bounds == pytest.approx(wilson(0.25, 101, t_quantile(100)))
    metrics = {name: v for name, v in metrics.items() if not name.endswith(("_low", "_high"))}
    assert metrics == {
        "gsm8k/exact_match_strict-match": 0.25,
        "gsm8k/exact_match_strict-match_stderr": pytest.approx(math.sqrt(0.25 * 0.75 / 100)),
        "gsm8k/exact_match_flexible-extract": 0.5,
        "gsm8k/exact_match_flexible-extract_stderr": pytest.approx(math.sqrt(0.25 / 100)),
        "letters/exact_match": 1.0,  # one document: no standard error
        "letters/perplexity": 7.5,
    }
    assert not any("," in name for name in metrics)


def test_the_embedded_documents_are_the_same_every_time(context):
    first, again = embedded_rows(context), embedded_rows(context)
    assert first == again and set(first) == {"generate", "choice", "letters"}
    assert len(EMBEDDED) == len(first)


def test_every_multiple_choice_question_has_four_answers_and_the_right_one_is_the_target(context):
    answers = {r["prompt"]: r["answer"] for r in DATA.eval_prompts["test"]}
    rows = embedded_rows(context)["choice"]
    assert rows and all(answers[r["prompt"]] is not None for r in rows)
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["target"]] == answers[row["prompt"]]


def test_the_embedded_documents_are_those_of_the_split(context):
    prompts = {
        split: {r["prompt"] for r in embedded_rows(replace(context, split=split))["generate"]}
        for split in ("test", "validation")
    }
    assert prompts["test"] and not prompts["test"] & prompts["validation"]


# -- conversation --------------------------------------------------------------------------------------


def test_a_text_completion_ends_with_one_end_of_sequence():
    assert encode(TOKENIZER, "1+1=", "2") == (ids_of("1+1="), [*ids_of("2"), EOS])
    assert encode(TOKENIZER, "1+1=", "2<eos>") == (ids_of("1+1="), [*ids_of("2"), EOS])
    assert encode(TOKENIZER, "1+1=", "") == (ids_of("1+1="), [EOS])
    assert encode(TOKENIZER, "1+1=") == (ids_of("1+1="), [])


class Merging:
    """A tokenizer whose ``=1`` is one token, so that a completion can swallow the end of its prompt."""

    eos_token = "$"
    eos_token_id = ord("$")
    bos_token_id = None

    def __call__(self, text: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        ids, i = [], 0
        while i < len(text):
            ids.append(1000 if text[i : i + 2] == "=1" else ord(text[i]))
            i += 2 if ids[-1] == 1000 else 1
        return {"input_ids": ids}


def test_a_completion_starts_where_the_encodings_diverge_if_tokens_merge_across_the_boundary():
    assert encode(Merging(), "a=", "19") == ([ord("a")], [1000, ord("9"), ord("$")])
    assert encode(Merging(), "a=", "29") == ([ord("a"), ord("=")], [ord("2"), ord("9"), ord("$")])


@pytest.fixture
def chat() -> Any:
    """A character tokenizer that also knows colons and newlines, with the plain template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = "abcdefghijklmnopqrstuvwxyz0123456789+-= :\n"
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<pad>", "<eos>", "<unk>", *characters])}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


USER, ASSISTANT = [{"role": "user", "content": "12+7="}], [{"role": "assistant", "content": "19"}]


def test_the_plain_template_renders_roles_and_ends_what_the_assistant_says(chat):
    assert chat.apply_chat_template(USER + ASSISTANT, tokenize=False) == "user: 12+7=\nassistant: 19<eos>\n"
    assert chat.apply_chat_template(USER, tokenize=False, add_generation_prompt=True) == "user: 12+7=\nassistant:"


def test_a_conversation_splits_into_prompt_and_completion_and_decodes_to_what_was_rendered(chat):
    prompt, completion = encode(chat, USER, ASSISTANT)
    assert chat.decode(prompt) == "user: 12+7=\nassistant:"
    assert chat.decode(completion) == " 19<eos>\n"
    assert chat.decode(prompt + completion) == chat.apply_chat_template(USER + ASSISTANT, tokenize=False)
    assert encode(chat, USER) == (prompt, [])


def test_several_turns_before_the_completion_belong_to_the_prompt(chat):
    turns = [*USER, *ASSISTANT, {"role": "user", "content": "and 1+1="}]
    prompt, completion = encode(chat, turns, [{"role": "assistant", "content": "2"}])
    assert chat.decode(prompt) == "user: 12+7=\nassistant: 19<eos>\nuser: and 1+1=\nassistant:"
    assert chat.decode(completion) == " 2<eos>\n"


def test_a_text_row_becomes_a_user_and_an_assistant_turn_and_keeps_its_other_fields():
    row = {"prompt": "1+1=", "completion": "2", "label": True, "answer": "2"}
    assert as_messages(row) == {
        "prompt": [{"role": "user", "content": "1+1="}],
        "completion": [{"role": "assistant", "content": "2"}],
        "label": True,
        "answer": "2",
    }
    assert Style().rows([row]) == [row]
    assert is_conversational(Style(chat=True).rows([row])) and not is_conversational([row])


def test_messages_pass_through_unchanged():
    row = {"prompt": USER, "chosen": ASSISTANT, "rejected": ASSISTANT}
    assert Style(chat=True).rows([row]) == [row]


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_a_completion_after_virtual_tokens_does_not_depend_on_its_neighbours(context, kind):
    from peft import get_peft_config, get_peft_model

    torch.manual_seed(3)
    config = get_peft_config({"peft_type": kind, "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"})
    base = random_llama(0)
    assert prefixes.ready(base, True, longest=96, device="cpu", precision="fp32") is not None  # before it is wrapped
    learned = replace(context, model=get_peft_model(base, config).eval())
    prompts = ["1+1=", "12+7=", "30-4=", "what is 12+7=", "?+5="]
    together = sample(learned, prompts, per_prompt=1, temperature=0.0)
    alone = [sample(learned, [p], per_prompt=1, temperature=0.0)[0] for p in prompts]
    assert [s.text for s in together] == [s.text for s in alone]
    assert len({s.text for s in together}) > 2
    ids = ids_of(prompts[1])
    for token in together[1].ids:  # as a forward pass of the whole text has it
        with torch.no_grad():
            assert int(learned.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)
