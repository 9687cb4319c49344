"""A dream as training data: the actor acts, the world model answers in latents, and no pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from worldmodel.agents.actions import ActionDistribution
from worldmodel.kernels.noise import row_hash, uniform
from worldmodel.specs import ActionSpec

ACTION_STREAM = 1_000_003  # far from the streams that the model draws from


class HasFeature(Protocol):
    """A world model's state, of which the dream asks no more than what the agent sees there."""

    @property
    def feature(self) -> Tensor: ...


State = TypeVar("State", bound=HasFeature)


class Step(Protocol):
    """What the dream needs of a model's `StepOutput`."""

    @property
    def feature(self) -> Tensor: ...
    @property
    def reward_mean(self) -> Tensor: ...
    @property
    def terminated_probability(self) -> Tensor: ...


class Imaginer(Protocol[State]):
    """What the dream needs of a world model."""

    def imagine(self, state: State, action: Tensor) -> tuple[State, Step]: ...


class Actor(Protocol):
    """What the dream needs of an agent."""

    action: ActionSpec

    def policy(self, feature: Tensor) -> ActionDistribution: ...


@dataclass(frozen=True)
class Dream:
    """`B` dreams of `H` steps, time first. Row t of `rewards` and `continues` belongs to arriving at `features[t + 1]`.

    Attributes:
        features: `(H + 1, B, F)` float32, `features[0]` of the start states.
        actions: `(H, B, *action shape)`, `actions[t]` was taken at `features[t]`.
        rewards: `(H, B)` expected rewards.
        continues: `(H, B)` probabilities that the episode goes on.
    """

    features: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor


def action_noise(keys: Tensor, counter: int | Tensor, width: int) -> Tensor:
    """`(B, width)` uniform numbers for the actions of step `counter`, from `keys (B,)` int64: each row has its own."""
    return uniform(row_hash(keys, torch.as_tensor(counter, device=keys.device), ACTION_STREAM), width)


@torch.no_grad()
def imagine(model: Imaginer[State], agent: Actor, state: State, horizon: int, keys: Tensor) -> Dream:
    """Lets the agent act in the dream for `horizon` steps; nothing here has a gradient.

    Expected rewards and continuation probabilities stand in for sampled ones: the same on average, with less noise. A
    dream therefore never stops; what comes after a probable end has little weight.

    Args:
        model: the world model.
        agent: has the policy, and knows what an action looks like.
        state: B states to start from.
        horizon: steps.
        keys: `(B,)` int64, where the chance in the actions comes from. The model's own chance is part of `state`.
    """
    features, actions, rewards, continues = [state.feature.float()], [], [], []
    for t in range(horizon):
        action = agent.policy(features[-1]).sample(action_noise(keys, t, agent.action.width))
        state, out = model.imagine(state, action)
        features.append(out.feature.float())
        actions.append(action)
        rewards.append(out.reward_mean.float())
        continues.append(1 - out.terminated_probability.float())
    return Dream(torch.stack(features), torch.stack(actions), torch.stack(rewards), torch.stack(continues))
