import pytest
import torch

from worldmodel.agents.returns import lambda_returns, step_weights


def brute_force(rewards, discounts, values, lam):
    """The definition: a mixture of n-step returns, each computed from scratch."""
    horizon = len(rewards)

    def n_step(t, n):
        total, discount = 0.0, 1.0
        for k in range(t, t + n):
            total += discount * rewards[k]
            discount *= discounts[k]
        return total + discount * values[t + n]

    returns = []
    for t in range(horizon):
        longest = horizon - t
        mixture = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, longest))
        returns.append(mixture + lam ** (longest - 1) * n_step(t, longest))
    return torch.stack(returns)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_equals_the_brute_force_mixture_of_n_step_returns(lam, horizon):
    generator = torch.Generator().manual_seed(horizon)
    rewards, discounts = torch.rand(2, horizon, 5, generator=generator, dtype=torch.float64)
    values = torch.randn(horizon + 1, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        lambda_returns(rewards, discounts, values, lam), brute_force(rewards, discounts, values, lam)
    )


def test_bootstrap_is_one_step_ahead():
    # λ = 0: R_t = r_{t+1} + d_{t+1} v_{t+1}, each term told apart by its digits
    rewards, discounts = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])
    values = torch.tensor([1000.0, 10.0, 100.0])
    assert lambda_returns(rewards, discounts, values, 0.0).tolist() == [1 + 0.5 * 10, 2 + 0.25 * 100]


def test_the_start_value_is_not_used_and_the_last_one_is():
    rewards, discounts, values = torch.zeros(3), torch.full((3,), 0.5), torch.tensor([9.0, 0.0, 0.0, 8.0])
    assert lambda_returns(rewards, discounts, values, 1.0).tolist() == [1.0, 2.0, 4.0]


def test_nothing_flows_back_over_a_termination():
    rewards = torch.tensor([0.0, 1.0, 50.0])
    discounts = torch.tensor([0.9, 0.0, 0.9])  # arriving at state 2 ends the episode
    values = torch.tensor([0.0, 0.0, 70.0, 80.0])
    assert lambda_returns(rewards, discounts, values, 1.0)[:2].tolist() == pytest.approx([0.9, 1.0])


def test_the_step_that_ends_the_episode_counts_and_later_ones_do_not():
    discounts = torch.tensor([[0.9], [0.0], [0.9], [0.9]])
    assert step_weights(discounts).squeeze(1).tolist() == pytest.approx([1.0, 0.9, 0.0, 0.0])


def test_shapes_that_would_broadcast_raise():
    with pytest.raises(ValueError, match="must be"):
        lambda_returns(torch.zeros(3, 1), torch.zeros(3, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="must be"):
        lambda_returns(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4))
