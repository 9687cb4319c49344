"""Distributions over actions of each kind, behind one interface.

Samples are made from uniform numbers that the caller brings, so the caller decides where chance comes from: a generator
in training, a key per row when acting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.specs import ActionSpec

TINY = 1e-6  # keeps log and the inverse normal away from 0 and 1
MIN_STD, MAX_STD = 0.1, 1.0  # of a box action, in units of half the box
STD_BIAS = 2.0  # zero outputs start at a wide, not a half-wide normal


@dataclass(frozen=True)
class ChoiceDistribution:
    """Independent categoricals: one for a discrete action, several for a multi-discrete one.

    Attributes:
        log_probs: one `(..., size)` tensor a choice, normalised.
        discrete: an action is a scalar `()`, not a vector `(n,)`.
    """

    log_probs: tuple[Tensor, ...]
    discrete: bool

    def sample(self, uniform: Tensor) -> Tensor:
        """Draws actions `(..., *action shape)` int64 by the Gumbel trick from `uniform (..., width)` in [0, 1)."""
        gumbel = -torch.log(-torch.log(uniform.clamp(TINY, 1 - TINY)))
        sizes = [p.shape[-1] for p in self.log_probs]
        return self._join([(p + g).argmax(-1) for p, g in zip(self.log_probs, gumbel.split(sizes, -1))])

    def mode(self) -> Tensor:
        """The most likely action, `(..., *action shape)`."""
        return self._join([p.argmax(-1) for p in self.log_probs])

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability `(...)` of `action (..., *action shape)`."""
        choices = (action,) if self.discrete else action.unbind(-1)
        parts = [p.gather(-1, c.unsqueeze(-1)).squeeze(-1) for p, c in zip(self.log_probs, choices)]
        return torch.stack(parts).sum(0)

    def entropy(self) -> Tensor:
        """Entropy `(...)` in nats, of all choices together."""
        return torch.stack([-(p.exp() * p).sum(-1) for p in self.log_probs]).sum(0)

    def _join(self, choices: list[Tensor]) -> Tensor:
        return choices[0] if self.discrete else torch.stack(choices, -1)


@dataclass(frozen=True)
class BoxDistribution:
    """Independent normals, cut off at the bounds of the box: every sample is a legal action, its density is exact.

    Attributes:
        mean, std: `(..., D)` in units where the box is [-1, 1].
        low, high: bounds of the box.
    """

    mean: Tensor
    std: Tensor
    low: float
    high: float

    def sample(self, uniform: Tensor) -> Tensor:
        """Draws actions `(..., D)` float32 by inverting the distribution function at `uniform (..., D)` in [0, 1)."""
        below, above = self._bounds()
        share = below + (above - below) * uniform
        x = self.mean + self.std * torch.special.ndtri(share.clamp(TINY, 1 - TINY))
        return self._to_box(x.clamp(-1, 1))

    def mode(self) -> Tensor:
        """The most likely action, `(..., D)`."""
        return self._to_box(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density `(...)` of `action (..., D)`, up to the constant volume of the box."""
        x = (action - self.low) * (2 / (self.high - self.low)) - 1
        z = (x - self.mean) / self.std
        return (-0.5 * z**2 - self.std.log() - 0.5 * math.log(2 * math.pi) - self._mass().log()).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy `(...)` in nats, of the action in units where the box is [-1, 1]."""
        lower, upper = (-1 - self.mean) / self.std, (1 - self.mean) / self.std
        mass = self._mass()
        density = [torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) for z in (lower, upper)]
        bend = (lower * density[0] - upper * density[1]) / (2 * mass)
        return (0.5 * math.log(2 * math.pi * math.e) + self.std.log() + mass.log() + bend).sum(-1)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.special.ndtr((edge - self.mean) / self.std) for edge in (-1, 1))  # type: ignore[return-value]

    def _mass(self) -> Tensor:
        below, above = self._bounds()
        return above - below  # at least 0.47: the mean is in the box and the spread is below its half-width

    def _to_box(self, x: Tensor) -> Tensor:
        return (self.low + (x + 1) * (0.5 * (self.high - self.low))).clamp(self.low, self.high)


ActionDistribution = ChoiceDistribution | BoxDistribution


def output_width(spec: ActionSpec) -> int:
    """Numbers that a network puts out to describe a distribution over these actions."""
    return 2 * spec.width if spec.kind == "box" else spec.width


def action_distribution(spec: ActionSpec, output: Tensor, unimix: float = 0.0) -> ActionDistribution:
    """Reads a network's output as a distribution over actions.

    Args:
        spec: the kind of action.
        output: `(..., output_width(spec))`. Zeros mean uniform choices, or a wide normal in the middle of the box.
        unimix: share of the uniform distribution mixed into each choice: a floor under the entropy. Ignored for boxes,
            whose spread has its own floor.
    """
    output = output.float()
    if spec.kind == "box":
        mean, spread = output.chunk(2, -1)
        std = MIN_STD + (MAX_STD - MIN_STD) * torch.sigmoid(spread + STD_BIAS)
        return BoxDistribution(torch.tanh(mean), std, spec.low, spec.high)
    log_probs = []
    for logits in output.split(list(spec.sizes), -1):
        probs = (1 - unimix) * logits.softmax(-1) + unimix / logits.shape[-1]
        log_probs.append(probs.log() if unimix else logits.log_softmax(-1))
    return ChoiceDistribution(tuple(log_probs), spec.kind == "discrete")
