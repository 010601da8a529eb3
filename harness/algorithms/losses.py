"""Losses of pairs without a reference, and of groups of samples, of log-probabilities. Pure; imports torch.

Shapes: B pairs or sequences, T tokens, k samples of a prompt. Log-probabilities are natural, in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LN_2 = math.log(2)


@dataclass(frozen=True)
class Said:
    """What the policy says of completions.

    Attributes:
        log_probs: of each token, (B, T).
        mask: 1 for the tokens of completions, (B, T).
    """

    log_probs: Tensor
    mask: Tensor

    @property
    def total(self) -> Tensor:
        """Log-probability of each completion, (B,)."""
        return (self.log_probs * self.mask).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The same per token, (B,); 0 for a completion without tokens."""
        return self.total / self.mask.sum(-1).clamp(min=1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it (Maechler 2012, eq. 7).

    A sequence whose probability rounds to 1 counts as the largest probability below it.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -LN_2
    # Each branch sees only what it is exact for: the other one's gradient would be inf times 0.
    close = torch.log(-torch.expm1(torch.where(near, x, -LN_2)))
    far = torch.log1p(-torch.exp(torch.where(near, -LN_2, x)))
    return torch.where(near, close, far)


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log(odds(chosen) / odds(rejected)) of mean log-probabilities (B,) (arXiv 2403.07691, eq. 4 and 5)."""
    chosen, rejected = chosen.float(), rejected.float()
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def orpo(chosen: Said, rejected: Said, weight: float) -> Tensor:
    """Likelihood of the chosen, and the odds of chosen against rejected (arXiv 2403.07691, eq. 6 and 7), (B,).

    -mean log p(chosen) - weight * log sigmoid(log odds ratio); ``weight`` is the paper's lambda.
    """
    return -chosen.mean - weight * F.logsigmoid(log_odds_ratio(chosen.mean, rejected.mean))


def simpo(chosen: Said, rejected: Said, beta: float, margin: float) -> Tensor:
    """Mean log-probabilities, apart by a margin (arXiv 2405.14734, eq. 6), (B,).

    -log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - margin); ``margin`` is the paper's gamma.
    """
    return -F.logsigmoid(beta * (chosen.mean - rejected.mean) - margin)


def cpo(chosen: Said, rejected: Said, beta: float, weight: float) -> Tensor:
    """DPO against a uniform reference, and the likelihood of the chosen (arXiv 2401.08417, eq. 3 to 5), (B,).

    -log sigmoid(beta * (log p(chosen) - log p(rejected))) - weight * mean log p(chosen). The paper writes the sum over
    tokens for the second term; its code, as TRL, takes the mean.
    """
    return -F.logsigmoid(beta * (chosen.total - rejected.total)) - weight * chosen.mean


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the others of its group (arXiv 2402.14740, eq. 6); (groups, k) -> the same."""
    k = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * k / (k - 1)


def sequence_policy(said: Said, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """REINFORCE on whole completions, clipped as PPO's where the policy has moved since it sampled, (B,).

    A completion is one action (arXiv 2402.14740, section 3): its ratio is exp of the summed difference of
    log-probabilities. At the policy that sampled, the gradient is that of -advantage * log p(completion).

    Args:
        said: by the policy now.
        old: log-probabilities of its tokens as they were sampled, (B, T).
        advantages: of the completions, (B,).
        clip: range of the ratio around 1.
    """
    ratio = torch.exp(said.total - (old * said.mask).sum(-1))
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def dpo(best: Tensor, worst: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (best - worst)) of log-ratios of completions to their reference (arXiv 2305.18290, eq. 7)."""
    return -F.logsigmoid(beta * (best - worst))
