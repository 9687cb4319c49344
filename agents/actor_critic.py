"""The actor and the critic: two small networks on the model's features, and what each is taught.

The losses are pure functions of tensors; where the tensors come from is `imagination.py`, when is `training.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.agents.actions import ActionDistribution, action_distribution, output_width
from worldmodel.specs import ActionSpec
from worldmodel.two_hot import TwoHot

Check = Callable[[float], bool]
# What each number of the config may be, in words and as a check.
ALLOWED: tuple[tuple[str, Check, tuple[str, ...]], ...] = (
    ("above 0", lambda x: x > 0, ("width", "layers", "value_range", "dreams", "horizon", "learning_rate", "clip")),
    ("of at least 2", lambda x: x >= 2, ("bins",)),
    ("of 0 or more", lambda x: x >= 0, ("entropy", "slow_weight")),
    ("between 0 and 1", lambda x: 0 <= x <= 1, ("lam", "return_rate")),
    ("of 0 or more and below 1", lambda x: 0 <= x < 1, ("unimix",)),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("discount", "slow_rate")),
)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Every knob of the agent and of its training in imagination.

    The critic cannot say a value beyond `largest_value`, 147 unless `value_range` is another: where discounted returns
    are larger than that, below or above 0 (Pendulum's go down to -1,400), all that lies beyond is worth the same to it.
    There, take a larger `value_range`, a smaller `discount` or smaller rewards.

    Raises:
        ValueError: a number makes no sense; the sentence names its field.
    """

    width: int = 128  # of the hidden layers
    layers: int = 2  # hidden layers of the actor, and of the critic
    bins: int = 41  # of the critic's two-hot
    value_range: float = 5.0  # symlog of the largest value the critic can say: 5 is 147
    unimix: float = 0.01  # share of the uniform policy in each choice: a floor under the entropy

    dreams: int = 256  # rows imagined side by side, each update
    horizon: int = 15  # steps of a dream
    discount: float = 0.99
    lam: float = 0.95  # 0 trusts the critic after one step, 1 only at the horizon
    entropy: float = 3e-4  # weight of the entropy bonus, against advantages of a size near 1
    slow_rate: float = 0.02  # share of the critic that the slow critic takes over, each update
    slow_weight: float = 1.0  # of the loss that holds the critic near the slow critic
    return_rate: float = 0.01  # share of an update's percentiles that the running ones take over
    learning_rate: float = 1e-3
    clip: float = 10.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        whole = {f.name for f in dataclasses.fields(self) if isinstance(f.default, int)}
        for words, fits, names in ALLOWED:
            for name in names:
                value, kinds = getattr(self, name), (int,) if name in whole else (int, float)
                number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
                if not (number and fits(value)):
                    wanted = "a whole number" if name in whole else "a number"
                    raise ValueError(f"AgentConfig: {name} must be {wanted} {words}, not {value!r}")

    @property
    def largest_value(self) -> float:
        """The largest value that the critic can say; the smallest is its negative."""
        return math.expm1(self.value_range)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AgentConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is unknown, or its number makes no sense.
        """
        if unknown := set(data) - {f.name for f in dataclasses.fields(cls)}:
            raise ValueError(f"agent config has a field that this version does not know: {', '.join(sorted(unknown))}")
        return cls(**data)


def mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """Linear, RMSNorm, SiLU, `layers` times, then a linear layer that starts at zero.

    Zero outputs mean a uniform policy and a value of 0: nothing to unlearn, and no first actions by accident.
    """
    parts: list[nn.Module] = [nn.RMSNorm(inputs, elementwise_affine=False)]
    for i in range(layers):
        parts += [nn.Linear(width if i else inputs, width, bias=False), nn.RMSNorm(width), nn.SiLU()]
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*parts, last)


class ActorCritic(nn.Module):
    """Actor, critic, slow critic and the running scale of the returns.

    Args:
        features: width of the model's features.
        action: what an action looks like.
        config: sizes, and the constants of training.
    """

    return_low: Tensor
    return_high: Tensor
    updates: Tensor

    def __init__(self, features: int, action: ActionSpec, config: AgentConfig | None = None) -> None:
        super().__init__()
        config = AgentConfig() if config is None else config
        self.features, self.action, self.config = features, action, config
        self.actor = mlp(features, config.width, config.layers, output_width(action))
        self.critic = mlp(features, config.width, config.layers, config.bins)
        self.slow_critic = mlp(features, config.width, config.layers, config.bins)
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self.slow_critic.requires_grad_(False)
        self.two_hot = TwoHot(config.bins, -config.value_range, config.value_range)
        self.register_buffer("return_low", torch.zeros(()))  # running 5th percentile
        self.register_buffer("return_high", torch.zeros(()))  # running 95th percentile
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def policy(self, feature: Tensor) -> ActionDistribution:
        """The distribution over actions at `feature (..., F)`."""
        return action_distribution(self.action, self.actor(feature.float()), self.config.unimix)

    def value(self, feature: Tensor) -> Tensor:
        """The expected return `(...)` at `feature (..., F)`."""
        return self.two_hot.mean(self.critic(feature.float()))

    def return_scale(self) -> Tensor:
        """What advantages are divided by: the spread of the returns, but at least 1, so small noise stays small."""
        return (self.return_high - self.return_low).clamp_min(1.0)

    @torch.no_grad()
    def track_returns(self, returns: Tensor, weight: Tensor) -> None:
        """Moves the running percentiles of the returns by one update. The first updates are a plain average.

        Args:
            returns: any shape.
            weight: the same shape; what comes after an episode's end (weight near 0) is nobody's return.
        """
        same_shape(returns, weight)
        rate = torch.clamp(1 / (self.updates + 1), min=self.config.return_rate)
        low, high = torch.quantile(returns[weight > 0.1].float(), returns.new_tensor([0.05, 0.95]))
        self.return_low.lerp_(low, rate)
        self.return_high.lerp_(high, rate)

    @torch.no_grad()
    def after_update(self) -> None:
        """Lets the slow critic follow by one step. To be called once after every optimiser step."""
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters()):
            slow.lerp_(fast, self.config.slow_rate)
        self.updates += 1


def actor_loss(log_prob: Tensor, entropy: Tensor, advantage: Tensor, weight: Tensor, entropy_weight: float) -> Tensor:
    """REINFORCE with an entropy bonus; the same for every kind of action.

    Args:
        log_prob: `(H, B)` of the actions taken, with gradient.
        entropy: `(H, B)` of the policy, with gradient.
        advantage: `(H, B)` return minus value, scaled; taken as a constant.
        weight: `(H, B)` from `step_weights`; taken as a constant.
        entropy_weight: what one nat is worth.

    Returns:
        `()` the mean loss.
    """
    same_shape(log_prob, entropy, advantage, weight)
    return -(weight.detach() * (advantage.detach() * log_prob + entropy_weight * entropy)).mean()


def critic_loss(
    two_hot: TwoHot, logits: Tensor, returns: Tensor, slow_values: Tensor, weight: Tensor, slow_weight: float
) -> Tensor:
    """Cross-entropy with the returns, and with what the slow critic says.

    Args:
        two_hot: the critic's bins.
        logits: `(H, B, bins)` of the critic, with gradient.
        returns: `(H, B)` λ-returns.
        slow_values: `(H, B)` of the slow critic.
        weight: `(H, B)` from `step_weights`.
        slow_weight: how strongly the critic is held near the slow critic.

    Returns:
        `()` the mean loss.
    """
    same_shape(returns, slow_values, weight)
    loss = two_hot.loss(logits, returns) + slow_weight * two_hot.loss(logits, slow_values)
    return (weight.detach() * loss).mean()


def same_shape(*tensors: Tensor) -> None:
    """Raises unless all shapes are equal: a loss that broadcasts still falls, and teaches nothing."""
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"shapes differ: {', '.join(str(tuple(t.shape)) for t in tensors)}")
