"""Adapters beyond LoRA: where they start, what is left when they are off, and that what was trained comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from harness.algorithms.dpo import DPO
from harness.algorithms.grpo import GRPO
from harness.algorithms.kto import KTO
from harness.algorithms.ppo import PPO
from harness.algorithms.starting_point import NEAR
from harness.algorithms.trainers import ready_trainer, released
from harness.base.errors import UserError, UserErrors
from harness.config.train import Train
from harness.models.adapters import LoRA, QLoRA
from harness.models.plain_lora import change_of, on_base
from harness.models.variants import IA3, AnyPeft, DoRA, PiSSA, PrefixTuning, PromptTuning, RsLoRA
from harness.tasks.base import TaskData
from harness.trial.artifacts import save_whole
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from tests.algorithms.conftest import (  # noqa: F401
    job,  # noqa: F401
    policy,
    reference,
)
from tests.algorithms.world import TOKENIZER
from tests.inside import plain_config
from tests.toys import Fixed, random_llama, says

LOHA = {"peft_type": "loha", "r": 2, "target_modules": ["q_proj", "v_proj"]}
AT_BASE = [
    LoRA(rank=2), LoRA(rank=2, alpha=3.0), LoRA(rank=2, init="orthogonal"), LoRA(rank=2, init="gaussian"),
    RsLoRA(rank=2), DoRA(rank=2), IA3(), AnyPeft(config=LOHA),
]  # fmt: skip
APART = [PiSSA(rank=2), PiSSA(rank=2, init_iterations=4), PiSSA(rank=2, init="olora"), LoRA(rank=2, init="pissa")]
ELSEWHERE = [PromptTuning(virtual_tokens=4), PrefixTuning(virtual_tokens=4)]


def logits(model: Any, text: str = "12+7=19") -> torch.Tensor:
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits[:, -ids.shape[1] :]


def of(job: Any, adapter: Any, **train: Any) -> Any:  # noqa: F811
    return replace(job, reference=None, adapter=adapter, train=replace(job.train, **train))


@pytest.mark.parametrize("adapter", [*AT_BASE, *APART, *ELSEWHERE], ids=repr)
def test_an_adapter_is_where_it_says_before_the_first_step(job, adapter):  # noqa: F811
    training = ready_trainer(DPO(share_reference=False), of(job, adapter))
    start = training.start
    assert (start.off < 1e-3) or not adapter.off_is_base
    assert (start.on < 1e-3) == adapter.starts_at_base
    if adapter in APART:
        assert training.reference == "own" and start.off > 10 * NEAR  # without a copy the reference would be wrong
    else:
        assert training.reference == "base" and training.trainer.ref_model is None


@pytest.mark.parametrize("adapter", [*AT_BASE, *ELSEWHERE], ids=repr)
def test_a_step_moves_the_adapter_alone_and_it_comes_back_from_disk(job, adapter, tmp_path):  # noqa: F811
    training = ready_trainer(DPO(), of(job, adapter, steps=2, learning_rate=0.05))
    training.trainer.train()
    model = released(training.trainer, checkpointed=False)
    trained = logits(model)
    assert not torch.allclose(trained, logits(random_llama(0)), atol=1e-4)
    with model.disable_adapter():
        assert torch.allclose(logits(model), logits(random_llama(0)), atol=1e-5)
    save_whole(model, TOKENIZER, tmp_path / "kept")
    again = PeftModel.from_pretrained(random_llama(0), str(tmp_path / "kept")).eval()
    assert torch.allclose(logits(again), trained, atol=1e-5)


@pytest.mark.parametrize("adapter", APART, ids=repr)
@pytest.mark.parametrize("algo", [DPO(beta=0.3), KTO(beta=0.3)], ids=["dpo", "kto"])
def test_what_took_its_base_apart_is_plain_lora_afterwards(job, adapter, algo, tmp_path):  # noqa: F811
    training = ready_trainer(algo, of(job, adapter, steps=2, learning_rate=0.05))
    training.trainer.train()
    model = released(training.trainer, checkpointed=False)
    trained = logits(model)
    change = change_of(model, training.matrices)
    plain = on_base(change, random_llama(0))
    assert plain.peft_config["default"].r == 4
    assert torch.allclose(logits(plain), trained, atol=1e-3)
    assert not torch.allclose(trained, logits(random_llama(0)), atol=1e-2)
    with plain.disable_adapter():
        assert torch.equal(logits(plain), logits(random_llama(0)))
    save_whole(plain, TOKENIZER, tmp_path / "kept")
    again = PeftModel.from_pretrained(random_llama(0), str(tmp_path / "kept")).eval()
    assert torch.allclose(logits(again), trained, atol=1e-3)


def test_an_online_reference_is_the_base_where_off_is_not(job):  # noqa: F811
    online = replace(
        of(job, PiSSA(rank=2), batch_size=8, micro_batch_size=8), reward=Fixed((1.0, 0, 0, 0, 0, 0, 0, 1.0))
    )
    training = ready_trainer(GRPO(num_generations=4, beta=0.1), online)
    trainer = training.trainer
    says(trainer, ["19", "17", "well", "i dont", "19", "2", "well 2", "i dont know."])
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "12+7=", "row": 0}] * 8)
    old = trainer.sampled_log_probs(batch)
    kept = batch["completion_mask"].bool()
    assert torch.allclose(batch["ref_per_token_logps"][kept], old[kept], atol=1e-3)


def test_an_adapter_that_claims_a_reference_it_has_not_is_refused(job):  # noqa: F811
    lying = AnyPeft(config={"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa", "target_modules": "all-linear"})
    with pytest.raises(UserError, match="nats a token from the base, so it is no reference"):
        ready_trainer(DPO(), of(job, lying))


def test_an_adapter_that_claims_to_start_at_the_base_and_does_not_is_refused(job):  # noqa: F811
    lying = AnyPeft(config={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4})
    with pytest.raises(UserError, match="before the first step the adapter is"):
        ready_trainer(DPO(), of(job, lying))
    ready_trainer(DPO(), of(job, replace(lying, base_at_start=False)))


@pytest.mark.parametrize(
    ("adapter", "train", "key"),
    [
        (LoRA(init="loftq"), Train(), "adapter.init"),
        (QLoRA(init="pissa"), Train(), "adapter.init"),
        (LoRA(init="pissa", dora=True), Train(), "adapter.init"),
        (PiSSA(), Train(checkpoint_steps=5), "train.checkpoint_steps"),
        (LoRA(init_iterations=4), Train(), "adapter.init_iterations"),
        (LoRA(init="orthogonal", rank=3), Train(), "adapter.rank"),
        (PrefixTuning(), Train(gradient_checkpointing=True), "train.gradient_checkpointing"),
        (IA3(targets=("k_proj",), feedforward=("down_proj",)), Train(), "adapter.feedforward"),
        (IA3(feedforward=("down_proj",)), Train(), "adapter.feedforward"),
        (AnyPeft(config={"r": 8}), Train(), "adapter.config.peft_type"),
        (AnyPeft(config={"peft_type": "NONSUCH"}), Train(), "adapter.config"),
        (AnyPeft(config=LOHA | {"rnk": 8}), Train(), "adapter.config"),
        (AnyPeft(config=LOHA, base_when_off=False), Train(), "adapter.base_when_off"),
    ],
    ids=str,
)
def test_what_an_adapter_cannot_do_is_refused_with_a_fix(adapter, train, key):
    problems = adapter.problems(train)
    assert [p.key for p in problems] == [key] and problems[0].fix


@pytest.mark.parametrize(
    ("adapter", "scale"),
    [
        (LoRA(rank=8, alpha_over_rank=2.0), 2.0),
        (LoRA(rank=8, alpha=4.0), 0.5),
        (LoRA(rank=4, alpha=4.0), 1.0),
        (RsLoRA(rank=4), 8.0),  # 16 / sqrt(4)
        (RsLoRA(rank=4, alpha=None), 4.0),  # 2 * 4 / sqrt(4)
    ],
    ids=str,
)
def test_the_scale_of_an_update_is_what_alpha_and_rank_make_it(job, adapter, scale):  # noqa: F811
    model = ready_trainer(DPO(), of(job, adapter)).trainer.model
    assert {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)} == {scale}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_critic_of_what_took_its_base_apart_is_plain_lora_on_a_base_of_its_own(job, checkpointing):  # noqa: F811
    paid = Fixed((1.0, 0, 0, 0, 0.5, 0, 0, 1.0))
    asked = of(job, PiSSA(rank=2), batch_size=8, micro_batch_size=8, steps=2, gradient_checkpointing=checkpointing)
    prompts = TaskData(train_prompts=[{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(8)])
    training = ready_trainer(PPO(beta=0.1, epochs=2), replace(asked, reward=paid, data=prompts))
    trainer = training.trainer
    says(trainer, ["19", "17", "well", "i dont", "19", "2", "well 2", "i dont know."])
    ids = torch.tensor([TOKENIZER("12+7=19")["input_ids"]])
    with torch.no_grad():
        hidden = trainer.critic.body(input_ids=ids).last_hidden_state
        assert torch.allclose(hidden, random_llama(0).base_model(input_ids=ids).last_hidden_state, atol=1e-5)
    before = [p.detach().clone() for p in trainer.critic.trained]
    own, policys = {id(t) for t in training.resident["critic"]}, {id(p) for p in trainer.model.parameters()}
    assert not own & policys and sum(t.numel() for t in training.resident["critic"]) > random_llama(0).num_parameters()
    trainer.train()
    assert trainer.state.global_step == 2
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.critic.trained, strict=True)]
    assert sum(moved) > len(moved) / 3  # the head, and B of each layer


def test_a_reward_model_is_no_adapter_on_a_base_that_was_taken_apart():
    setup = assemble(plain_config("algo=grpo", "adapter=pissa", "reward=model", "eval=none"))
    with pytest.raises(UserErrors, match=r"reward\.adapter=full"):
        check_data(setup)
    check_data(assemble(plain_config("algo=grpo", "adapter=pissa", "reward=model", "reward.adapter=full", "eval=none")))


@pytest.mark.parametrize("adapter", ["prompt", "prefix"])
def test_virtual_tokens_are_refused_where_prompts_are_sampled_together(adapter):
    with pytest.raises(UserErrors, match="virtual tokens do not allow"):
        check_data(assemble(plain_config("algo=grpo", f"adapter={adapter}", "eval=none")))
