"""Where chunks may start, beside a fixed stride and H-Net's router: plain rules to weigh it against.

`Change` starts a chunk where a patch is unlike the one before it, `Random` anywhere, `Motion` where a patch is unlike
itself when it was last new: at the same rate, with the same cap and the same report as the router, but with nothing to
learn, and so without a gate for a gradient.

Shape suffixes: U frames, B rows, T frames of a row, P patches, V values of a patch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels import noise
from worldmodel.router import Routing, Threshold

SMALLEST = 1e-8  # less than one step of one byte makes in a patch of a thousand
STILL = math.log(2 * SMALLEST)  # a patch that differs less than this stands still
EDGE = 1e-3  # tau lies this far below the scores that it is the quantile of
BINS, WIDTH = 512, (5 - STILL) / 512  # by which scores are counted
CONTENT, PLACE = 0, 1  # streams of noise


class Change(Threshold):
    """p' = d / (d + tau), for d the mean squared difference between a patch and the patch before it.

    Args:
        rate: as for `Threshold`.
        patches: P.
    """

    tie: Tensor
    still = True

    def __init__(self, rate: float, patches: int) -> None:
        super().__init__(rate)
        self.register_buffer("tie", tied(patches), persistent=False)

    def forward(self, patches_UPV: Tensor, free_UP: Tensor, weight_UP: Tensor | None) -> Routing:
        """Boundaries of some frames; arguments as in `Router.forward`."""
        d = (patches_UPV[:, 1:] - patches_UPV[:, :-1]).square().mean(-1)
        logit = F.pad((d + SMALLEST).log(), (1, 0)) + self.tie[: patches_UPV.shape[1]]
        weight, learns = self.weighed(free_UP, weight_UP)
        if learns:
            self.renew(logit, weight, self.next_share())
        return self.cut(logit, free_UP, weight)


def tied(patches: int) -> Tensor:
    """What is added to the scores of P `patches`: next to nothing, but different at each place.

    The patches of a grid world are of a few kinds, so many differences are equal; if tau fell among those, all or none
    would be boundaries. Their places decide, in the same way in every frame.
    """
    word = noise.row_hash(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), PLACE)
    return 1e-3 * noise.uniform(word, patches)[0]


class Motion(Threshold):
    """New where a patch is unlike what it was when it was last new; one that stands still never is.

    Many patches of a grid world differ by just as much. Where tau falls among those, all of them are new: to leave out
    one that has changed is to paint it wrong until it changes again. So tau is not the mean of what the passes say,
    which lies between two such kinds, but the quantile of all that they met.
    """

    met: Tensor
    still = True

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.register_buffer("met", torch.zeros(BINS, dtype=torch.float64))
        self.logit_tau.fill_(STILL - EDGE)  # until frames have shown their order, all that moves is new

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "met", self.met)  # older weights have none: tau alone
        super()._load_from_state_dict(state_dict, prefix, *args)

    def probability(self, logit: Tensor) -> Tensor:
        """p', above 1/2 where a patch is new, from what `moved` says of it."""
        return torch.sigmoid(logit - self.logit_tau)

    def renew(self, logit_BL: Tensor, weight_BL: Tensor, share: float) -> None:
        """Count how far patches moved, and put tau at the quantile of all that were counted since the first pass."""
        if share == 1:
            self.met.zero_()
        place = ((logit_BL.detach() - STILL) / WIDTH).long().clamp(0, BINS - 1)
        self.met.index_add_(0, place.flatten(), weight_BL.flatten().double())
        total = self.met.cumsum(0)
        quantile = torch.searchsorted(total, (1 - self.rate) * total[-1])
        self.logit_tau.copy_(STILL + WIDTH * quantile.clamp(max=BINS - 1) - EDGE)

    def forward(self, logit_BL: Tensor, free_BL: Tensor, weight_BL: Tensor | None) -> Routing:
        """Route patches along time by what `moved_since` says of them; the rest is as in `Router.forward`.

        A pass is cut where the passes before it say: how far a patch has moved depends on when it was new.
        """
        weight, learns = self.weighed(free_BL, weight_BL)
        routing = self.cut(logit_BL, free_BL, weight)
        if learns:
            self.renew(logit_BL, weight, self.next_share())
        return routing


def moved(before: Tensor, here: Tensor) -> Tensor:
    """How far patches are from what they were, a logit: the logarithm of the mean squared difference. `(..., V)`."""
    return ((here - before).float().square().mean(-1) + SMALLEST).log()


def moved_since(patches_BTPV: Tensor, reset_BT: Tensor, logit_tau: Tensor) -> Tensor:
    """How far each patch is from what it was when it was last new, and so from what is painted of it: `(B, T, P)`.

    Were it held against the frame before, what drifts slowly would never be new again.

    Args:
        patches_BTPV: of rows of frames.
        reset_BT: frames at which all patches are new.
        logit_tau: a patch that has moved by more is new.
    """
    held, said = patches_BTPV[:, 0], [torch.full_like(patches_BTPV[:, 0, :, 0], STILL, dtype=torch.float32)]
    for t in range(1, patches_BTPV.shape[1]):
        here = patches_BTPV[:, t]
        said.append(moved(held, here))
        new = (torch.sigmoid(said[-1] - logit_tau) > 0.5) | reset_BT[:, t, None]  # as `Threshold.cut` has it
        held = torch.where(new.unsqueeze(-1), here, held)
    return torch.stack(said, 1)


class Random(Threshold):
    """Boundaries drawn by a hash of the frame's content: the same frame always has the same ones."""

    def forward(self, patches_UPV: Tensor, free_UP: Tensor, weight_UP: Tensor | None) -> Routing:
        """Boundaries of some frames; arguments as in `Router.forward`."""
        key = content_key(patches_UPV)
        uniform = noise.uniform(noise.row_hash(key, torch.zeros_like(key), CONTENT), patches_UPV.shape[1])
        # The quantile of uniform numbers is known; tau stays at 0.
        logit = uniform.logit() - (1 - self.rate).logit()
        return self.cut(logit, free_UP, self.weighed(free_UP, weight_UP)[0])


def content_key(patches_UPV: Tensor) -> Tensor:
    """`(U,)` int64 that says what is in each frame: a sum of integers, which is the same in any order."""
    bits = patches_UPV.contiguous().view(torch.int32).flatten(1).long()
    place = torch.arange(bits.shape[1], device=bits.device)
    return (bits * (2 * noise.row_hash(place, torch.zeros_like(place), PLACE) + 1)).sum(1)
