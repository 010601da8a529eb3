"""The losses and advantages that trials really train on, against formulas written by hand from plain logits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from harness.algorithms.base import TrainJob
from harness.algorithms.dpo import DPO, IPO
from harness.algorithms.grpo import GRPO
from harness.algorithms.kto import KTO, shuffled_rows
from harness.algorithms.sft import SFT
from harness.algorithms.trainers import ready_trainer
from harness.base.errors import UserError
from harness.models.adapters import Full, LoRA
from harness.rewards.base import Reward, Verifier
from harness.rewards.scoring import checked
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.telemetry.clock import PhaseClock
from tests.algorithms.world import PAIRS, PROMPTS, TOKENIZER, UNPAIRED, log_prob, log_ratio, loss_of, sigmoid
from tests.toys import Fixed, random_llama, says

# -- DPO and IPO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_the_dpo_loss_is_minus_log_sigmoid_of_beta_times_the_difference_of_summed_log_ratios(
    job, policy, reference, beta
):
    def loss(pair: dict[str, str]) -> float:
        h = (
            log_ratio(policy, reference, pair["prompt"], pair["chosen"])[0]
            - log_ratio(policy, reference, pair["prompt"], pair["rejected"])[0]
        )
        return -math.log(sigmoid(beta * h))

    expected = statistics.fmean(loss(pair) for pair in PAIRS)
    assert abs(expected - math.log(2)) > 0.01  # policy and reference do differ
    assert loss_of(DPO(beta=beta).trainer(job).trainer) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_ipo_loss_is_the_squared_distance_of_per_token_log_ratios_from_half_over_beta(job, policy, reference, beta):
    def loss(pair: dict[str, str]) -> float:
        chosen, chosen_tokens = log_ratio(policy, reference, pair["prompt"], pair["chosen"])
        rejected, rejected_tokens = log_ratio(policy, reference, pair["prompt"], pair["rejected"])
        return (chosen / chosen_tokens - rejected / rejected_tokens - 1 / (2 * beta)) ** 2

    expected = statistics.fmean(loss(pair) for pair in PAIRS)
    assert loss_of(IPO(beta=beta).trainer(job).trainer) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
def test_the_dpo_loss_of_a_policy_that_equals_its_reference_is_ln_2_at_any_beta(job, beta):
    same = replace(job, reference=random_llama(0))
    assert loss_of(DPO(beta=beta).trainer(same).trainer) == pytest.approx(math.log(2), abs=1e-6)


def test_a_fresh_adapter_starts_at_ln_2_with_the_bare_base_as_its_reference(job):
    trainer = DPO(beta=0.5).trainer(replace(job, model=random_llama(0), reference=None, adapter=LoRA(rank=2))).trainer
    assert trainer.ref_model is None
    assert loss_of(trainer) == pytest.approx(math.log(2), abs=1e-6)


def test_a_bradley_terry_margin_of_one_and_a_half_is_won_with_0_818_and_costs_0_20(job, policy, reference):
    assert sigmoid(2.0 - 0.5) == pytest.approx(0.818, abs=5e-4)
    assert -math.log(sigmoid(2.0 - 0.5)) == pytest.approx(0.20, abs=5e-3)
    assert -math.log(sigmoid(0.0)) == pytest.approx(math.log(2))

    # The trainer says the same: with one pair and beta chosen so that its implicit rewards differ by 1.5.
    pair = PAIRS[0]
    h = (
        log_ratio(policy, reference, pair["prompt"], pair["chosen"])[0]
        - log_ratio(policy, reference, pair["prompt"], pair["rejected"])[0]
    )
    if h < 0:
        pair = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    one = replace(job, data=TaskData(train_pairs=[pair]), train=replace(job.train, batch_size=1, micro_batch_size=1))
    assert loss_of(DPO(beta=1.5 / abs(h)).trainer(one).trainer) == pytest.approx(0.201413, abs=1e-5)


# -- KTO -----------------------------------------------------------------------------------------------


def kto_by_hand(
    policy: Any, reference: Any, rows: Sequence[dict[str, Any]], beta: float, desirable: float, undesirable: float
) -> tuple[float, float]:
    """Mean of lambda_y - v(x, y), eq. 8, with z_0 from each prompt and its predecessor's completion; and raw z_0."""
    rotated = [log_ratio(policy, reference, row["prompt"], rows[i - 1]["completion"])[0] for i, row in enumerate(rows)]
    raw = statistics.fmean(rotated)
    z0 = max(0.0, raw)
    losses = []
    for row in rows:
        r, _ = log_ratio(policy, reference, row["prompt"], row["completion"])
        if row["label"]:
            losses.append(desirable * (1 - sigmoid(beta * (r - z0))))
        else:
            losses.append(undesirable * (1 - sigmoid(beta * (z0 - r))))
    return statistics.fmean(losses), raw


@pytest.mark.parametrize("swapped", [False, True], ids=["as drawn", "policy and reference swapped"])
def test_the_kto_loss_is_equation_8_with_its_kl_term_from_rotated_completions_clamped_at_zero(
    job, policy, reference, swapped
):
    first, second = (reference, policy) if swapped else (policy, reference)
    data = TaskData(train_unpaired=UNPAIRED)
    trainer = (
        KTO(beta=0.2, desirable_weight=1.5, undesirable_weight=0.75)
        .trainer(
            replace(
                job,
                model=first,
                reference=second,
                data=data,
                train=replace(job.train, batch_size=5, micro_batch_size=5),
            )
        )
        .trainer
    )
    rows = shuffled_rows((), UNPAIRED, job.seed)
    expected, raw = kto_by_hand(first, second, rows, 0.2, 1.5, 0.75)
    assert loss_of(trainer) == pytest.approx(expected, abs=1e-5)
    assert trainer._metrics["eval" if not trainer.model.training else "train"]["kl"] == [
        pytest.approx(max(0.0, raw), abs=1e-4)
    ]


def test_of_the_two_directions_of_kto_one_has_its_kl_term_clamped(policy, reference):
    rows = shuffled_rows((), UNPAIRED, 0)
    _, there = kto_by_hand(policy, reference, rows, 0.2, 1, 1)
    _, back = kto_by_hand(reference, policy, rows, 0.2, 1, 1)
    assert there == -back and abs(there) > 0.1


def test_the_kto_loss_of_a_policy_that_equals_its_reference_is_one_half(job):
    data = TaskData(train_unpaired=UNPAIRED)
    trainer = KTO(beta=0.3).trainer(replace(job, reference=random_llama(0), data=data)).trainer
    assert loss_of(trainer) == pytest.approx(0.5, abs=1e-6)


def test_kto_rotates_completions_within_the_micro_batch_and_not_beyond(job, policy, reference):
    data = TaskData(train_unpaired=UNPAIRED[:4])
    trainer = (
        KTO(beta=0.2)
        .trainer(replace(job, data=data, train=replace(job.train, batch_size=4, micro_batch_size=2)))
        .trainer
    )
    rows = shuffled_rows((), UNPAIRED[:4], job.seed)
    found = [trainer.compute_loss(trainer.model, batch).item() for batch in trainer.get_train_dataloader()]
    expected = [kto_by_hand(policy, reference, rows[i : i + 2], 0.2, 1, 1)[0] for i in (0, 2)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_first_half_of_kto_training_sees_both_labels(job):
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": "0"} for i in range(32)]
    trainer = KTO().trainer(replace(job, data=TaskData(train_pairs=pairs))).trainer
    assert len(trainer.train_dataset) == 64
    read = [label for batch in trainer.get_train_dataloader() for label in batch["label"].tolist()]
    assert sum(read) == 32
    assert 8 <= sum(read[:32]) <= 24  # TRL itself would show 32 desirable rows first


def test_the_order_of_kto_rows_is_drawn_from_the_seed():
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": "0"} for i in range(16)]
    assert shuffled_rows(pairs, (), 3) == shuffled_rows(pairs, (), 3)
    assert shuffled_rows(pairs, (), 3) != shuffled_rows(pairs, (), 4)
    by_content = sorted(map(str, shuffled_rows(pairs, (), 4)))
    assert by_content == sorted(
        str({"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"})
        for p in pairs
        for side in ("chosen", "rejected")
    )


# -- SFT -----------------------------------------------------------------------------------------------


def test_the_sft_loss_is_the_mean_negative_log_probability_of_completion_tokens_alone(job, policy):
    scored = [log_prob(policy, pair["prompt"], pair["chosen"]) for pair in PAIRS]
    expected = -sum(total for total, _ in scored) / sum(tokens for _, tokens in scored)
    assert loss_of(SFT().trainer(replace(job, reference=None)).trainer) == pytest.approx(expected, abs=1e-5)


# -- GRPO ----------------------------------------------------------------------------------------------


TEXT_REWARDS = (0.8, 0.5, 0.3, 0.7)
SAID = ("19", "17", "well", "i dont")


@pytest.fixture
def grpo(job: TrainJob) -> Any:
    """``grpo(reward)`` -> a trainer whose rollouts are ``SAID``, and the rows of one group."""

    def build(reward: Reward, said: Sequence[str] = SAID, **knobs: Any) -> tuple[Any, list[dict[str, Any]]]:
        knobs = {"num_generations": 4, "beta": 0.0, **knobs}
        size = len(said)
        trainer = (
            GRPO(**knobs)
            .trainer(replace(job, reward=reward, train=replace(job.train, batch_size=size, micro_batch_size=size)))
            .trainer
        )
        says(trainer, said)
        return trainer, [{"prompt": PROMPTS[i // 4]["prompt"], "row": i // 4} for i in range(size)]

    return build


def test_with_the_population_deviation_the_advantages_are_those_of_the_texts():
    mean, deviation = statistics.fmean(TEXT_REWARDS), statistics.pstdev(TEXT_REWARDS)
    assert deviation == pytest.approx(0.192, abs=5e-4)
    # The text prints +1.17, -0.39, -1.43, +0.65.
    assert [(r - mean) / deviation for r in TEXT_REWARDS] == pytest.approx([1.17, -0.39, -1.43, 0.65], abs=5e-3)


def test_grpo_advantages_divide_by_the_sample_deviation_plus_1e_4(grpo):
    trainer, rows = grpo(Fixed(TEXT_REWARDS))
    trainer.model.train()
    found = trainer._generate_and_score_completions(rows)["advantages"].tolist()
    # mean 0.575; sum of squares 0.1475; sample deviation sqrt(0.1475 / 3) = 0.2217356
    assert found == pytest.approx(
        [0.225 / 0.2218356, -0.075 / 0.2218356, -0.275 / 0.2218356, 0.125 / 0.2218356], abs=1e-5
    )
    assert found == pytest.approx([1.01426, -0.33809, -1.23966, 0.56348], abs=1e-5)


def test_grpo_advantages_are_relative_to_their_own_group(grpo):
    trainer, rows = grpo(Fixed((1.0, 0.0, 0.0, 1.0, 10.0, 10.0, 10.0, 12.0)), SAID * 2)
    trainer.model.train()
    found = trainer._generate_and_score_completions(rows)["advantages"].tolist()
    # group 1: +-0.5 over sqrt(1/3) = 0.5773503; group 2: -0.5, -0.5, -0.5, 1.5 over exactly 1
    a, b, c = 0.5 / 0.5774503, 0.5 / 1.0001, 1.5 / 1.0001
    assert found == pytest.approx([a, -a, -a, a, -b, -b, -b, c], abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [0.5, -0.5, -0.5, 0.5, -0.5, -0.5, -0.5, 1.5]),
        # all eight: mean 5.5, squares 2(4.5^2) + 2(5.5^2) + 3(4.5^2) + 6.5^2 = 204; sqrt(204 / 7) = 5.3984
        ("batch", [x / 5.398512 for x in (0.5, -0.5, -0.5, 0.5, -0.5, -0.5, -0.5, 1.5)]),
    ],
)
def test_grpo_can_scale_by_the_batch_or_not_at_all(grpo, scale, expected):
    trainer, rows = grpo(Fixed((1.0, 0.0, 0.0, 1.0, 10.0, 10.0, 10.0, 12.0)), SAID * 2, scale_rewards=scale)
    trainer.model.train()
    assert trainer._generate_and_score_completions(rows)["advantages"].tolist() == pytest.approx(expected, abs=1e-5)


def test_equal_rewards_in_a_group_teach_nothing(grpo):
    trainer, rows = grpo(Fixed((0.4, 0.4, 0.4, 0.4)))
    trainer.model.train()
    assert trainer._generate_and_score_completions(rows)["advantages"].tolist() == pytest.approx([0.0] * 4, abs=1e-3)


def test_a_reward_of_3_2_at_a_kl_of_2_1_and_beta_0_1_is_an_objective_of_2_99(grpo):
    """GRPO's loss is minus that objective where advantage and KL are those numbers and the policy has not moved."""
    trainer, rows = grpo(Fixed(TEXT_REWARDS), beta=0.1)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    mask = batch["completion_mask"].bool()
    own = torch.zeros_like(batch["ref_per_token_logps"])
    for i, text in enumerate(SAID):
        ids = TOKENIZER(rows[i]["prompt"] + text)["input_ids"] + [TOKENIZER.eos_token_id]
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([ids])).logits
        start = len(TOKENIZER(rows[i]["prompt"])["input_ids"])
        picked = torch.log_softmax(logits[0], -1)[torch.arange(start - 1, len(ids) - 1), ids[start:]]
        own[i][mask[i]] = picked
    # The estimator is exp(d) - d - 1 with d = log ref - log policy; it is 2.1 at d = 1.532...
    low, high = 0.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.exp(middle) - middle - 1 < 2.1 else (low, middle)
    batch["ref_per_token_logps"] = own + low
    batch["advantages"] = torch.full_like(batch["advantages"], 3.2)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(-2.99, abs=1e-4)


def test_the_reference_of_grpo_is_the_given_model_at_the_sampling_temperature(grpo, reference):
    trainer, rows = grpo(Fixed(TEXT_REWARDS), beta=0.1, temperature=0.7)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    ids = TOKENIZER("12+7=19")["input_ids"] + [TOKENIZER.eos_token_id]
    with torch.no_grad():
        log_probs = torch.log_softmax(reference(input_ids=torch.tensor([ids])).logits[0] / 0.7, -1)
    expected = [log_probs[i - 1, ids[i]].item() for i in (5, 6, 7)]
    assert batch["ref_per_token_logps"][0, :3].tolist() == pytest.approx(expected, abs=1e-5)


def test_without_beta_grpo_holds_no_reference(grpo):
    trainer, rows = grpo(Fixed(TEXT_REWARDS), beta=0.0)
    trainer.model.train()
    assert trainer.ref_model is None
    assert trainer._generate_and_score_completions(rows).get("ref_per_token_logps") is None


def test_rollouts_are_clocked_as_a_phase_and_their_tokens_counted(grpo):
    trainer, rows = grpo(Fixed(TEXT_REWARDS))
    phases: list[Any] = []
    trainer._clock = PhaseClock(lambda kind, data: phases.append(data["name"]))
    trainer.model.train()
    with trainer._clock.phase("train"):
        trainer._generate_and_score_completions(rows)
    assert phases == ["train", "rollout", "train", None]
    assert trainer.sampling.tokens == 3 + 3 + 5 + 7  # each with its end of sequence


# -- rewards that go wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "high"])
def test_a_reward_that_is_no_finite_number_names_the_function_the_value_and_the_row(grpo, bad):
    trainer, rows = grpo(Fixed((0.1, 0.2, bad, 0.3)))
    trainer.model.train()
    with pytest.raises(UserError) as caught:
        trainer._generate_and_score_completions(rows)
    said = str(caught.value)
    assert "tests.toys.Fixed" in said and repr(bad).strip("'") in said
    assert "'12+7='" in said and "'well'" in said  # the third completion's row


def test_a_reward_of_the_wrong_length_names_the_function_and_both_lengths(grpo):
    trainer, rows = grpo(Fixed((0.1, 0.2, 0.3)))
    trainer.model.train()
    with pytest.raises(UserError, match=r"Fixed returned 3 numbers for 4 completions"):
        trainer._generate_and_score_completions(rows)


def test_an_error_inside_a_reward_names_the_function_the_error_and_a_row(grpo):
    @dataclass(frozen=True)
    class Broken(Reward):
        def __call__(self, rows: Any, completions: Any) -> Any:
            raise KeyError("gold")

    trainer, rows = grpo(Broken())
    trainer.model.train()
    with pytest.raises(UserError) as caught:
        trainer._generate_and_score_completions(rows)
    said = str(caught.value)
    assert "Broken raised KeyError: 'gold'" in said and "'12+7='" in said and "'19'" in said


def test_a_reward_sees_the_row_of_its_prompt_and_the_text_without_special_tokens(grpo):
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Looks(Reward):
        def __call__(self, rows: Any, completions: Any) -> Any:
            seen.extend((row["answer"], text) for row, text in zip(rows, completions, strict=True))
            return [0.0] * len(completions)

    trainer, rows = grpo(Looks(), SAID * 2)
    trainer.model.train()
    trainer._generate_and_score_completions(rows)
    assert seen == [("19", text) for text in SAID] + [("2", text) for text in SAID]


def test_the_verifier_pays_the_true_reward():
    verifier = Verifier().bind(Arithmetic(), Full(), "tiny")
    assert verifier([PROMPTS[0]] * 2, ["19", "17"]) == pytest.approx([0.96, -0.04])


@pytest.mark.parametrize("kind", ["numpy float32", "numpy int64", "torch scalar"])
def test_numbers_of_numpy_and_torch_are_numbers(kind):
    import numpy

    make = {"numpy float32": numpy.float32, "numpy int64": numpy.int64, "torch scalar": torch.tensor}[kind]
    reward = Fixed((make(1), make(2)))
    function = lambda rows, texts, ended: reward(rows, texts)  # noqa: E731
    assert checked(reward, function, list(PROMPTS), ["a", "b"], [True, True]) == [1.0, 2.0]


# -- LoRA at its start ---------------------------------------------------------------------------------


def adapter_weights(model: Any) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    for name, weight in model.named_parameters():
        for side in found:
            if f"lora_{side}." in name:
                found[side][name] = weight
    return found


def test_at_the_start_the_loss_has_no_gradient_in_a_and_one_in_b(job):
    trainer = DPO().trainer(replace(job, model=random_llama(0), reference=None, adapter=LoRA(rank=2))).trainer
    weights = adapter_weights(trainer.model)
    assert len(weights["A"]) == len(weights["B"]) == 2 * 7
    assert all(not b.any() for b in weights["B"].values())
    assert all(a.any() for a in weights["A"].values())
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).backward()
    assert all(not a.grad.any() for a in weights["A"].values())
    assert all(b.grad.any() for b in weights["B"].values())


def test_the_first_optimizer_step_moves_b_alone(job):
    trainer = DPO().trainer(replace(job, model=random_llama(0), reference=None, adapter=LoRA(rank=2))).trainer
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(adapter_weights(trainer.model)["B"])


# -- dropout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [DPO(), IPO(), KTO(), SFT()])
def test_dropout_acts_in_the_policys_gradient_pass_and_in_no_other(job, algorithm):
    job = replace(job, adapter=LoRA(rank=2, dropout=0.5), reference=None)
    trainer = ready_trainer(algorithm, job).trainer
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # which is 0 at the start, so that nothing that comes before it would show
            torch.nn.init.normal_(parameter)
    ids = torch.tensor([TOKENIZER("12+7=19")["input_ids"]])

    def twice() -> bool:
        return torch.equal(trainer.model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)

    trainer.model.train()
    assert not twice()
    if algorithm.name != "sft":  # which has neither a reference nor a KL term
        with torch.no_grad():
            assert twice()
    with trainer.model.disable_adapter():
        assert twice()
    trainer.model.eval()
    assert twice()


def test_without_dropout_a_gradient_pass_says_the_same_twice(job):
    trainer = ready_trainer(DPO(), replace(job, adapter=LoRA(rank=2), reference=None)).trainer
    trainer.model.train()
    ids = torch.tensor([TOKENIZER("12+7=19")["input_ids"]])
    assert torch.equal(trainer.model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)
