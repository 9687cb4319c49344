"""What time alone says of a reward's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.two_hot import symexp, symlog

SCALES = (64.0, 512.0, 4096.0)  # an agent sees all of them; the first is left out of the fit:
FITTED = SCALES[1:]  # random play never wins early, and what slow hands say of later goes on into early
NONE = 1e30  # symlog of the smallest reward before there is any, and minus that of the largest


class Clock(nn.Module):
    """The size of rewards above 0, and of those below, as time alone tells it: symlog is linear in `t / (t + scale)`.

    MiniGrid pays less the later it is, and no frame shows how late it is. A model without a clock learns the few wins
    of random play by heart, each with its size, and whoever acts in its dream then waits until the past resembles the
    best paid one. What time explains need not be remembered. Three numbers a sign are found by least squares over all
    rewards met in training, not by gradients: so they are right from the first wins on, before those are known by
    heart. What is paid and what is charged have nothing to do with each other: crashes come early, wins late.

    Where time explains little (several kinds of reward, each at its own time), the clock says little but the mean. It
    goes on falling or rising towards times before all rewards, by no more than half of what they span, but not behind.

    Attributes:
        moments: `(2, n + 1, n + 1)` float64 sums of z z, where z is the fitted hands, 1, and symlog of the size.
        slope, base: `(2, n - 1)` and `(2,)`, what is said of the hands.
        latest: `(2,)` int64, when the last reward of each sign came, at most.
        lowest, highest: `(2,)` symlog of what they were.
        floor, ceiling: `(2,)` symlog of what may be said.
    """

    scales: Tensor
    ridge: Tensor
    moments: Tensor
    slope: Tensor
    base: Tensor
    latest: Tensor
    lowest: Tensor
    highest: Tensor
    floor: Tensor
    ceiling: Tensor

    def __init__(self) -> None:
        super().__init__()
        n = len(FITTED) + 1
        self.register_buffer("scales", torch.tensor(SCALES), persistent=False)
        ridge = torch.tensor([1e-7] * len(FITTED) + [1e-12], dtype=torch.float64)  # a slope has to be seen
        self.register_buffer("ridge", ridge.diag(), persistent=False)
        self.register_buffer("moments", torch.zeros(2, n + 1, n + 1, dtype=torch.float64))
        self.register_buffer("slope", torch.zeros(2, n - 1))
        self.register_buffer("base", torch.zeros(2))
        self.register_buffer("latest", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("lowest", torch.full((2,), NONE))
        self.register_buffer("highest", torch.full((2,), -NONE))
        self.register_buffer("floor", torch.zeros(2))
        self.register_buffer("ceiling", torch.zeros(2))

    def hands(self, elapsed: Tensor) -> Tensor:
        """`t / (t + scale)` of each scale, `(..., scales)`, `elapsed` `(...)` int64 actions after the episode began."""
        t = elapsed.unsqueeze(-1)
        return t / (t + self.scales)

    def forward(self, elapsed: Tensor) -> Tensor:
        """Sizes `(..., 2)` of a reward above 0 and of one below at a time `(...)`; 0 before any came."""
        known = torch.minimum(elapsed.unsqueeze(-1), self.latest).unsqueeze(-1)
        said = (known / (known + self.scales[-len(FITTED) :]) * self.slope).sum(-1) + self.base
        return symexp(torch.clamp(said, self.floor, self.ceiling))

    @torch.no_grad()
    def fit(self, elapsed: Tensor, reward: Tensor, arrived: Tensor) -> None:
        """Take in the rewards `(...)`, those that are not 0, of the frames `(...)` bool to which an action led."""
        counts = (arrived & torch.stack([reward > 0, reward < 0])).flatten(1)  # (2, N)
        size, t = symlog(reward).flatten(), elapsed.flatten()
        self.latest.copy_(torch.maximum(self.latest, torch.where(counts, t, 0).amax(1)))
        self.lowest.copy_(torch.minimum(self.lowest, torch.where(counts, size, NONE).amin(1)))
        self.highest.copy_(torch.maximum(self.highest, torch.where(counts, size, -NONE).amax(1)))
        beyond = (self.highest - self.lowest) / 2
        self.floor.copy_(torch.where(beyond < 0, 0.0, self.lowest - beyond))
        self.ceiling.copy_(torch.where(beyond < 0, 0.0, self.highest + beyond))

        fitted = self.hands(t)[:, -len(FITTED) :] - 0.5
        z = torch.cat([fitted, torch.ones_like(size)[:, None], size[:, None]], dim=1).double()
        z = torch.where(counts.unsqueeze(-1), z, 0.0)
        self.moments += z.mT @ z
        mean = self.moments / self.moments[:, -2:-1, -2:-1].clamp(min=1)
        xx, xy, yy = mean[:, :-1, :-1], mean[:, :-1, -1:], mean[:, -1, -1]
        w = torch.linalg.solve_ex(xx + self.ridge, xy).result  # (2, n, 1)
        variance = yy - xy[:, -1, 0].square()
        left = yy + (w.mT @ (xx @ w - 2 * xy))[:, 0, 0]
        explained = (1 - left / variance.clamp(min=1e-9)).clamp(0, 1)  # R squared
        slope = w[:, :-1, 0] * explained[:, None] ** 8  # what it explains in part only is better left to y
        self.slope.copy_(slope)
        self.base.copy_(xy[:, -1, 0] - (slope * (xx[:, -1, :-1] + 0.5)).sum(1))
