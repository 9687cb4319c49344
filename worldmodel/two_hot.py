"""A number as a distribution over bins: regression by classification, for rewards and values of any scale.

The bins lie evenly in symlog space, so they are dense near 0 and wide far out. A target is split between its two
neighbouring bins so that the expectation over the bins is the target itself, not a rounded or squashed one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """`sign(x) log(1 + |x|)`: the identity near 0, a logarithm far out."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """Turns logits over bins into a number, and a number into a loss on the logits. It has no parameters.

    Args:
        bins: how many.
        low, high: symlog of the outermost bins; the default reaches from -147 to 147. Targets beyond are clamped.

    Attributes:
        values: `(bins,)` float32, the number that each bin stands for.
    """

    values: Tensor

    def __init__(self, bins: int = 41, low: float = -5.0, high: float = 5.0) -> None:
        super().__init__()
        if bins < 2 or not low < high:
            raise ValueError(f"two-hot needs at least 2 bins and low < high, not {bins} bins from {low} to {high}")
        self.bins = bins
        self.symmetric = low == -high
        grid = torch.linspace(low, high, bins, dtype=torch.float64)
        if self.symmetric:
            grid = (grid - grid.flip(0)) / 2  # linspace rounds; mirrored bins must cancel to the last bit
        # Not persistent: the bins follow from the config, and a checkpoint should not contradict it.
        self.register_buffer("values", symexp(grid).float(), persistent=False)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy between the logits and the two-hot target.

        Args:
            logits: `(..., bins)`.
            target: `(...)`, in the units of the data (no symlog).

        Returns:
            `(...)` float32, one loss an element.
        """
        if logits.shape != (*target.shape, self.bins):
            raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(target.shape)}")
        logits = logits.float()
        target = target.detach().float().clamp(self.values[0], self.values[-1])
        above = torch.searchsorted(self.values, target.contiguous()).clamp(1, self.bins - 1)
        below = above - 1
        left, right = self.values[below], self.values[above]
        weight = (target - left) / (right - left)  # of the bin above
        picked = logits.gather(-1, torch.stack([below, above], -1))
        return logits.logsumexp(-1) - (1 - weight) * picked[..., 0] - weight * picked[..., 1]

    def mean(self, logits: Tensor) -> Tensor:
        """The expected number. Zero logits give exactly 0 when `low = -high`.

        Args:
            logits: `(..., bins)`.

        Returns:
            `(...)` float32.
        """
        probs = logits.float().softmax(-1)
        if self.symmetric:  # mirrored bins first: summing large numbers that should cancel leaves a rounding error
            probs = (probs - probs.flip(-1)) / 2
        return (probs * self.values).sum(-1)
