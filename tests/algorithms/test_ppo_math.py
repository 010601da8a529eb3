"""The equations of PPO against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from harness.algorithms.ppo import mathematics as ppo

ONES = torch.ones(1, 5)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_gae_of_five_tokens():
    # deltas .08 .07 .06 .05 .5 with gamma .9; each advantage adds .72 of the next
    found = ppo.gae(row(0, 0, 0, 0, 1), row(0.1, 0.2, 0.3, 0.4, 0.5), ONES, gamma=0.9, lam=0.8)
    assert found[0].tolist() == pytest.approx([0.31453568, 0.325744, 0.3552, 0.41, 0.5], abs=1e-6)


def test_with_gamma_and_lambda_of_one_and_a_zero_critic_the_advantage_is_the_reward_to_go():
    rewards = row(-0.1, 0.2, 0.0, -0.3, 1.0)
    found = ppo.gae(rewards, torch.zeros(1, 5), ONES, gamma=1.0, lam=1.0)
    assert found[0].tolist() == pytest.approx([0.8, 0.9, 0.7, 0.7, 1.0], abs=1e-6)


def test_with_lambda_of_zero_the_advantage_is_the_one_step_error():
    found = ppo.gae(row(0, 0, 1), row(0.5, 0.2, 0.4), torch.ones(1, 3), gamma=1.0, lam=0.0)
    assert found[0].tolist() == pytest.approx([-0.3, 0.2, 0.6], abs=1e-6)


def test_what_padding_holds_changes_no_advantage():
    mask = torch.tensor([[1.0, 1, 1, 0, 0]])
    clean = ppo.gae(row(0, 0, 1), row(0.5, 0.2, 0.4), torch.ones(1, 3), gamma=0.9, lam=0.8)
    dirty = ppo.gae(row(0, 0, 1, 9, -9), row(0.5, 0.2, 0.4, 7, 7), mask, gamma=0.9, lam=0.8)
    assert dirty[0, :3].tolist() == pytest.approx(clean[0].tolist())
    assert dirty[0, 3:].tolist() == [0, 0]


def test_a_rows_advantage_does_not_depend_on_its_neighbours():
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    together = ppo.gae(rewards, values, mask, gamma=0.95, lam=0.9)
    for i in range(3):
        alone = ppo.gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], gamma=0.95, lam=0.9)
        assert torch.equal(together[i], alone[0])


def test_the_score_is_paid_at_the_last_token_and_the_kl_at_every_one():
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]])
    found = ppo.token_rewards(torch.tensor([3.2, 1.0]), kl, mask, beta=0.5)
    assert found[0].tolist() == pytest.approx([-0.05, -0.1, 3.05])
    assert found[1].tolist() == pytest.approx([0.8, 0, 0])


def test_the_kl_penalised_objective_of_the_worked_example():
    # reward 3.2, KL 2.1, beta 0.1: 2.99
    kl = row(0.7, 0.7, 0.7)
    assert ppo.token_rewards(torch.tensor([3.2]), kl, torch.ones(1, 3), 0.1).sum() == pytest.approx(2.99)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.0, 1.0, True),
        (1.0, -1.0, True),
        (1.3, 1.0, False),  # already much likelier, and good: no reason to go on
        (1.3, -1.0, True),  # much likelier, and bad: back
        (0.7, 1.0, True),  # much less likely, and good: back
        (0.7, -1.0, False),  # much less likely, and bad: enough
    ],
)
def test_clipping_stops_the_gradient_outside_the_trust_region_on_the_right_side_only(ratio, advantage, moves):
    log_probs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    ppo.policy_losses(log_probs, torch.zeros(1, 1), row(advantage), 0.2).sum().backward()
    assert log_probs.grad is not None
    expected = -ratio * advantage if moves else 0.0
    assert log_probs.grad.item() == pytest.approx(expected)


def test_a_policy_that_has_not_moved_has_ratio_one_and_no_kl():
    log_probs = torch.randn(2, 5)
    assert ppo.approximate_kl(log_probs, log_probs, torch.ones(2, 5)).item() == 0
    losses = ppo.policy_losses(log_probs, log_probs, torch.full((2, 5), 0.3), 0.2)
    assert torch.equal(losses, torch.full((2, 5), -0.3))


def test_the_approximate_kl_is_that_of_the_estimator():
    # log ratio ln 1.5 and ln 0.5: (0.5 - ln 1.5 + -0.5 - ln 0.5) / 2
    found = ppo.approximate_kl(torch.log(row(1.5, 0.5)), torch.zeros(1, 2), torch.ones(1, 2))
    assert found.item() == pytest.approx((-math.log(1.5) - math.log(0.5)) / 2, abs=1e-6)


def test_the_value_loss_takes_the_worse_of_plain_and_clipped():
    # old 0, return 1, clip .2: at .5 plain (.5)^2 = .25, clipped (.2 - 1)^2 = .64; at 1.5 plain .25, clipped .64
    found = ppo.value_losses(row(0.5, 1.5, 0.1), torch.zeros(1, 3), torch.ones(1, 3), 0.2)
    assert found[0].tolist() == pytest.approx([0.32, 0.32, 0.405])
    plain = ppo.value_losses(row(0.5), torch.zeros(1, 1), torch.ones(1, 1), None)
    assert plain.item() == pytest.approx(0.125)


def test_whitened_values_have_mean_zero_and_unit_variance_over_the_tokens():
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    white = ppo.whiten(torch.randn(2, 4) * 3 + 5, mask)
    chosen = white[mask.bool()]
    assert chosen.mean().item() == pytest.approx(0, abs=1e-6)
    assert chosen.var().item() == pytest.approx(1, abs=1e-5)
    assert white[~mask.bool()].abs().sum() == 0
    kept = ppo.whiten(torch.full((1, 3), 5.0) + row(-1, 0, 1), torch.ones(1, 3), shift_mean=False)
    assert kept.mean().item() == pytest.approx(5, abs=1e-5)


def test_explained_variance():
    returns, mask = row(1, 2, 3, 4), torch.ones(1, 4)
    assert ppo.explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert ppo.explained_variance(torch.full((1, 4), 2.5), returns, mask).item() == pytest.approx(0)
    assert ppo.explained_variance(row(4, 3, 2, 1), returns, mask).item() == pytest.approx(-3)


def test_a_fixed_coefficient_stays_and_a_steered_one_follows_its_target():
    fixed = ppo.KLController(0.1)
    fixed.update(100.0, 64)
    assert fixed.beta == 0.1
    steered = ppo.KLController(0.1, target=6.0, horizon=10_000)
    steered.update(12.0, 1000)  # error clipped to 0.2: 0.1 * (1 + 0.2 * 0.1)
    assert steered.beta == pytest.approx(0.102)
    steered.update(5.4, 1000)  # error -0.1
    assert steered.beta == pytest.approx(0.102 * 0.99)
