"""Where a chunk starts: a threshold that keeps its rate, and H-Net's router, whose scores it cuts.

The reference asks whether neighbouring vectors point apart, `p = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2`, and starts a
chunk where p > 1/2. Two things differ here, each for a failure that was seen:

* Neighbouring patches of a frame look alike, cos is near 1, and no boundary ever appears. So a running mean of the
  inputs is taken away first, and what is left is normed.
* The ratio loss alone lets the rate drift. So p is measured against tau, the (1 - rate)-quantile of p:
  `p' = sigmoid(logit p - logit tau)` with the threshold 1/2. Mean and tau are buffers, which evaluation and steps use
  as they are. The first training passes take both from their own positions, as in batch norm: those of the pass before
  would not do, learning pushes p on at every update, and the chunks were 1.2 to 2 times the wanted ones. Where scores
  stand still, so does the mean, and tau comes to rest at the mean of what the passes say.

Shape suffixes: B batch, L positions, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.kernels.routing import boundary_logit

SETTLED = 1000  # passes after which mean and tau move slowly, where scores never stand still
SLOW = 0.01  # share of a pass in them from then on
FOLLOWS = 10  # passes that count as the past of tau while the wanted rate moves


@dataclass
class Routing:
    """What the router said about a sequence.

    Attributes:
        boundary: `(B, L)` bool.
        probability: `(B, L)` fp32, the recalibrated p', 0 where the router may not decide.
        certainty: `(B, L)` p' everywhere.
        hard_rate, soft_rate: F and G, the share of boundaries and the mean of p'.
        ratio_loss: scalar, 1 at the wanted rate (H-Net eq. 10); None where nothing about the scores is learned.
        log_probability: `(B,)` of boundaries that were drawn; None where they were not.
    """

    boundary: Tensor
    probability: Tensor
    certainty: Tensor
    hard_rate: Tensor
    soft_rate: Tensor
    ratio_loss: Tensor | None = None
    log_probability: Tensor | None = None


def straight_through(probability: Tensor, boundary: Tensor) -> Tensor:
    """STE(c): 1 going forward; going back, the gradient of the router's confidence in what it chose."""
    confidence = torch.where(boundary, probability, 1.0 - probability)
    return 1.0 + (confidence - confidence.detach())


def weighted_quantile(value: Tensor, weight: Tensor, q: float | Tensor) -> Tensor:
    """Between the smallest value such that values up to it hold the share `q` of the weight, and the next larger one.

    Both flat. Between them, for what lies at a threshold to the bit is decided by rounding.
    """
    value, order = value.sort()
    total = weight[order].cumsum(0)
    last = len(value) - 1
    quantile = value[torch.searchsorted(total, q * total[-1]).clamp(max=last)]
    return quantile.lerp(value[torch.searchsorted(value, quantile, right=True).clamp(max=last)], 0.5)


def on_the_way(first: float, last: float, progress: float, depth: int = 0) -> float:
    """Where a target stands between its first value and its last: geometric, so that each step is the same factor.

    Args:
        first: 0 where the target does not move.
        last: reached at progress `1 / (1 + depth)`.
        progress: 0 to 1.
        depth: of the stage; frames are 0. Deeper stages arrive earlier.
    """
    share = min(1.0, progress * (1 + depth))
    return first ** (1 - share) * last**share if first else last


class Threshold(nn.Module):
    """Boundaries where a score, a logit, is above tau, its own (1 - rate)-quantile.

    Args:
        rate: wanted share of boundaries among the positions that may have one, in (0, 1).
        patience: passes that say tau whole, if scores do not stand still before.
    """

    rate: Tensor
    logit_tau: Tensor
    passes: Tensor
    still = False  # whether the scores of a frame no longer change
    fixed = False  # whether tau does not, either

    def __init__(self, rate: float, patience: float = SETTLED) -> None:
        super().__init__()
        self.patience = patience
        if not 0 < rate < 1:
            raise ValueError(f"a router's rate must lie between 0 and 1, not at {rate}")
        # Saved with the weights: it may be on its way to the rate that the config names.
        self.register_buffer("rate", torch.tensor(rate))
        self.register_buffer("logit_tau", torch.zeros(()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "rate", self.rate)  # older weights have none: it did not move then
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def each(self) -> list[Threshold | None]:
        """The router of each modality: itself, where there is one."""
        return [self]

    def aim(self, rate: float) -> None:
        """Move the wanted rate."""
        if not math.isclose(rate, self.rate.item(), rel_tol=1e-6):
            self.rate.fill_(rate)
            self.passes.clamp_(max=FOLLOWS)

    def weighed(self, free_BL: Tensor, weight_BL: Tensor | None) -> tuple[Tensor, bool]:
        """How often each position counts, and whether something is to be learned from that."""
        if weight_BL is None:
            return free_BL, False
        weight = weight_BL * free_BL
        return weight, self.training and not self.fixed and bool((weight > 0).any())

    def next_share(self) -> float:
        """By how much the next pass moves tau; counts it."""
        self.passes += 1
        if self.still:
            return 1 / self.passes.item()
        return 1.0 if self.passes <= self.patience else SLOW

    def renew(self, logit_BL: Tensor, weight_BL: Tensor, share: float) -> None:
        """Move tau by `share` to the quantile of some scores, each of which counts as often as its weight says."""
        counted = weight_BL > 0
        quantile = weighted_quantile(logit_BL.detach()[counted], weight_BL[counted], 1 - self.rate)
        self.logit_tau.lerp_(quantile, share)

    def cut(self, logit_BL: Tensor, free_BL: Tensor, weight_BL: Tensor) -> Routing:
        """Boundaries by their scores; arguments as in `Router.forward`, but the weights are 0 where nothing is free."""
        certainty = torch.sigmoid(logit_BL - self.logit_tau)
        p = certainty * free_BL
        boundary = p > 0.5
        total = weight_BL.sum().clamp(min=1e-6)
        return Routing(boundary, p, certainty, (boundary * weight_BL).sum() / total, (p * weight_BL).sum() / total)


class Router(Threshold):
    """Boundary probabilities between neighbouring vectors.

    Args:
        width: D.
        rate, patience: as for `Threshold`; patience is that of the mean, too.
    """

    mean: Tensor

    def __init__(self, width: int, rate: float, patience: float = SETTLED) -> None:
        super().__init__(rate, patience)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.q.weight)
        nn.init.eye_(self.k.weight)
        self.register_buffer("mean", torch.zeros(width))

    def raw_logit(self, before: Tensor, here: Tensor) -> Tensor:
        """logit p of a boundary at `here`, in fp32. Both `(..., D)`."""
        return boundary_logit(before, here, self.mean, self.q.weight, self.k.weight)

    def probability(self, before: Tensor, here: Tensor) -> Tensor:
        """p', recalibrated so that the threshold 1/2 gives the wanted rate."""
        return torch.sigmoid(self.raw_logit(before, here) - self.logit_tau)

    def forward(self, x_BLD: Tensor, free_BL: Tensor, weight_BL: Tensor | None) -> Routing:
        """Route a sequence.

        Args:
            x_BLD: the vectors.
            free_BL: where the router may decide; elsewhere p' is 0 and the caller forces what it likes. The first
                position is never free, there is nothing before it.
            weight_BL: how often each position counts in F, G, mean and tau (a frame stored once may occur often).
                None where nothing is to be learned from them: mean and tau stay as they are in training, too.
        """
        weight, learns = self.weighed(free_BL, weight_BL)
        if learns:
            share = self.next_share()
            if not self.still:
                of_all = (weight / weight.sum()).unsqueeze(-1)
                self.mean.lerp_((x_BLD.detach().float() * of_all).sum((0, 1)), share)
        logit = F.pad(self.raw_logit(x_BLD[:, :-1], x_BLD[:, 1:]), (1, 0))
        if learns:
            self.renew(logit, weight, share)
        routing = self.cut(logit, free_BL, weight)
        if not self.still:
            hard, soft, n = routing.hard_rate, routing.soft_rate, 1.0 / self.rate
            routing.ratio_loss = n / (n - 1) * ((n - 1) * hard * soft + (1 - hard) * (1 - soft))
        return routing
