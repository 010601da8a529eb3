"""PPO's trainer on a toy: what a rollout holds, what an update moves, and which weights are resident."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.algorithms.base import TrainJob
from harness.algorithms.budget_meter import Meter
from harness.algorithms.journal_callback import JournalCallback, Sealing
from harness.algorithms.ppo.algorithm import PPO
from harness.algorithms.roles import role_bytes, tensors_of
from harness.algorithms.trainers import without_dropout
from harness.base.world import World
from harness.config.train import Budget, Train
from harness.models.adapters import Full, LoRA
from harness.models.loading import character_tokenizer
from harness.rewards.base import Reward, Verifier
from harness.store import checkpoints
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.telemetry.clock import PhaseClock
from tests.toys import Fixed, random_llama, says

TOKENIZER = character_tokenizer(64)
PROMPTS = ({"prompt": "12+7=", "answer": "19"}, {"prompt": "1+1=", "answer": "2"})
SAID = ("19", "17", "well", "i dont know")
REWARDS = (0.8, 0.5, 0.3, 0.7)


def make(
    tmp_path: Path,
    *,
    adapter: Any = None,
    reward: Reward | None = None,
    train: dict[str, Any] | None = None,
    models: Callable[[int], Any] | None = None,
    data: Any = PROMPTS * 8,
    **knobs: Any,
) -> Any:
    """A trainer whose rollouts are ``SAID``; ``models`` makes policy and reference from their seeds."""
    adapter, models = adapter or Full(), models or partial(random_llama, context=64)
    size = {"batch_size": 4, "micro_batch_size": 4, **(train or {})}
    job = TrainJob(
        model=models(0),
        reference=models(1).requires_grad_(False) if adapter.name == "full" else None,
        tokenizer=TOKENIZER,
        adapter=adapter,
        task=Arithmetic(),
        data=TaskData(train_prompts=data),
        rows=lambda rows: [dict(row) for row in rows],
        reward=reward or Fixed(REWARDS),
        train=Train(
            **{
                "learning_rate": 1e-2,
                "steps": 4,
                "max_length": 64,
                "max_completion_length": 12,
                "warmup_ratio": 0.0,
                "gradient_checkpointing": False,
                "logging_steps": 1,
                **size,
            }
        ),
        seed=0,
        output_dir=tmp_path,
        device="cpu",
        precision="fp32",
        clock=PhaseClock(lambda kind, data: None),
        frozen=torch.float32,
    )
    trainer = PPO(**knobs).trainer(job).trainer
    says(trainer, SAID)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop
    return trainer


def rollout(trainer: Any, which: tuple[int, ...] = (0, 1, 2, 3)) -> dict[str, Any]:
    said = [SAID[i] for i in which]
    says(trainer, said)
    trainer.scorer.use(lambda rows, texts, ended: [REWARDS[SAID.index(text)] for text in texts])
    return trainer._generate_and_score_completions([{"prompt": PROMPTS[i % 2]["prompt"], "row": i % 2} for i in which])


def gradients(parameters: Any) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def noted(trainer: Any, name: str) -> float:
    return trainer._metrics["train"][name][-1]


# -- rollout -------------------------------------------------------------------------------------------


def test_a_rollout_holds_a_value_a_return_and_an_advantage_for_every_token(tmp_path):
    batch = rollout(make(tmp_path, beta=0.1))
    shape = batch["completion_mask"].shape
    assert shape == (4, 12)  # "i dont know" and its end
    for name in ("old_per_token_logps", "old_values", "returns", "advantages"):
        assert batch[name].shape == shape


def test_without_whitening_advantages_follow_from_score_kl_and_a_critic_that_starts_at_zero(tmp_path):
    trainer = make(tmp_path, beta=0.1, gamma=1.0, lam=1.0, whiten_advantages=False)
    batch = rollout(trainer)
    assert batch["old_values"].abs().max() == 0
    ids = torch.tensor([TOKENIZER("12+7=19")["input_ids"] + [TOKENIZER.eos_token_id]])
    picked = []
    for model in (trainer.model, trainer.ref_model):
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        picked.append(torch.stack([log_probs[i - 1, ids[0, i]] for i in (5, 6, 7)]))
    kl = picked[0] - picked[1]
    to_go = [0.8 - 0.1 * kl[t:].sum().item() for t in range(3)]
    assert batch["advantages"][0, :3].tolist() == pytest.approx(to_go, abs=1e-4)
    assert batch["advantages"][0, 3:].abs().max() == 0


def test_what_a_rollout_says_of_one_prompt_does_not_depend_on_its_neighbours(tmp_path):
    trainer = make(tmp_path, beta=0.1, whiten_advantages=False)
    torch.nn.init.normal_(trainer.critic.head.weight)
    together, alone = rollout(trainer), rollout(trainer, (0, 1))
    for name in ("old_per_token_logps", "old_values", "returns", "advantages"):
        assert torch.allclose(together[name][:2, :3], alone[name][:, :3], atol=1e-5), name


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)])
def test_positions_are_counted_from_the_first_token_of_a_row_and_not_from_its_padding(tmp_path, architecture, adapter):
    """Prompts of unequal length are padded on the left; learned positions would be those of the padding."""
    trainer = make(tmp_path, beta=0.1, whiten_advantages=False, adapter=adapter, models=partial(other, architecture))
    torch.nn.init.normal_(trainer.critic.head.weight)
    batch = rollout(trainer)  # of prompts of 5 and 4 tokens
    for row, (prompt, said) in enumerate([("12+7=", "19"), ("1+1=", "17")]):
        before = len(prompt)
        ids = torch.tensor([TOKENIZER(prompt + said)["input_ids"] + [TOKENIZER.eos_token_id]])
        with torch.no_grad(), trainer.critic.turn():
            hidden = trainer.critic.body(input_ids=ids).last_hidden_state
            values = trainer.critic.head(hidden)[0, before - 1 : -1, 0]
        with torch.no_grad():
            log_probs = torch.log_softmax(trainer.model(input_ids=ids).logits[0], -1)
        picked = torch.stack([log_probs[before - 1 + t, ids[0, before + t]] for t in range(3)])
        assert torch.allclose(batch["old_per_token_logps"][row, :3], picked, atol=1e-4)
        assert torch.allclose(batch["old_values"][row, :3], values, atol=1e-4)


def other(architecture: str, seed: int) -> Any:
    """A model of another kind over the embedded alphabet, with weights so large that positions matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    more = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "gpt_neox": {"intermediate_size": 32}}
    config = AutoConfig.for_model(
        architecture, vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, init_std=0.3, pad_token_id=TOKENIZER.pad_token_id,
        eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None,
        **more.get(architecture, {}),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    without_dropout(model)  # as it is done to every policy
    return model


def test_values_do_not_change_from_call_to_call_under_an_adapter_with_dropout(tmp_path):
    trainer = make(tmp_path, adapter=LoRA(rank=2, dropout=0.5))
    torch.nn.init.normal_(trainer.critic.head.weight)
    for parameter in trainer.critic.trained:
        torch.nn.init.normal_(parameter)
    first, second = rollout(trainer), rollout(trainer)
    assert torch.equal(first["old_values"], second["old_values"])
    assert torch.equal(first["old_per_token_logps"], second["old_per_token_logps"])


def test_an_unfinished_completion_pays_the_penalty(tmp_path):
    trainer = make(tmp_path, beta=0.0, missing_eos_penalty=1.0, whiten_advantages=False)
    says(trainer, SAID, ended=False)
    rows = [{"prompt": PROMPTS[0]["prompt"], "row": 0}] * 4
    batch = trainer._generate_and_score_completions(rows)
    last = [int(n) - 1 for n in batch["completion_mask"].sum(1)]
    paid = [batch["returns"][i, t].item() for i, t in enumerate(last)]
    assert paid == pytest.approx([r - 1 for r in REWARDS], abs=1e-6)


def test_scores_may_be_whitened_and_clipped(tmp_path):
    from harness.algorithms.ppo.trainer import shaped

    scores, ended = torch.tensor([0.0, 10.0, 20.0]), torch.tensor([True, True, True])
    assert shaped(scores, ended, PPO(reward_clip=5.0)).tolist() == [0, 5, 5]
    assert shaped(scores, ended, PPO(whiten_rewards=True)).std().item() == pytest.approx(1, abs=1e-5)
    assert shaped(scores, ended, PPO(whiten_rewards=True)).mean().item() == pytest.approx(10, abs=1e-4)


# -- update --------------------------------------------------------------------------------------------


def test_in_the_first_inner_step_the_ratio_is_1_and_the_kl_0(tmp_path):
    trainer = make(tmp_path, beta=0.1)
    trainer.loss(trainer.model, rollout(trainer))
    assert noted(trainer, "ratio") == pytest.approx(1, abs=1e-6)
    assert noted(trainer, "approx_kl") == pytest.approx(0, abs=1e-7)
    assert noted(trainer, "clip_fraction") == 0


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_padding_carries_no_gradient(tmp_path, adapter):
    trainer = make(tmp_path, adapter=adapter, beta=0.1)
    batch = rollout(trainer)
    own = [p for p in trainer.model.parameters() if p.requires_grad]
    found = []
    for dirt in (0.0, 1e6):
        dirty = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        for name in ("advantages", "returns", "old_values"):
            dirty[name][batch["completion_mask"] == 0] = dirt
        for parameter in [*own, *trainer.critic.trained]:
            parameter.grad = None
        trainer.loss(trainer.model, dirty).backward()
        found.append(gradients([*own, *trainer.critic.trained]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert sum(g.abs().sum() for g in found[0]) > 0


def test_the_critics_turn_moves_only_the_critic_and_the_policys_only_the_policy(tmp_path):
    trainer = make(tmp_path, adapter=LoRA(rank=2), beta=0.1)
    torch.nn.init.normal_(trainer.critic.head.weight)
    policy = [p for p in trainer.model.parameters() if p.requires_grad]
    loss = trainer.loss(trainer.model, rollout(trainer))
    assert all(p.grad is None for p in policy)
    critic = gradients(trainer.critic.trained)
    assert any(g.abs().sum() > 0 for g in critic[:-2])  # its adapter, not its head alone
    loss.backward()
    assert any(g.abs().sum() > 0 for g in gradients(policy))
    assert all(torch.equal(a, b) for a, b in zip(critic, gradients(trainer.critic.trained), strict=True))


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trainer = make(tmp_path, adapter=LoRA(rank=2), beta=0.1, train={"gradient_checkpointing": checkpointing})
        for parameter in [*trainer.critic.trained, *(p for p in trainer.model.parameters() if p.requires_grad)]:
            torch.manual_seed(parameter.numel())
            torch.nn.init.normal_(parameter, std=0.1)
        trainer.loss(trainer.model, rollout(trainer)).backward()
        found.append(gradients([*trainer.critic.trained, *(p for p in trainer.model.parameters() if p.requires_grad)]))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert sum(g.abs().sum() for g in found[0]) > 0


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_gradient_checkpointing_keeps_fewer_activations_of_policy_and_of_critic(tmp_path, adapter):
    kept: dict[tuple[bool, str], int] = {}
    for checkpointing in (False, True):
        trainer = make(tmp_path, adapter=adapter, beta=0.1, train={"gradient_checkpointing": checkpointing, "steps": 1})
        turn, loss = trainer.critic.turn, trainer.loss
        whose = ["policy"]

        @contextmanager
        def watched(turn: Any = turn, whose: list[str] = whose) -> Iterator[None]:
            whose[0] = "critic"
            with turn():
                yield
            whose[0] = "policy"

        def keep(tensor: torch.Tensor, whose: list[str] = whose, on: bool = checkpointing) -> torch.Tensor:
            kept[on, whose[0]] = kept.get((on, whose[0]), 0) + tensor.nbytes
            return tensor

        def counted(*arguments: Any, loss: Any = loss, keep: Any = keep) -> torch.Tensor:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return loss(*arguments)

        trainer.critic.turn, trainer.loss = watched, counted
        trainer.train()
    assert all(kept[True, role] < 0.2 * kept[False, role] for role in ("policy", "critic")), kept


def test_the_entropy_bonus_keeps_the_policy_more_random(tmp_path):
    entropy = {}
    for bonus in (0.0, 1.0):
        trainer = make(tmp_path, beta=0.0, entropy_bonus=bonus)
        torch.nn.init.normal_(trainer.model.lm_head.weight, std=0.5)
        batch = rollout(trainer)
        trainer.loss(trainer.model, batch).backward()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter -= 1e-3 * parameter.grad
        trainer.loss(trainer.model, batch)
        entropy[bonus] = noted(trainer, "entropy")
    assert entropy[1.0] > entropy[0.0]


def test_how_a_step_is_cut_into_micro_batches_changes_no_gradient(tmp_path):
    found = []
    for micro in (4, 1):
        trainer = make(tmp_path, beta=0.1, train={"micro_batch_size": micro})
        trainer.current_gradient_accumulation_steps = 4 // micro
        batch = rollout(trainer)
        for i in range(0, 4, micro):
            part = {k: v[i : i + micro] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()}
            trainer.loss(trainer.model, part).backward()
        found.append(gradients([*trainer.model.parameters(), *trainer.critic.trained]))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_policy_that_moved_too_far_ends_the_passes_over_its_rollout(tmp_path):
    counted = {}
    for limit in (None, 1e-9):
        trainer = make(tmp_path, beta=0.0, epochs=4, stop_at_kl=limit, train={"steps": 8})
        rollouts = []
        generate = trainer.rolled_out
        trainer._generate_and_score_completions = lambda x, g=generate, r=rollouts: r.append(1) or g(x)
        trainer.train()
        counted[limit] = len(rollouts)
    assert counted == {None: 2, 1e-9: 4}  # the first step of a rollout has not moved, the second has


# -- the end of the passes over a rollout -----------------------------------------------------------------

MANY = tuple({"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(16))


def asked(tmp_path: Path, limit: float | None, **train: Any) -> tuple[Any, list[list[int]]]:
    """A trained trainer on 16 prompts, four a rollout and four passes, and the prompts of each of its rollouts."""
    trainer = make(
        tmp_path, data=MANY, reward=Fixed((0.1, 0.9, 0.2, 0.7)), beta=0.0, epochs=4, stop_at_kl=limit, train=train
    )
    rollouts: list[list[int]] = []
    generate = trainer.rolled_out

    def told(rows: list[dict[str, Any]]) -> Any:
        rollouts.append([row["row"] for row in rows])
        return generate(rows)

    trainer.rolled_out = told
    return trainer, rollouts


def test_after_a_stop_the_next_rollout_takes_the_next_prompts_and_each_comes_once_in_a_pass(tmp_path):
    trainer, early = asked(tmp_path, 1e-9, steps=16)
    trainer.train()
    assert len(early) == 8  # two steps each: the first has not moved, the second has
    assert sorted(sum(early[:4], [])) == sorted(sum(early[4:], [])) == list(range(16))
    full, late = asked(tmp_path, None, steps=16)
    full.train()
    assert early[:4] == late  # in the same order as without a stop
    assert trainer.sampled_prompts == 32 and full.sampled_prompts is None


def test_a_limit_that_is_never_reached_changes_nothing(tmp_path):
    found = []
    for limit in (None, 1e9):
        torch.manual_seed(0)
        trainer, rollouts = asked(tmp_path, limit, steps=12)
        trainer.train()
        found.append((rollouts, [p.detach().clone() for p in trainer.model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1e-9, 2e-3, 1e-2])
def test_where_passes_end_does_not_depend_on_the_micro_batch(tmp_path, limit):
    found = []
    for micro in (4, 2, 1):
        torch.manual_seed(0)
        trainer, rollouts = asked(tmp_path, limit, steps=16, micro_batch_size=micro)
        stops: list[tuple[int, bool]] = []
        end = trainer.end_step

        def noted_end(trainer: Any = trainer, end: Any = end, stops: Any = stops) -> bool:
            over = end()
            stops.append((trainer.state.global_step, trainer.stop_epochs))
            return over

        trainer.end_step = noted_end
        trainer.train()
        found.append((rollouts, stops))
    assert found[0] == found[1] == found[2]
    assert any(stopped for _, stopped in found[0][1])


def test_the_kl_of_a_step_is_the_mean_over_its_tokens_and_not_over_its_micro_batches(tmp_path):
    trainer = make(tmp_path, beta=0.0, stop_at_kl=0.5)
    trainer._moved = [0.9 * 1 + 0.1 * 9, 10.0]  # a micro-batch of one token at 0.9, one of nine at 0.1: 0.18
    trainer.end_step()
    assert not trainer.stop_epochs
    trainer._moved = [0.6 * 10, 10.0]
    trainer.end_step()
    assert trainer.stop_epochs and trainer._moved == [0.0, 0.0]


@pytest.mark.parametrize(
    ("told", "rollouts"),
    [({"steps": None, "epochs": 1}, 4), ({"steps": None, "epochs": 2}, 8), ({"steps": None, "budget": 11}, 2)],
)
def test_training_told_in_prompts_or_passes_ends_when_they_were_seen_though_it_takes_fewer_steps(
    tmp_path, told, rollouts
):
    if "budget" in told:
        told = {**told, "budget": Budget(prompts=told["budget"])}
    trainer, seen = asked(tmp_path, 1e-9, **told)
    meter = Meter(trainer.settings, Train(batch_size=4, micro_batch_size=4, **told))
    meter.attach(trainer.training("own"))
    trainer.train()
    assert len(seen) == rollouts and trainer.state.global_step == 2 * rollouts
    assert meter.spent["prompts"] == 4 * rollouts
    assert {len(set(rows)) for rows in seen} == {4}


def test_a_resumed_run_goes_on_with_the_prompts_that_were_not_sampled_yet(tmp_path):
    first, before = asked(tmp_path, 1e-9, steps=4, checkpoint_steps=4)
    first.train()
    again, after = asked(tmp_path, 1e-9, steps=8, checkpoint_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(before) == len(after) == 2
    assert sorted(sum(before + after, [])) == list(range(16)) and again.sampled_prompts == 16


def journaled(trainer: Any) -> None:
    """Let the callbacks of a trial follow a trainer."""
    journal: Any = SimpleNamespace(write=lambda *_, **__: None)
    meter = Meter(trainer.settings, Train(batch_size=4, micro_batch_size=4, steps=8))
    trainer.add_callback(JournalCallback(journal, meter))
    meter.attach(trainer.training("own"))
    trainer.add_callback(Sealing(World()))


@pytest.mark.parametrize("what", ["the critic", "the budget"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before_it(tmp_path, monkeypatch, what):
    trainer, _ = asked(tmp_path, 1e-9, steps=8, checkpoint_steps=2)
    journaled(trainer)
    owner, name = (type(trainer), "saved") if what == "the critic" else (Meter, "on_save")
    write = getattr(owner, name)

    def killed(*arguments: Any, **options: Any) -> None:
        if trainer.state.global_step == 6:
            raise KeyboardInterrupt
        write(*arguments, **options)

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    left = checkpoints.newest(tmp_path)
    assert left is not None and left.name == "checkpoint-4"
    monkeypatch.undo()
    again, _ = asked(tmp_path, 1e-9, steps=8, checkpoint_steps=2)
    journaled(again)
    again.train(resume_from_checkpoint=str(left))
    assert again.state.global_step == 8
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-8"]


# -- roles ---------------------------------------------------------------------------------------------


def test_lora_holds_one_base_for_policy_critic_and_reference(tmp_path):
    base = sum(p.numel() * 4 for p in random_llama(0, context=64).parameters())
    trainer = make(tmp_path, adapter=LoRA(rank=2), beta=0.1)
    weights = role_bytes(trainer.training("base").resident)
    adapter = sum(p.numel() * 4 for n, p in trainer.model.named_parameters() if ".default." in n)
    buffers = sum(b.untyped_storage().nbytes() for b in trainer.model.buffers())
    assert weights["policy"] == base + adapter + buffers
    assert weights["reference"] == 0
    assert weights["critic"] == adapter + (16 + 1) * 4
    assert trainer.critic.body is trainer.model.get_base_model().model


def test_full_fine_tuning_holds_policy_reference_and_critic_apart(tmp_path):
    trainer = make(tmp_path, beta=0.1)
    weights = role_bytes(trainer.training("own").resident)
    body = sum(p.numel() * 4 for p in trainer.model.model.parameters())
    assert weights["reference"] == weights["policy"]
    assert weights["critic"] == body + (16 + 1) * 4
    assert "reference" not in role_bytes(make(tmp_path, beta=0.0).training("none").resident)


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_training_moves_policy_and_critic_and_leaves_the_policy_alone_behind(tmp_path, adapter):
    trainer = make(tmp_path, adapter=adapter, beta=0.1)
    before = [p.detach().clone() for p in trainer.critic.trained]
    base = [t.clone() for t in tensors_of(trainer.model)]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.critic.trained, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(base, tensors_of(trainer.model), strict=True))
    assert list(getattr(trainer.model, "peft_config", {})) == ([] if adapter.name == "full" else ["default"])
    logged = {k for entry in trainer.state.log_history for k in entry}
    assert {"kl", "entropy", "clip_fraction", "approx_kl", "value_loss", "explained_variance"} <= logged
    assert {"reward", "true_reward", "response_tokens", "ended_by_eos", "rollout_s", "update_s"} <= logged


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_a_checkpoint_brings_the_critic_back(tmp_path, adapter):
    trainer = make(tmp_path, adapter=adapter, beta=0.1, kl_target=1.0, train={"checkpoint_steps": 2})
    kept = {}
    release, trainer.critic.release = trainer.critic.release, lambda: None
    trainer.train()
    kept = {k: v.clone() for k, v in trainer.critic.state().items()}
    release()
    again = make(tmp_path, adapter=adapter, beta=0.1, kl_target=1.0, train={"checkpoint_steps": 2})
    again._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(kept[k], v) for k, v in again.critic.state().items())
    assert again.controller.beta == trainer.controller.beta != 0.1


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path):
    make(tmp_path, adapter=LoRA(rank=2), beta=0.1, train={"checkpoint_steps": 2}).train()
    again = make(tmp_path, adapter=LoRA(rank=2), beta=0.1, train={"checkpoint_steps": 2, "steps": 6})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 6


def test_the_verifier_pays_ppo_too(tmp_path):
    trainer = make(tmp_path, reward=Verifier().bind(Arithmetic(), Full(), "tiny"))
    says(trainer, SAID)
    trainer._generate_and_score_completions([{"prompt": "12+7=", "row": 0}] * 4)
    assert trainer._scores == pytest.approx([0.96, -0.04, -0.08, -0.22])
    assert noted(trainer, "correct") == 0.25
    assert replace(PPO(), beta=0.0).uses_reference is False
