"""Boundaries by surprise: a chunk is full where as much has come together as nobody could foretell.

The Byte Latent Transformer (Pagnoni et al. 2024) cuts text where a small language model is unsure of the next byte. So
here, for pictures: a small causal network foretells each patch from those before it in the frame, and what it gets
wrong is what the patch has to say. A chunk starts with the patch by which the sum of that passes the next multiple of
tau, so that all chunks have about as much to say, be they one patch long or thirty. The network learns from pictures
alone, beside the model, and rests with the encoder: nothing pushes it to what would be convenient.

Shape suffixes: U frames, P patches, S of them in a sequence, V values of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import MambaConfig
from worldmodel.layers import Stack
from worldmodel.router import Routing, Threshold

WIDTH = 32
LEAST = 1e-6  # said by every patch, so that a frame without surprises is cut at a stride
HALVINGS = 16  # of the range in which log tau is looked for
FARTHEST = 16.0


class Foresight(nn.Module):
    """What each patch of a frame is, foretold from those before it.

    Args:
        patches: P.
        values: V.
        mamba: of its one layer.
    """

    def __init__(self, patches: int, values: int, mamba: MambaConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(values, WIDTH)
        self.first = nn.Parameter(torch.zeros(WIDTH))
        self.place = nn.Parameter(torch.randn(patches, WIDTH) * 0.5)
        self.stack = Stack("m1", WIDTH, heads=1, mamba=mamba, causal=True)
        self.out = nn.Linear(WIDTH, values)

    def forward(self, patches_UPV: Tensor) -> Tensor:
        """The squared error of each patch, summed over its values: `(U, P)`."""
        before = self.embed(patches_UPV[:, :-1])
        x = torch.cat([self.first.to(before.dtype).expand(len(before), 1, -1), before], dim=1) + self.place
        reset = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        reset[:, 0] = True
        said = self.out(F.silu(x + self.stack(x, reset)) + self.place)
        return (said - patches_UPV).float().square().sum(-1)


class Surprise(Threshold):
    """Starts a chunk with the patch by which the sum of surprises passes the next multiple of tau.

    `logit_tau` is the logarithm of tau. Arguments are those of `Threshold`.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(rate, patience=math.inf)

    def forward(self, surprise_US1: Tensor, free_US: Tensor, weight_US: Tensor | None) -> Routing:
        """Boundaries of some frames.

        Args:
            surprise_US1: what each patch has to say.
            free_US, weight_US: as in `Router.forward`.
        """
        said = (surprise_US1.detach().squeeze(-1).float() + LEAST) * free_US
        weight, learns = self.weighed(free_US, weight_US)
        if learns:
            self.logit_tau.lerp_(self._fitting(said, weight), self.next_share())
        p = torch.sigmoid(_passed_by(said, self.logit_tau))
        boundary = (p > 0.5) & (free_US > 0)
        total = weight.sum().clamp(min=1e-6)
        return Routing(boundary, p * free_US, p, (boundary * weight).sum() / total, (p * weight).sum() / total)

    def _fitting(self, said_US: Tensor, weight_US: Tensor) -> Tensor:
        """The least log tau that gives no more than the wanted rate, by halving."""
        low, high = torch.full_like(self.logit_tau, -FARTHEST), torch.full_like(self.logit_tau, FARTHEST)
        wanted = self.rate * weight_US.sum()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            many = ((_passed_by(said_US, middle) > 0) * weight_US).sum() > wanted
            low, high = torch.where(many, middle, low), torch.where(many, high, middle)
        return high


def _passed_by(said_US: Tensor, log_tau: Tensor) -> Tensor:
    """How far the sum up to each patch lies above the multiple of tau that was next before it; in units of tau."""
    each = said_US / log_tau.exp()
    so_far = each.cumsum(1)
    before = F.pad(so_far[:, :-1], (1, 0))
    return so_far - before.floor() - 1
