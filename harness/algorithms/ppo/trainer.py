"""PPO on TRL's GRPO trainer: sampling, batching, logging and checkpoints are TRL's, the algorithm is ours.

One rollout of ``batch_size * minibatches`` completions feeds ``epochs * minibatches`` optimizer steps:

    rollout    sample and score; log pi_old, log pi_ref and V of every token; from these rewards, advantages, returns
    update     for each minibatch the critic's backward pass on the returns, then the policy's on the advantages

Departures from the papers, all of them:

- The critic's head starts at zero; in arXiv 2203.02155 the whole critic starts as the reward model.
- Policy and critic share no trained weights, so the value loss has no coefficient: each has its own learning rate and
  its own clipped gradient norm.
- The minibatches of a rollout are drawn once; each epoch goes through them in the same order.
- Losses are averaged over all tokens of an optimizer step, so that how it is cut into micro-batches changes nothing.
- A stop on approximate KL takes effect after the step that found it, on the mean over all of that step's tokens. The
  next rollout follows at once, with the next prompts: each comes once in a pass over the data, however often passes
  over a rollout end early. Training that is to see a number of prompts then takes fewer steps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import RepeatSampler

from harness.algorithms.online import OnlineTrainer, sequences
from harness.algorithms.ppo import mathematics as math
from harness.algorithms.ppo.algorithm import PPO
from harness.algorithms.ppo.critic import Critic
from harness.rewards.base import Payment
from harness.rewards.steps import ending_tokens
from harness.tasks.base import text_of


class PPOTrainer(OnlineTrainer):
    """See the module.

    Args:
        settings: the algorithm's knobs.
        critic_rate: the critic's learning rate.
        critic_base: the base as it was, where the policy's adapter takes its own apart; the critic's from then on.
        most_prompts: training ends before the rollout that would go beyond them; None where something else ends it.
        options: what ``OnlineTrainer`` takes.
    """

    def __init__(
        self,
        *,
        settings: PPO,
        critic_rate: float,
        critic_base: Any = None,
        most_prompts: int | None = None,
        **options: Any,
    ):
        """Make the trainer, then the critic beside its policy."""
        super().__init__(beta=settings.beta or 0.0, **options)
        self.settings, self.critic_rate = settings, critic_rate
        self.controller = math.KLController(settings.beta or 0.0, settings.kl_target, settings.kl_horizon)
        self.critic = Critic.beside(self.model, critic_base)
        broadcast([parameter.data for parameter in self.critic.trained])  # as DDP does with the policy
        if self.args.gradient_checkpointing:
            self.critic.checkpoint(self.args.gradient_checkpointing_kwargs)
        self.stop_epochs, self.most_prompts = False, most_prompts
        self.rollouts = 0  # begun, of a resumed trial those before included
        self._prompts: Iterator[list[Any]] | None = None
        self._early: list[list[tuple[int, float]]] | None = None  # of the last rollout: tokens, and what they are paid
        self._reduced = False  # whether the critic's gradient is that of all processes
        self._moved = [0.0, 0.0]  # in the optimizer step that goes on: sum of the KL over tokens, and their number
        self.add_callback(_EachStep(self))

    def roles(self) -> dict[str, Any]:
        """The critic's weights beside the reward's; on a shared base only what is its own."""
        return {**super().roles(), "critic": self.critic.held}

    # -- rollout ---------------------------------------------------------------------------------------

    def finish_rollout(self, batch: dict[str, Any], scores: Tensor, ended: Tensor) -> dict[str, Any]:
        """Add what the update needs, each (B, T): log pi_old, V, returns and advantages."""
        settings, rows = self.settings, self.args.per_device_train_batch_size
        policy: Any = self.model
        ids, attention, mask = sequences(batch)
        old = self.sampled_log_probs(batch)
        with torch.no_grad(), disable_gradient_checkpointing(policy, self.args.gradient_checkpointing_kwargs):
            with self.accelerator.autocast():
                values = self.critic.values(ids, attention, mask.shape[1], rows)
        reference = batch.pop("ref_per_token_logps", old)
        kl = (old - reference) * mask
        paid = shaped(scores, ended, settings, self._total)
        rewards = math.token_rewards(paid, kl, mask, self.controller.beta, self._early_rewards(mask))
        advantages = math.gae(rewards, values, mask, settings.gamma, settings.lam)
        returns = advantages + values
        self.note(
            kl_coefficient=self.controller.beta,
            value=math.masked_mean(values, mask),
            returns=math.masked_mean(returns, mask),
            explained_variance=math.explained_variance(values, returns, mask),
        )
        if self.beta:
            self.note(kl=math.approximate_kl(reference, old, mask), kl_per_sequence=kl.sum(1).mean())
        completions = len(kl) * self.accelerator.num_processes
        self.controller.update(float(self._total(kl.sum(1).sum())) / completions, completions)
        if settings.whiten_advantages:
            advantages = math.whiten(advantages, mask, total=self._total)
        return {
            **batch,
            "old_per_token_logps": old,
            "old_values": values,
            "returns": returns,
            "advantages": advantages,
        }

    def _score(self, completions: list[Any], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """Remember which tokens earn parts of the reward, where it says so."""
        scores = super()._score(completions, completion_ids, row)
        placed = self.scorer.placed()
        self._early = None if placed is None else early(self.processing_class, completions, completion_ids, placed)
        return scores

    def _early_rewards(self, mask: Tensor) -> Tensor | None:
        """Parts of the reward that are paid before the end, (B, T)."""
        if self._early is None:
            return None
        rewards = torch.zeros(mask.shape, device=mask.device)
        for row, parts in enumerate(self._early):
            for token, share in parts:
                rewards[row, token] += share
        return rewards

    def _total(self, sum_: Tensor) -> Tensor:
        """Of what this process has summed, the sum over all of them."""
        if self.accelerator.num_processes == 1:
            return sum_
        found: Any = self.accelerator.reduce(sum_.detach().clone(), "sum")
        return found

    # -- update ----------------------------------------------------------------------------------------

    @property
    def sampled_prompts(self) -> int | None:
        """Prompts sampled so far; None where no pass ends early, so that the steps tell."""
        return None if self.settings.stop_at_kl is None else self.rollouts * self.args.generation_batch_size

    def end_step(self) -> bool:
        """Decide, after an optimizer step, whether the passes over the rollout end; and tell whether training does."""
        limit, (total, tokens) = self.settings.stop_at_kl, self._moved
        self._moved = [0.0, 0.0]
        if limit is None:
            return False
        if self.accelerator.num_processes > 1:
            moved = torch.tensor([total, tokens], device=self.accelerator.device, dtype=torch.float64)
            total, tokens = self._total(moved).tolist()
        self.stop_epochs = total > limit * tokens
        over = self.stop_epochs or self.micro_step % self._every == 0
        asked, seen = self.most_prompts, self.sampled_prompts
        return over and asked is not None and seen is not None and seen + self.args.generation_batch_size > asked

    @property
    def _every(self) -> int:
        """Micro-batches of all passes over a rollout."""
        return self.args.steps_per_generation * self.num_iterations

    def batch_of(self, prompts: Any) -> Any:
        """TRL's, of a new rollout where the passes over the last one ended early."""
        if self.stop_epochs and self.micro_step % self.current_gradient_accumulation_steps == 0:
            # The next batch comes from a new rollout.
            self.micro_step = -(-self.micro_step // self._every) * self._every
            self.stop_epochs = False
        if self.settings.stop_at_kl is not None and (self.micro_step % self._every == 0 or not self.rollout_is_held):
            prompts = self._next_prompts()  # the loader would repeat those of passes that were left out
        return super().batch_of(prompts)

    def _next_prompts(self) -> list[Any]:
        """The rows of the next rollout, in the order in which TRL's loader would bring them without its repetitions."""
        size = self.args.generation_batch_size
        rows: Any = self.train_dataset
        if self._prompts is None:
            shuffled = bool(self.shuffle_dataset)
            sampler = RepeatSampler(rows, 1, size, shuffle=shuffled, seed=self.args.seed)
            passes = itertools.chain.from_iterable(iter(sampler) for _ in itertools.count())
            batches = iter(lambda: list(itertools.islice(passes, size)), [])
            self._prompts = itertools.islice(batches, self.rollouts, None)
        self.rollouts += 1
        own = size // self.accelerator.num_processes
        start = self.accelerator.process_index * own
        return [rows[i] for i in next(self._prompts)[start : start + own]]

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The critic's backward pass, then the policy's loss."""
        settings = self.settings
        ids, attention, mask = sequences(inputs)
        keep = mask.shape[1]
        tokens = inputs["num_items_in_batch"].clamp(min=1)  # of the rollout; share of one optimizer step:
        tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        tokens = tokens / self.accelerator.num_processes  # gradients are averaged over them

        with self.critic.turn():
            with self.accelerator.autocast():
                values = self.critic(ids, attention, keep)
            value_loss = math.value_losses(values, inputs["old_values"], inputs["returns"], settings.value_clip)
            value_loss = (value_loss * mask).sum() / tokens
            self.accelerator.backward(value_loss)

        log_probs, entropies, _ = self.log_probs(model, ids, attention, keep, compute_entropy=True)
        if not settings.entropy_bonus:
            entropies = entropies.detach()  # else the head's backward pass works on a gradient of zeros
        old, advantages = inputs["old_per_token_logps"], inputs["advantages"]
        losses = math.policy_losses(log_probs, old, advantages, settings.clip)
        losses = losses * inputs.get("importance_sampling_ratio", 1.0)  # where vLLM sampled
        loss = ((losses - settings.entropy_bonus * entropies) * mask).sum() / tokens

        with torch.no_grad():
            ratio = torch.exp(log_probs - old)
            clipped = ((ratio - 1).abs() > settings.clip).float()
            moved, count = math.approximate_kl(log_probs, old, mask), mask.sum()
            self._moved = [self._moved[0] + float(moved * count), self._moved[1] + float(count)]
            accumulation = self.current_gradient_accumulation_steps
            self.note(
                policy_loss=(losses * mask).sum() / tokens * accumulation,
                value_loss=value_loss * accumulation,
                entropy=math.masked_mean(entropies, mask),
                clip_fraction=math.masked_mean(clipped, mask),
                approx_kl=moved,
                ratio=math.masked_mean(ratio, mask),
            )
        return loss

    # -- the critic beside the policy ------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The policy's groups, and one of the critic's with its own rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            optimizer.add_param_group({"params": self.critic.trained, "lr": self.critic_rate, "weight_decay": 0.0})
        return optimizer

    def reduce_critic(self) -> None:
        """Average the critic's gradient over all processes, once a step: DDP knows of the policy alone."""
        if self.accelerator.num_processes > 1 and not self._reduced:
            for parameter in self.critic.trained:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")  # type: ignore[assignment]
        self._reduced = True

    def forget_reduced(self) -> None:
        """The next gradient is another one."""
        self._reduced = False

    def clipped(self, model: Any) -> Any:
        """The norm of the policy's gradient; the critic's is clipped on its own."""
        self.reduce_critic()
        own = {id(p) for p in self.critic.trained}
        norm: Any = self.accelerator.clip_grad_norm_(self.critic.trained, self.args.max_grad_norm)
        self.note(critic_grad_norm=norm)
        policy = [p for p in model.parameters() if id(p) not in own]
        return self.accelerator.clip_grad_norm_(policy, self.args.max_grad_norm)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train; afterwards the model is the policy alone."""
        output = super().train(*arguments, **options)
        self.critic.release()
        return output

    def saved(self, folder: Path) -> None:
        """The critic beside the policy."""
        super().saved(folder)
        save_file(self.critic.state(), folder / "critic.safetensors")
        kept = {"beta": self.controller.beta, "rollouts": self.rollouts}
        (folder / "ppo.json").write_text(json.dumps(kept))

    def restored(self, folder: Path) -> None:
        """The critic too."""
        super().restored(folder)
        self.critic.load_state(load_file(folder / "critic.safetensors", device=str(self.accelerator.device)))
        kept = json.loads((folder / "ppo.json").read_text())
        self.controller.beta, self.rollouts = kept["beta"], kept["rollouts"]


class _EachStep(TrainerCallback):
    """What PPO does at the end of an optimizer step."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Where nothing was clipped."""
        self.trainer.reduce_critic()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The trainer zeroes the gradients of its model; the critic's are ours to zero."""
        self.trainer.forget_reduced()
        for parameter in self.trainer.critic.trained:
            parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Enough of this rollout, or of all?"""
        if self.trainer.end_step():
            control.should_training_stop = control.should_log = True


def early(
    tokenizer: Any, completions: Sequence[Any], ids: Sequence[list[int]], placed: Sequence[Sequence[Payment]]
) -> list[list[tuple[int, float]]]:
    """Of each completion the tokens, as indices into its ``ids``, that earn a part of its reward, and the parts."""
    found = []
    for completion, tokens, parts in zip(completions, ids, placed, strict=True):
        ends = [part.end for part in parts]
        at = ending_tokens(tokenizer, tokens, text_of(completion), ends) if tokens else []
        found.append([(k, part.share) for k, part in zip(at, parts, strict=False)])
    return found


def shaped(scores: Tensor, ended: Tensor, settings: PPO, total: Callable[[Tensor], Tensor] = lambda s: s) -> Tensor:
    """Scores (B,) less the penalty of completions without an end, whitened and clipped where asked, in this order.

    ``total`` makes the sum over all processes' parts of a batch of the sum over this one's.
    """
    scores = scores - settings.missing_eos_penalty * (~ended).float()
    if settings.whiten_rewards:
        scores = math.whiten(scores, torch.ones_like(scores), shift_mean=False, total=total)
    if settings.reward_clip is not None:
        scores = scores.clamp(-settings.reward_clip, settings.reward_clip)
    return scores
