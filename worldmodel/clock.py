"""What time alone says of a reward's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.two_hot import symexp, symlog

SCALES = (64.0, 512.0, 4096.0)  # an agent sees all of them; the first is left out of the fit:
FITTED = SCALES[1:]  # random play never wins early, and what slow hands say of later goes on into early

NONE = 1e30  # symlog of the smallest reward before there is any, and minus that of the largest


def hands(elapsed: Tensor) -> Tensor:
    """`t / (t + scale)` of each scale, `(..., scales)`, `elapsed` `(...)` int64 actions after the episode began."""
    return torch.stack([elapsed / (elapsed + scale) for scale in SCALES], dim=-1)


class Clock(nn.Module):
    """The size of the rewards of one sign as time alone tells it: symlog is linear in `t / (t + scale)`.

    MiniGrid pays less the later it is, and no frame shows how late it is. A model without a clock learns the few wins
    of random play by heart, each with its size, and whoever acts in its dream then waits until the past resembles the
    best paid one. What time explains need not be remembered. Three numbers are found by least squares over all rewards
    met in training, not by gradients: so they are right from the first wins on, before those are known by heart.

    Where time explains little (several kinds of reward, each at its own time), the clock says little but the mean. It
    goes on falling or rising towards times before all rewards, by no more than half of what they span, but not behind.
    """

    moments: Tensor
    weight: Tensor
    latest: Tensor
    lowest: Tensor
    highest: Tensor
    ridge: Tensor

    def __init__(self) -> None:
        super().__init__()
        n = len(FITTED) + 1
        # Sums of z z, where z is the fitted hands, 1, and symlog of the size.
        self.register_buffer("moments", torch.zeros(n + 1, n + 1, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(n))
        self.register_buffer("latest", torch.zeros((), dtype=torch.int64))
        self.register_buffer("lowest", torch.tensor(NONE))
        self.register_buffer("highest", torch.tensor(-NONE))
        ridge = torch.tensor([1e-7] * len(FITTED) + [1e-12], dtype=torch.float64)  # a slope has to be seen
        self.register_buffer("ridge", ridge.diag(), persistent=False)

    def forward(self, elapsed: Tensor) -> Tensor:
        """The size `(...)` of a reward at a time `(...)` int64, in actions since the episode began; 0 at first."""
        said = (_inputs(torch.minimum(elapsed, self.latest)) * self.weight).sum(-1)
        beyond = (self.highest - self.lowest) / 2
        said = torch.maximum(torch.minimum(said, self.highest + beyond), self.lowest - beyond)
        return torch.where(self.highest < self.lowest, 0.0, symexp(said))

    @torch.no_grad()
    def fit(self, elapsed: Tensor, reward: Tensor, counts: Tensor) -> None:
        """Take in rewards `(...)`, those that count `(...)` bool."""
        size = symlog(reward)
        z = torch.cat([_inputs(elapsed), size.unsqueeze(-1)], dim=-1).double()
        z = torch.where(counts.unsqueeze(-1), z, 0.0).flatten(0, -2)
        self.moments += z.T @ z
        self.latest.copy_(torch.maximum(self.latest, torch.where(counts, elapsed, 0).max()))
        self.lowest.copy_(torch.minimum(self.lowest, torch.where(counts, size, NONE).min()))
        self.highest.copy_(torch.maximum(self.highest, torch.where(counts, size, -NONE).max()))

        mean = self.moments / self.moments[-2, -2].clamp(min=1)
        xx, xy, yy = mean[:-1, :-1], mean[:-1, -1], mean[-1, -1]
        w = torch.linalg.solve_ex(xx + self.ridge, xy).result
        variance, left = yy - xy[-1].square(), yy - 2 * (w @ xy) + w @ xx @ w
        explained = (1 - left / variance.clamp(min=1e-9)).clamp(0, 1)  # R squared
        slope = w[:-1] * explained**8  # what it explains in part only is better left to y
        self.weight.copy_(torch.cat([slope, (xy[-1] - slope @ xx[-1, :-1])[None]]))


def _inputs(elapsed: Tensor) -> Tensor:
    fitted = hands(elapsed)[..., -len(FITTED) :] - 0.5
    return torch.cat([fitted, torch.ones_like(fitted[..., :1])], dim=-1)
