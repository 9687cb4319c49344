"""What an imagined step is worth: λ-returns, and how much each step counts in the losses.

Timing, for a dream of H steps from a start state (index 0):

    features   f_0   f_1   ...   f_H          H+1 of them, a value each
    actions      a_0   a_1 ...                H, a_t is taken at f_t
    rewards        r_1   r_2 ... r_H          H, row t of the tensor is r_{t+1}: paid on arriving at f_{t+1}
    discounts      d_1   d_2 ... d_H          H, row t is γ · P(the episode goes on after arriving at f_{t+1})
"""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(rewards: Tensor, discounts: Tensor, values: Tensor, lam: float = 0.95) -> Tensor:
    """`R_t = r_{t+1} + d_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1})` with `R_H = v_H`.

    The bootstrap is one step ahead: `R_t` leans on the value of the state that `a_t` led to.

    Args:
        rewards: `(H, ...)`, row t paid on arriving at state t+1.
        discounts: `(H, ...)`, row t is the discount times the probability of going on after state t+1.
        values: `(H + 1, ...)`, of states 0 to H. `values[0]` is not used.
        lam: 0 bootstraps at once, 1 only at the end.

    Returns:
        `(H, ...)` the returns of states 0 to H-1.
    """
    if rewards.shape != discounts.shape or values.shape != (len(rewards) + 1, *rewards.shape[1:]):
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, discounts {tuple(discounts.shape)} and values {tuple(values.shape)} "
            "must be (H, ...), (H, ...) and (H + 1, ...)"
        )
    returns = torch.empty_like(values[1:])
    following = values[-1]
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * ((1 - lam) * values[t + 1] + lam * following)
        returns[t] = following
    return returns


def step_weights(discounts: Tensor) -> Tensor:
    """How much the choice at each state counts: the product of the discounts of the EARLIER steps.

    State 0 counts fully. A step's own discount is left out: else the very action that ends an episode at the goal
    would get no gradient.

    Args:
        discounts: `(H, ...)` as in `lambda_returns`.

    Returns:
        `(H, ...)` weights of states 0 to H-1.
    """
    return torch.cat([torch.ones_like(discounts[:1]), discounts[:-1]]).cumprod(0)
