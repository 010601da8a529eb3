"""TRL 1.12's PPO, the last one that TRL had: what the benches need of it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig
from trl.experimental.ppo import PPOConfig

LORA = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


def config(rows: int, **own: Any) -> PPOConfig:
    """Of PPO on a CPU in 32 bits, ``rows`` at once; it keeps activations, since TRL's loop never asks for less."""
    return PPOConfig(
        per_device_train_batch_size=rows,
        local_rollout_forward_batch_size=rows,
        num_mini_batches=1,
        stop_token="eos",
        temperature=1.0,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        **own,
    )


class Rule(torch.nn.Module):
    """Stands where TRL expects a reward model; what is scored by it is scored by a rule."""


def pay_by_rule(module: Any, tokenizer: Any, rule: Callable[[Sequence[str], Sequence[str]], Sequence[float]]) -> None:
    """From now on ``rule(prompts, completions)`` says what a ``Rule`` scores; the critic's values are its own.

    Args:
        module: ``trl.experimental.ppo.ppo_trainer``.
        tokenizer: decodes both.
        rule: a reward for each.
    """
    network = module.get_reward

    def rule_or_model(model: Any, ids: torch.Tensor, pad: int, start: int) -> Any:
        if not isinstance(model, Rule):
            return network(model, ids, pad, start)
        parts = (ids[:, :start], ids[:, start:])
        prompts, said = (tokenizer.batch_decode(part, skip_special_tokens=True) for part in parts)
        return None, torch.tensor(rule(prompts, said)), None

    module.get_reward = rule_or_model


def rollouts_clocked(module: Any) -> list[float]:
    """From now on the seconds of each of its rollouts: from the first sampling to the advantages, whitened."""
    sampled, whitened, seconds, since = module.batch_generation, module.masked_whiten, [], []

    def sampling(*args: Any, **kwargs: Any) -> Any:
        since.append(time.perf_counter())
        return sampled(*args, **kwargs)

    def whitening(*args: Any, **kwargs: Any) -> Any:
        advantages = whitened(*args, **kwargs)
        seconds.append(time.perf_counter() - since[0])
        since.clear()
        return advantages

    module.batch_generation, module.masked_whiten = sampling, whitening
    return seconds
