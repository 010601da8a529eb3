"""Trainers of algorithms that sample groups and have a loss of their own. Imports torch and trl."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.algorithms import losses
from harness.algorithms.groups import Groups
from harness.algorithms.losses import Said
from harness.algorithms.online import OnlineTrainer, sequences
from harness.algorithms.ppo import mathematics as math


class GroupTrainer(OnlineTrainer):
    """Knows the knobs of an algorithm of groups.

    Args:
        settings: the algorithm.
        options: what ``OnlineTrainer`` takes.
    """

    def __init__(self, *, settings: Groups, **options: Any):
        """Make the trainer."""
        super().__init__(beta=settings.beta or 0.0, **options)
        self.settings: Any = settings


class RLOOTrainer(GroupTrainer):
    """REINFORCE with a leave-one-out baseline; the KL penalty is part of the reward."""

    def finish_rollout(self, batch: dict[str, Any], scores: Tensor, ended: Tensor) -> dict[str, Any]:
        """Add log pi_old of every token (B, T), and the advantage of every completion (B,)."""
        old, mask = self.sampled_log_probs(batch), batch["completion_mask"]
        reference = batch.pop("ref_per_token_logps", None)
        if reference is not None:
            kl = ((old - reference) * mask).sum(1)
            self.note(kl=math.approximate_kl(reference, old, mask), kl_per_sequence=kl.mean())
            scores = scores - (self.settings.beta or 0.0) * kl
        groups = scores.view(-1, self.settings.num_generations)
        return {**batch, "old_per_token_logps": old, "advantages": losses.leave_one_out(groups).flatten()}

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The mean over the completions of an optimizer step."""
        ids, attention, mask = sequences(inputs)
        log_probs, entropies, _ = self.log_probs(model, ids, attention, mask.shape[1], compute_entropy=True)
        old, advantages, clip = inputs["old_per_token_logps"], inputs["advantages"], self.settings.epsilon
        said = Said(log_probs, mask)
        weights = inputs.get("sampler_weights", 1.0)  # where vLLM sampled
        loss = (losses.sequence_policy(said, old, advantages, clip) * weights).mean()
        with torch.no_grad():
            ratio = torch.exp(said.total - Said(old, mask).total)
            self.note(
                entropy=math.masked_mean(entropies, mask),
                clip_fraction=((ratio - 1).abs() > clip).float().mean(),
                approx_kl=math.approximate_kl(log_probs, old, mask),
            )
        return loss / self.current_gradient_accumulation_steps


class OnlineDPOTrainer(GroupTrainer):
    """DPO on the best and the worst completion of each group."""

    def finish_rollout(self, batch: dict[str, Any], scores: Tensor, ended: Tensor) -> dict[str, Any]:
        """One row a group: its prompt (P,), and its best and its worst completion (2, T)."""
        groups = scores.view(-1, self.settings.num_generations)
        first = torch.arange(0, len(scores), groups.shape[1], device=scores.device)
        best, worst = first + groups.argmax(1), first + groups.argmin(1)
        self.note(tied=(best == worst).float().mean(), reward_gap=(groups.amax(1) - groups.amin(1)).mean())
        pair = torch.stack([best, worst], dim=1)
        paired = ("completion_ids", "completion_mask", "ref_per_token_logps")
        chosen = {name: batch[name][pair] for name in paired}
        return {"prompt_ids": batch["prompt_ids"][best], "prompt_mask": batch["prompt_mask"][best], **chosen}

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The mean over the pairs of an optimizer step."""
        reference = inputs["ref_per_token_logps"].flatten(0, 1)
        both = {name: inputs[name].flatten(0, 1) for name in ("completion_ids", "completion_mask")}
        both |= {name: inputs[name].repeat_interleave(2, dim=0) for name in ("prompt_ids", "prompt_mask")}
        ids, attention, mask = sequences(both)
        log_probs, entropies, _ = self.log_probs(model, ids, attention, mask.shape[1], compute_entropy=True)
        ratios = Said(log_probs - reference, mask).total.view(-1, 2)
        beta = self.settings.beta or 0.0  # checked to be above zero
        loss = losses.dpo(ratios[:, 0], ratios[:, 1], beta).mean()
        with torch.no_grad():
            rewards = beta * ratios
            self.note(
                entropy=math.masked_mean(entropies, mask),
                kl=math.approximate_kl(reference, log_probs, mask),
                margin=(rewards[:, 0] - rewards[:, 1]).mean(),
            )
        return loss / self.current_gradient_accumulation_steps
