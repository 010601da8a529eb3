"""Rollouts by vLLM, with a stand-in for its engine: the weights it is given, and what makes up for its own rounding.

What is tested is everything but vLLM: the arguments that TRL gets, the policy's weights as the engine would load them,
and losses on samples of which the engine says another probability than the trainer.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.algorithms import vllm_rollouts
from harness.algorithms.grpo import GRPO
from harness.algorithms.online_dpo import OnlineDPO
from harness.algorithms.ppo import PPO
from harness.algorithms.rloo import RLOO
from harness.algorithms.trainers import ready_trainer
from harness.base.errors import UserError
from harness.config.rollout import VLLM, rollout_problems, rollout_problems_here
from harness.models.adapters import Full, LoRA, QLoRA
from harness.sweep.deep_checks import adapts_tied_embedding, find_problems
from harness.tasks.base import TaskData
from tests.algorithms.test_family import REWARDS, SAID, mean_gradient
from tests.algorithms.world import PROMPTS, TOKENIZER
from tests.toys import Fixed, random_llama, says

CAPITAL = 200 * 10**9


class Engine:
    """Says ``SAID``, each token with the trainer's log-probability less ``gap``."""

    gap = 0.0
    synced = 0
    made: dict[str, Any]

    def __init__(self, **options: Any):
        self.options = options
        Engine.made = options

    def sync_weights(self) -> None:
        Engine.synced += 1

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[Any, ...]:
        ends = [TOKENIZER.eos_token_id]
        said = [[*TOKENIZER(text)["input_ids"], *ends] for text in SAID][: len(prompts)]
        model: Any = self.options["model"]
        told = []
        for prompt, tokens in zip(prompts, said, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0]
            own = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])[:, 0]
            told.append([[value - self.gap] for value in own.tolist()])
        return prompts, said, told, None


@pytest.fixture
def engine(monkeypatch) -> type[Engine]:
    monkeypatch.setattr(vllm_rollouts, "Engine", Engine)
    monkeypatch.setattr(vllm_rollouts, "_gpu_bytes", lambda: CAPITAL)
    monkeypatch.setattr(vllm_rollouts, "rollout_problems_here", lambda *_, **__: [])
    monkeypatch.setattr(Engine, "gap", 0.0)
    monkeypatch.setattr(Engine, "synced", 0)
    return Engine


def trainer_of(job: Any, algo: Any, rollout: str = "vllm", most: float = 2.0) -> Any:
    train = replace(
        job.train, rollout=rollout, vllm=VLLM(most_weight=most), learning_rate=1e-12, optimizer="adamw_torch",
        max_grad_norm=1e9, batch_size=8, micro_batch_size=8,
    )  # fmt: skip
    data = TaskData(train_prompts=[dict(row) for row in PROMPTS * (4 if algo.name == "ppo" else 1)])
    job = replace(job, reward=Fixed(REWARDS), train=train, model=random_llama(0), data=data)
    trainer = ready_trainer(algo, job).trainer
    if rollout == "hf":
        says(trainer, SAID)
    return trainer


ALGORITHMS = {
    "grpo": GRPO(num_generations=4, beta=0.0),
    "rloo": RLOO(num_generations=4, beta=0.0),
    "ppo": PPO(beta=0.0, epochs=1, minibatches=1),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_where_the_engine_agrees_with_the_trainer_the_gradient_is_that_of_other_rollouts(job, engine, name):
    algo = ALGORITHMS[name]
    usual = mean_gradient(trainer_of(job, algo, "hf"))
    trainer = trainer_of(job, algo)
    found = mean_gradient(trainer)
    assert usual.norm() > 1e-4 and torch.allclose(found, usual, rtol=1e-3, atol=1e-5 * float(usual.abs().max()))
    assert engine.synced == 1
    logged = {k: v for line in trainer.state.log_history for k, v in line.items()}
    assert logged["sampler_gap"] < 1e-5 and logged["sampler_ess"] == pytest.approx(1.0, abs=1e-4)
    assert not any(name.startswith("sampling/") for name in logged)


@pytest.mark.parametrize(("most", "weight"), [(10.0, 1.5), (1.2, 1.2), (0.0, 1.0)], ids=["whole", "cut off", "none"])
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_token_that_the_trainer_finds_more_probable_counts_for_more(job, engine, monkeypatch, name, most, weight):
    monkeypatch.setattr(Engine, "gap", math.log(1.5))
    usual = mean_gradient(trainer_of(job, ALGORITHMS[name], "hf"))
    trainer = trainer_of(job, ALGORITHMS[name], most=most)
    found = mean_gradient(trainer)
    assert torch.allclose(found, weight * usual, rtol=1e-3, atol=1e-5 * float(usual.abs().max()))
    logged = {k: v for line in trainer.state.log_history for k, v in line.items()}
    assert logged["sampler_gap"] == pytest.approx(math.log(1.5), abs=1e-4)
    assert logged["sampler_gap_max"] == pytest.approx(math.log(1.5), abs=1e-4)


def test_a_loss_of_whole_completions_is_weighted_by_whole_completions(job, engine, monkeypatch):
    monkeypatch.setattr(Engine, "gap", 0.1)
    usual = mean_gradient(trainer_of(job, ALGORITHMS["rloo"], "hf"))
    capped = mean_gradient(trainer_of(job, ALGORITHMS["rloo"], most=1.05))  # each has at least two tokens
    assert torch.allclose(capped, 1.05 * usual, rtol=1e-3, atol=1e-5 * float(usual.abs().max()))


def test_pairs_of_samples_need_no_weights(job, engine, monkeypatch):
    monkeypatch.setattr(Engine, "gap", 0.5)
    algo = OnlineDPO(num_generations=4)
    usual, found = mean_gradient(trainer_of(job, algo, "hf")), mean_gradient(trainer_of(job, algo))
    assert torch.allclose(found, usual, rtol=1e-3, atol=1e-5 * float(usual.abs().max()))


def test_weights_by_hand():
    points: dict[str, Any] = {}
    apart = vllm_rollouts.Apart(1.5, lambda **values: points.update(values))
    batch = {
        "old_per_token_logps": torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]]),
        "sampling_per_token_logps": torch.tensor([[-1.5, -1.5, -1.0], [-1.25, float("nan"), -0.75]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    found = apart.weigh(batch)
    gaps = [[0.5, -0.5, 0.0], [0.25, 0.0, -0.25]]
    expected = [[min(1.5, math.exp(g)) for g in row] for row in gaps]
    assert found["importance_sampling_ratio"].tolist() == [pytest.approx(row) for row in expected]
    assert found["sampler_weights"].tolist() == pytest.approx([1.0, 1.0])
    assert float(points["sampler_gap"]) == pytest.approx(1.5 / 5) and float(points["sampler_gap_max"]) == 0.5
    assert apart.weigh({"completion_mask": torch.ones(1, 1)}).keys() == {"completion_mask"}  # others sampled


def test_the_effective_size_of_a_sample_is_kishs():
    weights = torch.tensor([1.0, 2.0, 4.0])
    assert float(vllm_rollouts.effective_share(weights.log())) == pytest.approx(49 / 21 / 3)
    assert float(vllm_rollouts.effective_share(torch.full((5,), 700.0))) == pytest.approx(1.0)  # no overflow


def test_trl_gets_length_memory_and_all_tokens_that_end_a_completion(job, engine):
    trainer = trainer_of(job, ALGORITHMS["grpo"])
    longest = max(len(TOKENIZER(row["prompt"])["input_ids"]) for row in PROMPTS)
    assert Engine.made["max_model_length"] == longest + job.train.max_completion_length
    wanted = VLLM().bytes_for(random_llama(0).num_parameters())
    assert Engine.made["gpu_memory_utilization"] == pytest.approx(wanted / CAPITAL)
    assert Engine.made["generation_kwargs"] == {"stop_token_ids": trainer.eos_token_ids}
    assert Engine.made["enable_sleep_mode"] and Engine.made["temperature"] == 1.0


def test_more_memory_than_the_gpu_has_is_refused(job, engine):
    with pytest.raises(UserError, match="a GPU of 200.0 GB") as error:
        vllm_rollouts.options(replace(job, train=replace(job.train, rollout="vllm", vllm=VLLM(memory_gb=300))), [0])
    assert error.value.key == "train.vllm.memory_gb"


# -- the weights that it is given ------------------------------------------------------------------------


def wrapped(dtype: torch.dtype, **knobs: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(3)
    policy = get_peft_model(random_llama(0).to(dtype), LoRA(rank=4, **knobs).peft_config())
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


@pytest.mark.parametrize("knobs", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
def test_the_engine_gets_the_policy_and_the_base_keeps_its_bits(knobs):
    policy = wrapped(torch.bfloat16, **knobs)
    policy.add_adapter("reward", LoRA(rank=2).peft_config())  # another role's, on the same base
    policy.set_adapter("default")
    before = {name: p.clone() for name, p in policy.named_parameters()}
    plain = random_llama(5).to(torch.bfloat16)
    for _ in range(3):
        given = {name: weight.clone() for name, weight in vllm_rollouts.weights(policy)}
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    expected = {name for name, _ in plain.named_parameters()}
    assert given.keys() == expected
    plain.load_state_dict(given, strict=False)
    ids = torch.tensor([TOKENIZER("12+7=19")["input_ids"]])
    with torch.no_grad():
        merged, unmerged = plain(input_ids=ids).logits.float(), policy(input_ids=ids).logits.float()
        with policy.disable_adapter():
            base = policy(input_ids=ids).logits.float()
    assert (merged - unmerged).abs().max() < 0.1 * (base - unmerged).abs().max()


def test_trls_own_way_leaves_another_base_in_16_bits():
    """What ``weights`` is there for; if this fails, peft keeps the base's bits itself."""
    policy = wrapped(torch.bfloat16)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    for _ in range(3):
        policy.merge_adapter()
        policy.unmerge_adapter()
    assert not all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_a_module_that_is_trained_whole_is_given_by_its_own_name():
    from peft import LoraConfig, get_peft_model

    policy: Any = get_peft_model(random_llama(0), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        policy.base_model.model.lm_head.modules_to_save["default"].weight.add_(1.0)
    given = dict(vllm_rollouts.weights(policy))
    assert given.keys() == {name for name, _ in random_llama(0).named_parameters()}
    assert torch.equal(given["lm_head.weight"], random_llama(0).lm_head.weight + 1.0)


def test_rows_of_an_embedding_that_are_trained_are_given_in_it():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2])
    policy: Any = get_peft_model(random_llama(0), config)
    with torch.no_grad():
        (trained,) = [p for name, p in policy.named_parameters() if "trainable_tokens_delta" in name]
        trained.copy_(random_llama(0).model.embed_tokens.weight[[1, 2]] + 1.0)
    given = {name: weight.clone() for name, weight in vllm_rollouts.weights(policy)}
    assert given.keys() == {name for name, _ in random_llama(0).named_parameters()}
    moved = given["model.embed_tokens.weight"] - random_llama(0).model.embed_tokens.weight
    assert moved[[1, 2]].allclose(torch.tensor(1.0)) and moved[3:].eq(0.0).all()


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [QLoRA(rank=4), LoRA(rank=4, init="pissa")], ids=["qlora", "pissa"])
def test_adapters_whose_policy_vllm_cannot_be_given_are_refused(job, adapter):
    train = replace(job.train, rollout="vllm")
    (problem,) = rollout_problems(train, adapter, object())
    assert problem.key == "train.rollout" and "adapter=lora" in str(problem.fix)
    assert not rollout_problems(train, LoRA(rank=4), object()) and not rollout_problems(train, Full(), object())
    assert not rollout_problems(job.train, adapter, object())


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize(
    "knobs",
    [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {}],
    ids=["in it", "a copy", "elsewhere"],
)
def test_an_embedding_that_is_the_head_too_is_known(knobs, tied):
    from peft import LoraConfig, get_peft_model

    base = random_llama(0)
    base.config.tie_word_embeddings = tied
    base.tie_weights()
    wrapped = get_peft_model(base, LoraConfig(**(knobs or {"target_modules": ["q_proj"]})))
    assert adapts_tied_embedding(wrapped) is (tied and bool(knobs))


def test_a_sweep_with_such_an_embedding_is_refused_before_its_trials(compose, tmp_path):
    own = "adapter.config={peft_type: LORA, target_modules: [q_proj, embed_tokens]}"
    knobs = ("algo=grpo", "adapter=peft", own, f"+cache.dir={tmp_path}")
    rules = [problem.rule for problem in find_problems(compose(*knobs, "train.rollout=vllm"))]
    assert any("output head is tied" in rule for rule in rules)
    assert not find_problems(compose(*knobs))


def test_a_machine_without_vllm_or_a_gpu_refuses(job, monkeypatch):
    from harness.config import rollout

    train = replace(job.train, rollout="vllm")
    (problem,) = rollout_problems_here(train, cpu=True)
    assert "computes on a CPU" in str(problem)
    monkeypatch.setattr(rollout, "find_spec", lambda _: None)
    (problem,) = rollout_problems_here(train, cpu=False)
    assert "vllm is not installed" in str(problem) and "trl[vllm]" in str(problem.fix)
    monkeypatch.setattr(rollout, "find_spec", lambda name: copy)
    assert not rollout_problems_here(train, cpu=False) and not rollout_problems_here(job.train, cpu=True)
