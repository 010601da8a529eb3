"""Losses without a reference and of sampled groups: by hand, and against TRL's where it still has them."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.algorithms import losses
from harness.algorithms.losses import Said

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that they may go, which is why the harness has its own
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


@pytest.fixture
def sides() -> tuple[Said, Said]:
    """Three pairs; of padding there is a value that must not count."""
    drawn = torch.Generator().manual_seed(0)
    chosen, rejected = (-3 * torch.rand(3, 4, generator=drawn) for _ in range(2))
    return Said(chosen, MASK), Said(rejected, MASK.flip(0))


def test_a_completion_is_summed_and_averaged_over_its_own_tokens():
    said = Said(torch.tensor([[-1.0, -2.0, -100.0], [-3.0, -100.0, -100.0]]), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    assert said.total.tolist() == [-3.0, 0.0] and said.mean.tolist() == [-1.5, 0.0]


@pytest.mark.parametrize("x", [-1e-6, -0.01, -0.5, -math.log(2), -0.8, -5.0, -50.0, -200.0])
def test_log_1_minus_exp_is_exact_near_zero_and_far_from_it(x):
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = losses.log1mexp(given)
    value.backward()
    assert value.item() == pytest.approx(math.log(-math.expm1(x)), rel=1e-12)
    assert given.grad is not None
    assert given.grad.item() == pytest.approx(-math.exp(x) / -math.expm1(x), rel=1e-9)


def test_a_sure_completion_has_finite_odds_and_gradient():
    chosen = torch.zeros(2, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(losses.log_odds_ratio(chosen, torch.tensor([-1.0, 0.0]))).sum()
    loss.backward()
    assert loss.isfinite() and chosen.grad is not None and chosen.grad.isfinite().all()


def test_orpo_by_hand():
    # Both sides of one token: p = 0.8 and 0.2, so odds of 4 and 1/4, whose ratio is 16.
    chosen = Said(torch.tensor([[math.log(0.8)]]), torch.ones(1, 1))
    rejected = Said(torch.tensor([[math.log(0.2)]]), torch.ones(1, 1))
    expected = -math.log(0.8) + 0.1 * math.log(1 + 1 / 16)
    assert losses.orpo(chosen, rejected, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_simpo_by_hand():
    # Means of -1 and -2, beta 2: a difference of 2, of which the margin of 1.5 leaves 0.5.
    chosen = Said(torch.tensor([[-1.5, -0.5]]), torch.ones(1, 2))
    rejected = Said(torch.tensor([[-2.0, 0.0]]), torch.tensor([[1, 0]]))
    assert losses.simpo(chosen, rejected, 2.0, 1.5).item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-6)


def test_cpo_by_hand():
    # Sums of -2 and -2.5, beta 0.2: a scaled difference of 0.1; the chosen side's mean is -1.
    chosen = Said(torch.tensor([[-1.5, -0.5]]), torch.ones(1, 2))
    rejected = Said(torch.tensor([[-2.5, -7.0]]), torch.tensor([[1, 0]]))
    expected = math.log(1 + math.exp(-0.1)) + 0.5 * 1.0
    assert losses.cpo(chosen, rejected, 0.2, 0.5).item() == pytest.approx(expected, rel=1e-6)


def trls(**settings: Any) -> Any:
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), label_smoothing=0.0, alpha=0.0, **settings)


@pytest.mark.parametrize("weight", [0.05, 0.1, 1.0])
def test_the_odds_ratio_is_trls(sides, weight):
    chosen, rejected = sides
    theirs = ORPOTrainer.odds_ratio_loss(trls(beta=weight), chosen.mean, rejected.mean)[0]
    assert torch.allclose(losses.orpo(*sides, weight), -chosen.mean - theirs, atol=1e-5)


@pytest.mark.parametrize(("beta", "margin"), [(2.0, 1.0), (2.5, 0.75), (10.0, 3.0)])
def test_simpo_is_trls(sides, beta, margin):
    means = (side.mean for side in sides)
    theirs = CPOTrainer.cpo_loss(trls(beta=beta, loss_type="simpo", simpo_gamma=margin), *means)[0]
    assert torch.allclose(losses.simpo(*sides, beta, margin), theirs, atol=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_cpo_is_trls(sides, beta):
    totals = (side.total for side in sides)
    theirs = CPOTrainer.cpo_loss(trls(beta=beta, loss_type="sigmoid"), *totals)[0]
    assert torch.allclose(losses.cpo(*sides, beta, 0.0), theirs, atol=1e-5)
    assert torch.allclose(losses.cpo(*sides, beta, 0.7), theirs - 0.7 * sides[0].mean, atol=1e-5)


def test_each_reward_is_held_against_the_mean_of_the_others():
    found = losses.leave_one_out(torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]]))
    assert found.tolist()[0] == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5])
    assert found.tolist()[1] == [0.0, 0.0, 0.0]


def test_at_the_policy_that_sampled_the_gradient_is_that_of_reinforce(sides):
    said, _ = sides
    advantages = torch.tensor([1.0, -2.0, 0.5])
    now = said.log_probs.clone().requires_grad_()
    losses.sequence_policy(Said(now, said.mask), said.log_probs, advantages, 0.2).sum().backward()
    assert now.grad is not None and torch.allclose(now.grad, -advantages[:, None] * said.mask)


@pytest.mark.parametrize(
    ("moved", "advantage", "loss", "slope"),
    [
        (0.1, 1.0, -math.exp(0.1), -math.exp(0.1)),  # within the clip
        (1.0, 1.0, -1.2, 0.0),  # far enough already
        (1.0, -1.0, math.e, math.e),  # the wrong way: not clipped
        (-1.0, -1.0, 0.8, 0.0),
    ],
)
def test_a_completions_ratio_is_clipped_where_it_has_gone_far_enough(moved, advantage, loss, slope):
    now = torch.tensor([[-1.0 + moved / 2, -2.0 + moved / 2]], requires_grad=True)
    old, mask = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2)
    found = losses.sequence_policy(Said(now, mask), old, torch.tensor([advantage]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert now.grad is not None and now.grad[0, 0].item() == pytest.approx(slope, rel=1e-5)


def test_a_completion_against_itself_moves_nothing():
    ratio = torch.tensor([0.3], requires_grad=True)
    losses.dpo(ratio, ratio, 0.5).sum().backward()
    assert ratio.grad is not None and ratio.grad.item() == 0.0
