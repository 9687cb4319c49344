"""A router of frames that learns by trying: boundaries are drawn, and those with which a frame is painted better win.

H-Net's router learns from a gate on what its chunks carry. Where a painter reads the chunks that gradient says only
that more of everything is better: p is pushed to 1 wherever a chunk starts, whether that is a good place or not. So
this one is asked for draws instead. Each frame is cut in two ways, a boundary at each patch with its own probability,
both are painted, and the way with the smaller error becomes more likely: REINFORCE (Williams 1992), each draw's
baseline being the other one (Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!").

Shape suffixes: U frames, P patches, V values of a patch, D width d0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.boundaries import tied
from worldmodel.router import Routing, Threshold

HIDDEN = 64
FAINT = 1e-4  # mean squared difference below which one change is as good as another


class Trying(Threshold):
    """Scores pairs of neighbours: at first by how unlike they are, and from then on by what it has tried.

    Args:
        rate: as for `Threshold`.
        patches: P.
        width: D.
    """

    tie: Tensor

    def __init__(self, rate: float, patches: int, width: int) -> None:
        super().__init__(rate, patience=math.inf)
        self.width = width
        self.learned = nn.Sequential(nn.Linear(2 * width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        for parameter in self.learned[2].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("tie", tied(patches), persistent=False)

    def forward(
        self, x_UPX: Tensor, free_UP: Tensor, weight_UP: Tensor | None, uniform_UP: Tensor | None = None
    ) -> Routing:
        """Boundaries of some frames.

        Args:
            x_UPX: what the encoder says of each patch and, behind it, the patch itself: X = D + V.
            free_UP, weight_UP: as in `Router.forward`.
            uniform_UP: random numbers in (0, 1) to draw boundaries by; None takes those above 1/2.
        """
        h, patches = x_UPX.detach().split([self.width, x_UPX.shape[-1] - self.width], dim=-1)
        h = F.rms_norm(h, h.shape[-1:])
        unlike = ((patches[:, 1:] - patches[:, :-1]).square().mean(-1) + FAINT).log() / 2
        pairs = torch.cat([h[:, :-1], h[:, 1:]], dim=-1)
        logit = F.pad(unlike + self.learned(pairs).squeeze(-1), (1, 0)) + self.tie[: h.shape[1]]
        weight, learns = self.weighed(free_UP, weight_UP)
        if learns:
            self.renew(logit, weight, self.next_share())
        routing = self.cut(logit, free_UP, weight)
        if uniform_UP is not None:
            routing.boundary = uniform_UP < routing.probability
            chosen = torch.where(routing.boundary, logit - self.logit_tau, self.logit_tau - logit)
            routing.log_probability = (F.logsigmoid(chosen) * free_UP).sum(1)
        return routing
