"""TRL 1.12's PPO, the last one that TRL had: what the benches need of it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


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
