"""What time alone says of a reward's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.two_hot import symexp, symlog


class Clock(nn.Module):
    """The size of a reward as time alone tells it: its symlog is linear in `t / (t + scale)`, for a few scales.

    MiniGrid pays less the later it is, and no frame shows how late it is. A model without a clock learns the few wins
    of random play by heart, each with its size, and whoever acts in its dream then waits until the past resembles the
    best paid one. What time explains need not be remembered. Three numbers are found by least squares over all rewards
    met in training, not by gradients: so they are right from the first wins on, before those are known by heart.
    """

    SCALES = (64.0, 512.0, 4096.0)  # an agent sees all of them; the first is left out of the fit:
    FITTED = SCALES[1:]  # random play never wins early, and what slow hands say of later goes on into early
    RIDGE = (1e-7, 1e-7, 1e-12)  # a slope has to be seen; without one, the mean holds

    scales: Tensor
    ridge: Tensor
    moments: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        n = len(self.RIDGE)
        self.register_buffer("scales", torch.tensor(self.SCALES), persistent=False)
        self.register_buffer("ridge", torch.tensor(self.RIDGE, dtype=torch.float64).diag(), persistent=False)
        self.register_buffer("moments", torch.zeros(n, n + 1, dtype=torch.float64))  # sums of x x and of x symlog(size)
        self.register_buffer("weight", torch.zeros(n))

    def hands(self, elapsed: Tensor) -> Tensor:
        """`t / (t + scale)` of each scale, `(..., scales)`, `elapsed` `(...)` int64 actions after the episode began."""
        t = elapsed.unsqueeze(-1).float()
        return t / (t + self.scales)

    def _inputs(self, elapsed: Tensor) -> Tensor:
        fitted = self.hands(elapsed)[..., -len(self.FITTED) :] - 0.5
        return torch.cat([fitted, torch.ones_like(fitted[..., :1])], dim=-1)

    def forward(self, elapsed: Tensor) -> Tensor:
        """The size `(...)`; the argument is that of `hands`."""
        return symexp((self._inputs(elapsed) * self.weight).sum(-1))

    @torch.no_grad()
    def fit(self, elapsed: Tensor, reward: Tensor, arrived: Tensor) -> None:
        """Take in rewards `(...)`, those that are not 0, of the frames `(...)` to which an action led."""
        x = self._inputs(elapsed).double() * (arrived & (reward != 0)).unsqueeze(-1)
        y = torch.cat([x, symlog(reward).double().unsqueeze(-1)], dim=-1)
        self.moments += x.flatten(0, -2).T @ y.flatten(0, -2)
        mean = self.moments / self.moments[-1, -2].clamp(min=1)
        self.weight.copy_(torch.linalg.solve_ex(mean[:, :-1] + self.ridge, mean[:, -1]).result)
