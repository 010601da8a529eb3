"""The equations of PPO on token sequences, as pure functions of tensors.

Everywhere B is the batch and T the longest completion; ``mask`` (B, T) is 1 on a completion's tokens, its
end-of-sequence token included, and 0 on padding. Position t of a value is the state *before* token t was chosen:
prompt and tokens 0 to t-1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float, early: Tensor | None = None) -> Tensor:
    """Rewards per token (B, T): the KL penalty at every token, the sequence's score at its last one.

    r_t = -beta * kl_t + [t = last] * score (Ziegler et al. 2019, arXiv 1909.08593, eq. 2; Ouyang et al. 2022,
    arXiv 2203.02155, eq. 2), with kl_t = log pi_old(a_t) - log pi_ref(a_t).

    Args:
        scores: (B,).
        kl: (B, T), nats.
        mask: (B, T); a row without tokens gets no reward.
        beta: coefficient of the penalty.
        early: (B, T), the parts of the scores that are paid before the end (of steps, arXiv 2305.20050); the last token
            is paid the rest, so that a sequence's rewards come to its score whatever was paid where.
    """
    if early is not None:
        early = early * mask
        scores = scores - early.sum(1)
    rewards = -beta * kl * mask
    lengths = mask.sum(1).long()
    rows = lengths.nonzero().squeeze(1)
    rewards[rows, lengths[rows] - 1] += scores[rows]
    return rewards if early is None else rewards + early


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimates (B, T) (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, and V = A = 0 after the last token:
    a completion that was cut off at the length limit is treated as ended, as in arXiv 2203.02155.
    """
    advantages = torch.zeros_like(rewards)
    later_advantage = torch.zeros_like(rewards[:, 0])
    later_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * later_value - values[:, t]
        later_advantage = (delta + gamma * lam * later_advantage) * mask[:, t]
        later_value = values[:, t] * mask[:, t]
        advantages[:, t] = later_advantage
    return advantages


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a batch; 0 for a batch without tokens."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, total: Callable[[Tensor], Tensor] = lambda sum_: sum_
) -> Tensor:
    """Scale to unit variance over the tokens of the batch, and to zero mean where asked; 0 on padding.

    The variance is the sample variance (n - 1), as in the code of arXiv 1909.08593.

    Args:
        values: (B, T).
        mask: (B, T).
        shift_mean: to zero mean.
        total: of a sum over this process's part of the batch, the sum over all of it.
    """
    count = total(mask.sum())
    mean = total((values * mask).sum()) / count.clamp(min=1)
    variance = total((((values - mean) ** 2) * mask).sum()) / (count - 1).clamp(min=1)
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def policy_losses(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate per token (B, T) (Schulman et al. 2017, arXiv 1707.06347, eq. 7), as a loss.

    -min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = exp(log_probs - old).
    """
    ratio = torch.exp(log_probs - old)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error per token (B, T), the larger of the plain and the clipped one.

    The clipped prediction stays within ``clip`` of the old one (the code of arXiv 1909.08593); None: not clipped.
    """
    plain = (values - returns) ** 2
    if clip is None:
        return 0.5 * plain
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.max(plain, (near - returns) ** 2)


def approximate_kl(log_probs: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """How far a policy has moved from the one that sampled, per token (nats).

    mean of (rho - 1) - log rho, which is unbiased and never negative (Schulman 2020, "Approximating KL
    divergence", estimator k3).
    """
    log_ratio = log_probs - old
    return masked_mean(torch.exp(log_ratio) - 1 - log_ratio, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over tokens; 1 is a perfect critic, 0 one that knows the mean."""
    chosen = mask.bool()
    spread = returns[chosen].var(unbiased=False)
    return 1 - (returns - values)[chosen].var(unbiased=False) / spread.clamp(min=1e-8)


class KLController:
    """The coefficient of the KL penalty: fixed, or steered towards a target (arXiv 1909.08593, section 2.2).

    Args:
        beta: where it starts.
        target: KL per sequence (nats) to hold; None keeps beta fixed.
        horizon: completions over which the coefficient may change by about a fifth for each unit of error.
    """

    def __init__(self, beta: float, target: float | None = None, horizon: int = 10_000):
        """Start at ``beta``."""
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Take in the mean KL per sequence of ``completions`` completions."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * completions / self.horizon
