"""The families of DPO and GRPO, and what TRL has no trainer of: losses of whole trainers, by hand, in the toy world."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from transformers import TrainerCallback

from harness.algorithms import dpo as dpo_module
from harness.algorithms import grpo as grpo_module
from harness.algorithms.cpo import CPO
from harness.algorithms.dpo import DPO
from harness.algorithms.grpo import GRPO
from harness.algorithms.online_dpo import OnlineDPO
from harness.algorithms.orpo import ORPO
from harness.algorithms.rloo import RLOO
from harness.algorithms.simpo import SimPO
from harness.algorithms.trainers import ready_trainer
from harness.models.adapters import LoRA
from harness.tasks.base import TaskData
from tests.algorithms.world import PAIRS, PROMPTS, TOKENIZER, UNPAIRED, log_prob, log_ratio, loss_of, sigmoid
from tests.toys import Fixed, random_llama, says

BETA, SMOOTH = 0.3, 0.1


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sides(policy: Any, reference: Any) -> list[tuple[float, float]]:
    """Log-ratios of the chosen and the rejected side of each pair."""
    return [
        (
            log_ratio(policy, reference, pair["prompt"], pair["chosen"])[0],
            log_ratio(policy, reference, pair["prompt"], pair["rejected"])[0],
        )
        for pair in PAIRS
    ]


# -- the losses of DPO ---------------------------------------------------------------------------------

PER_PAIR: dict[str, Callable[[float, float], float]] = {
    "sigmoid": lambda w, o: softplus(-BETA * (w - o)),
    "hinge": lambda w, o: max(0.0, 1 - BETA * (w - o)),
    "robust": lambda w, o: (
        ((1 - SMOOTH) * softplus(-BETA * (w - o)) - SMOOTH * softplus(BETA * (w - o))) / (1 - 2 * SMOOTH)
    ),
    "exo_pair": lambda w, o: (
        sigmoid(BETA * (w - o)) * (-softplus(-BETA * (w - o)) - math.log(1 - SMOOTH))
        + sigmoid(-BETA * (w - o)) * (-softplus(BETA * (w - o)) - math.log(SMOOTH))
    ),
    "nca_pair": lambda w, o: softplus(-BETA * w) + 0.5 * softplus(BETA * w) + 0.5 * softplus(BETA * o),
    "bco_pair": lambda w, o: softplus(-BETA * w) + softplus(BETA * o),
    "sppo_hard": lambda w, o: (w - 0.5 / BETA) ** 2 + (o + 0.5 / BETA) ** 2,
    "apo_zero": lambda w, o: 1 - sigmoid(BETA * w) + sigmoid(BETA * o),
    "apo_down": lambda w, o: sigmoid(BETA * w) + 1 - sigmoid(BETA * (w - o)),
    "discopop": lambda w, o: (
        softplus(-BETA * (w - o)) * (1 - sigmoid(BETA * (w - o) / 0.05))
        + math.exp(-BETA * (w - o)) * sigmoid(BETA * (w - o) / 0.05)
    ),
}  # fmt: skip


def by_hand(name: str, policy: Any, reference: Any) -> float:
    if name in PER_PAIR:
        return statistics.fmean(PER_PAIR[name](w, o) for w, o in sides(policy, reference))
    if name == "sft":
        said = [log_prob(policy, pair["prompt"], pair["chosen"]) for pair in PAIRS]
        return -sum(total for total, _ in said) / sum(tokens for _, tokens in said)
    if name == "aot":  # sorted margins of the policy against sorted margins of the reference
        margins = [
            sorted(
                log_prob(model, p["prompt"], p["chosen"])[0] - log_prob(model, p["prompt"], p["rejected"])[0]
                for p in PAIRS
            )
            for model in (policy, reference)
        ]
        apart = [a - b for a, b in zip(*margins, strict=True)]
        return statistics.fmean((1 - SMOOTH) * softplus(-BETA * d) + SMOOTH * softplus(BETA * d) for d in apart)
    means = []
    for pair in PAIRS:
        parts = (log_ratio(policy, reference, pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        (w, w_tokens), (o, o_tokens) = parts
        means.append((w / w_tokens, o / o_tokens))
    if name == "sigmoid_norm":
        return statistics.fmean(softplus(-BETA * (w - o)) for w, o in means)
    assert name == "ipo"
    return statistics.fmean((w - o - 1 / (2 * BETA)) ** 2 for w, o in means)


def smoothing(name: str) -> dict[str, float]:
    return {"label_smoothing": SMOOTH} if name in dpo_module.SMOOTHED else {}


@pytest.mark.parametrize("name", [n for n in get_args(dpo_module.Loss) if n != "sft"])
def test_each_loss_of_pairs_is_its_papers(job, policy, reference, name):
    algo = DPO(beta=BETA, loss=name, **smoothing(name))
    assert algo.problems(job.task, job.data, job.train) == []
    expected = by_hand(name, policy, reference)
    trainer = algo.trainer(job).trainer
    assert loss_of(trainer) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_losses_add_up_by_their_weights(job, policy, reference):
    algo = DPO(beta=BETA, loss={"sigmoid": 0.75, "sft": 0.5})
    expected = 0.75 * by_hand("sigmoid", policy, reference) + 0.5 * by_hand("sft", policy, reference)
    assert loss_of(algo.trainer(job).trainer) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("knobs", "score"),
    [
        ({"divergence": "forward_kl"}, lambda d: 1 - math.exp(-d)),
        ({"divergence": "js_divergence"}, lambda d: math.log(2 * math.exp(d) / (1 + math.exp(d)))),
        (
            {"divergence": "alpha_divergence", "divergence_alpha": 0.7},
            lambda d: (math.exp(d * (0.7 - 1)) - 1) / (0.7 - 1),
        ),
    ],
)
def test_each_divergence_holds_by_its_own_function_of_the_ratio(job, policy, reference, knobs, score):
    algo = DPO(beta=BETA, **knobs)
    expected = statistics.fmean(softplus(-BETA * (score(w) - score(o))) for w, o in sides(policy, reference))
    assert loss_of(algo.trainer(job).trainer) == pytest.approx(expected, rel=1e-4)


def test_tokens_beyond_the_shorter_side_count_by_ld_alpha(job, policy, reference):
    def weighted(model: Any, prompt: str, completion: str, shared: int) -> float:
        before, said = TOKENIZER(prompt)["input_ids"], [*TOKENIZER(completion)["input_ids"], TOKENIZER.eos_token_id]
        with torch.no_grad():
            found = torch.log_softmax(model(input_ids=torch.tensor([before + said])).logits[0].double(), -1)
        each = [found[len(before) - 1 + i, token].item() for i, token in enumerate(said)]
        return sum(each[:shared]) + 0.25 * sum(each[shared:])

    def loss(pair: dict[str, str]) -> float:
        shared = min(len(TOKENIZER(pair[side])["input_ids"]) + 1 for side in ("chosen", "rejected"))
        w, o = (
            weighted(policy, pair["prompt"], pair[side], shared)
            - weighted(reference, pair["prompt"], pair[side], shared)
            for side in ("chosen", "rejected")
        )
        return softplus(-BETA * (w - o))

    algo = DPO(beta=BETA, ld_alpha=0.25)
    assert not algo.shares_reference(job.train, job.data)
    assert loss_of(algo.trainer(job).trainer) == pytest.approx(statistics.fmean(map(loss, PAIRS)), rel=1e-4)


@pytest.mark.parametrize(
    ("knobs", "key"),
    [
        ({"loss": "sft"}, "algo.loss"),
        ({"loss": {}}, "algo.loss"),
        ({"label_smoothing": 0.1}, "algo.label_smoothing"),
        ({"loss": "exo_pair"}, "algo.label_smoothing"),
        ({"loss": "nca_pair", "divergence": "forward_kl"}, "algo.divergence"),
        ({"loss": {"sigmoid": 1.0, "apo_zero": 1.0}, "divergence": "js_divergence"}, "algo.divergence"),
        ({"divergence_alpha": 0.3}, "algo.divergence_alpha"),
        ({"discopop_tau": 0.1}, "algo.discopop_tau"),
        ({"loss": "sigmoid_norm", "ld_alpha": 0.5}, "algo.ld_alpha"),
        ({"ld_alpha": 0.5, "share_reference": True}, "algo.ld_alpha"),
    ],
)
def test_a_knob_that_no_loss_reads_is_refused_with_a_fix(job, knobs, key):
    (problem,) = DPO(**knobs).problems(job.task, job.data, job.train)
    assert problem.key == key and problem.fix


def test_losses_of_pairs_refuse_unpaired_rows(job):
    for algo in (*(DPO(loss=name, **smoothing(name)) for name in PER_PAIR), ORPO(), SimPO(), CPO()):
        (problem,) = algo.problems(job.task, TaskData(train_unpaired=UNPAIRED), job.train)
        assert "learns from pairs" in str(problem) and "algo=kto" in str(problem)


def test_sorting_needs_a_micro_batch_of_two(job):
    (problem,) = DPO(loss="aot").problems(job.task, job.data, replace(job.train, micro_batch_size=1))
    assert problem.key == "train.micro_batch_size"


# -- no reference --------------------------------------------------------------------------------------


def said_by(model: Any, pair: dict[str, str]) -> tuple[tuple[float, int], tuple[float, int]]:
    return log_prob(model, pair["prompt"], pair["chosen"]), log_prob(model, pair["prompt"], pair["rejected"])


def odds(mean: float) -> float:
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


FREE: dict[str, tuple[Any, Callable[[tuple[float, int], tuple[float, int]], float]]] = {
    "orpo": (
        ORPO(beta=0.2),
        lambda w, o: -w[0] / w[1] + 0.2 * softplus(-(odds(w[0] / w[1]) - odds(o[0] / o[1]))),
    ),
    "simpo": (SimPO(beta=2.5, gamma=0.5), lambda w, o: softplus(-(2.5 * (w[0] / w[1] - o[0] / o[1]) - 0.5))),
    "cpo": (CPO(beta=0.2, likelihood=0.5), lambda w, o: softplus(-0.2 * (w[0] - o[0])) - 0.5 * w[0] / w[1]),
}


@pytest.mark.parametrize("name", FREE)
def test_losses_without_a_reference_are_their_papers(job, policy, name):
    algo, loss = FREE[name]
    expected = statistics.fmean(loss(*said_by(policy, pair)) for pair in PAIRS)
    assert loss_of(algo.trainer(replace(job, reference=None)).trainer) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("name", FREE)
def test_no_reference_is_held_scored_or_reported(job, name, adapter):
    job = replace(job, reference=None) if adapter is None else replace(job, reference=None, adapter=adapter)
    algo, _ = FREE[name]
    assert not algo.uses_reference and not algo.shares_reference(job.train, job.data)
    training = ready_trainer(algo, job)
    assert training.reference == "none" and training.trainer.ref_model is None
    assert set(training.resident) == {"policy"}
    training.trainer.train()
    logged = {name for line in training.trainer.state.log_history for name in line}
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "entropy"} <= logged
    assert not any("ref" in name for name in logged)


# -- sampled groups ------------------------------------------------------------------------------------

SAID = ("19", "17", "well", "i dont", "19", "2", "well 2", "i dont know.")
REWARDS = (1.0, 0.0, -0.5, 0.25, 0.0, 1.0, 0.5, -1.0)


def online(job: Any, algo: Any, *, micro: int = 8, batch: int = 8, rewards: Any = REWARDS, **train: Any) -> Any:
    size = {"batch_size": batch, "micro_batch_size": micro}
    knobs = {"learning_rate": 1e-12, "optimizer": "adamw_torch", "max_grad_norm": 1e9, **size, **train}
    job = replace(job, reward=Fixed(rewards), train=replace(job.train, **knobs), model=random_llama(0))
    trainer = ready_trainer(algo, job).trainer
    says(trainer, SAID)
    return trainer


class Gradients(TrainerCallback):
    """What each optimizer step is taken on."""

    def __init__(self, trainer: Any):
        self.trainer, self.found = trainer, []
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        parts = [p.grad.flatten() for p in self.trainer.model.parameters() if p.grad is not None]
        self.found.append(torch.cat(parts).clone())


def mean_gradient(trainer: Any) -> torch.Tensor:
    seen = Gradients(trainer)
    trainer.train()
    return torch.stack(seen.found).mean(0)


def grpo_of(loss: str, **knobs: Any) -> GRPO:
    knobs |= {"epsilon_high": 5.0} if loss == "cispo" else {}
    knobs |= {"importance": "sequence"} if loss == "luspo" else {}
    return GRPO(loss=loss, num_generations=4, beta=0.1, **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "algo",
    [
        *(
            pytest.param(grpo_of(loss), id=loss, marks=() if loss in ("grpo", "dapo") else pytest.mark.slow)
            for loss in get_args(grpo_module.Loss)
        ),
        pytest.param(grpo_of("dapo", importance="sequence"), id="gspo"),
        pytest.param(grpo_of("dr_grpo", scale_rewards="none"), id="unscaled", marks=pytest.mark.slow),
        pytest.param(RLOO(num_generations=4), id="rloo"),
        pytest.param(OnlineDPO(num_generations=4), id="online_dpo"),
    ],
)
def test_a_loss_keeps_its_scale_however_a_rollout_is_cut(job, algo):
    """Into micro-batches that accumulate, and into several optimizer steps: a known fault of the field."""
    prompts = TaskData(train_prompts=[dict(PROMPTS[0]), dict(PROMPTS[0])])
    job = replace(job, data=prompts)
    whole = mean_gradient(online(job, algo))
    assert whole.norm() > 1e-3
    cuts = {
        "two micro-batches": online(job, algo, micro=4),
        "two optimizer steps": online(job, algo.with_rollouts(2), batch=4, micro=4, steps=2),
    }
    if algo.name != "online_dpo":  # a pair comes of a group of four
        cuts["four micro-batches"] = online(job, algo, micro=2)
        cuts["both"] = online(job, algo.with_rollouts(2), batch=4, micro=2, steps=2)
    for how, trainer in cuts.items():
        cut = mean_gradient(trainer)
        if algo.name == "grpo" and algo.loss == "bnpo":  # a mean over the tokens of a micro-batch: near, not equal
            assert 0.6 < cut.norm() / whole.norm() < 1.6, how
        else:
            assert torch.allclose(cut, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max())), how


@pytest.mark.parametrize(
    ("knobs", "key"),
    [
        ({"loss": "luspo"}, "algo.importance"),
        ({"loss": "vespo", "importance": "sequence"}, "algo.importance"),
        ({"loss": "cispo"}, "algo.epsilon_high"),
        ({"loss": "cispo", "epsilon_high": 0.28}, "algo.epsilon_high"),
        ({"epsilon_high": 0.1}, "algo.epsilon_high"),
        ({"loss": "sapo", "epsilon_high": 0.3}, "algo.epsilon_high"),
        ({"loss": "vespo", "delta": 4.0}, "algo.delta"),
        ({"epsilon_high": 0.3, "delta": 1.2}, "algo.delta"),
    ],
)
def test_a_knob_of_grpo_that_its_loss_does_not_take_is_refused_with_a_fix(job, knobs, key):
    algo = GRPO(num_generations=2, **knobs)
    (problem,) = algo.problems(job.task, job.data, job.train)
    assert problem.key == key and problem.fix


def rollout(trainer: Any) -> dict[str, Any]:
    trainer.model.train()
    rows = [{"prompt": PROMPTS[i // 4]["prompt"], "row": i // 4} for i in range(8)]
    return trainer._generate_and_score_completions(rows)


def test_rloo_holds_each_reward_less_its_kl_against_the_others_of_its_group(job, policy, reference):
    trainer = online(job, RLOO(beta=0.1, num_generations=4))
    batch = rollout(trainer)
    paid = [
        r - 0.1 * log_ratio(policy, trainer.ref_model, PROMPTS[i // 4]["prompt"], text)[0]
        for i, (r, text) in enumerate(zip(REWARDS, SAID, strict=True))
    ]
    expected = [p - (sum(paid[i // 4 * 4 : i // 4 * 4 + 4]) - p) / 3 for i, p in enumerate(paid)]
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_reference_of_rloo_is_another_model_where_it_is_given_one(job, policy, reference):
    trainer = online(job, RLOO(beta=0.5, num_generations=4))
    trainer.ref_model = reference
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(reference, temperature=1.0)
    paid = [
        r - 0.5 * log_ratio(policy, random_llama(1), PROMPTS[i // 4]["prompt"], text)[0]
        for i, (r, text) in enumerate(zip(REWARDS, SAID, strict=True))
    ]
    expected = [p - (sum(paid[i // 4 * 4 : i // 4 * 4 + 4]) - p) / 3 for i, p in enumerate(paid)]
    assert rollout(trainer)["advantages"].tolist() == pytest.approx(expected, rel=1e-4)


def test_without_beta_rloo_holds_no_reference(job):
    trainer = online(job, RLOO(beta=0.0, num_generations=4))
    assert trainer.ref_model is None
    assert rollout(trainer)["advantages"].tolist()[:4] == pytest.approx(
        [1.0 + 0.25 / 3, 0 - 0.75 / 3, -0.5 - 1.25 / 3, 0.25 - 0.5 / 3]
    )


def test_online_dpo_takes_the_best_against_the_worst_of_each_group(job, policy):
    trainer = online(job, OnlineDPO(beta=BETA, num_generations=4), rewards=(1.0, 0.0, -0.5, 0.25, 2.0, 2.0, 2.0, 2.0))
    batch = rollout(trainer)
    texts = [TOKENIZER.decode(ids[mask.bool()][:-1]) for ids, mask in zip(
        batch["completion_ids"].flatten(0, 1), batch["completion_mask"].flatten(0, 1), strict=True
    )]  # fmt: skip
    assert texts == ["19", "well", "19", "19"]  # the second group is tied: one completion against itself
    assert trainer.series["tied"] == [0.5] and trainer.series["reward_gap"] == [0.75]
    trainer.current_gradient_accumulation_steps = 1
    other = random_llama(1)
    ratios = [log_ratio(policy, other, PROMPTS[0]["prompt"], text)[0] for text in ("19", "well")]
    with torch.no_grad():
        for i, text in enumerate(("19", "well")):
            mask = batch["completion_mask"][0, i].bool()
            own = log_prob(policy, PROMPTS[0]["prompt"], text)[0]
            assert float(batch["ref_per_token_logps"][0, i][mask].sum()) == pytest.approx(own, abs=1e-4)
            batch["ref_per_token_logps"][0, i][mask] -= ratios[i] / int(mask.sum())
    expected = statistics.fmean([softplus(-BETA * (ratios[0] - ratios[1])), math.log(2)])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)


def test_online_dpo_wants_whole_groups_in_a_micro_batch(job):
    train = replace(job.train, batch_size=8, micro_batch_size=6)
    (problem,) = OnlineDPO(num_generations=4).problems(job.task, job.data, train)
    assert problem.key == "train.micro_batch_size" and "=4" in str(problem.fix)
