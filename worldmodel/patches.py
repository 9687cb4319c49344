"""Observations to patches and back.

Shape suffixes: n frames, P patches, V values of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.curve import CURVES
from worldmodel.specs import ObservationSpec


class Patches(nn.Module):
    """Observations to normalised patches and back. Vectors are images one pixel wide; odd sizes are zero-padded.

    Args:
        spec: what an observation looks like.
        patch: side of a patch.
        order: in which the patches follow one another, a key of `CURVES`. Whoever sees patches sees them in this order.
    """

    offset: Tensor
    scale: Tensor
    order: Tensor | None
    place: Tensor | None
    part: Tensor
    mask = None  # no column of a patch belongs to somebody else

    def __init__(self, spec: ObservationSpec, patch: int, order: str = "raster") -> None:
        super().__init__()
        self.spec = spec
        self.H, self.W, self.C = spec.shape if len(spec.shape) == 3 else (spec.shape[0], 1, 1)
        self.ph, self.pw = patch, 1 if len(spec.shape) == 1 else patch
        self.rows, self.columns = -(-self.H // self.ph), -(-self.W // self.pw)
        self.count = self.rows * self.columns  # P
        self.counts = [self.count]
        self.values = self.ph * self.pw * self.C  # V
        cells = torch.tensor(CURVES[order](self.rows, self.columns))
        curved = order != "raster"  # which costs no gather
        self.register_buffer("order", cells if curved else None, persistent=False)  # the cell of each patch
        self.register_buffer("place", cells.argsort() if curved else None, persistent=False)  # the patch of each cell
        self.register_buffer("part", torch.zeros(self.count, dtype=torch.int64), persistent=False)  # see Modalities
        # One number for images and grids; one an entry for vectors, fitted to the data by `fit`.
        entries = (self.H, 1, 1) if spec.kind == "vector" else (1, 1, 1)
        self.register_buffer("offset", torch.full(entries, spec.offset))
        self.register_buffer("scale", torch.full(entries, spec.scale))

    @property
    def shown(self) -> Patches:
        """Itself; see `Modalities`."""
        return self

    def fit(self, observations: Tensor) -> None:
        """Set offset and scale of a vector's entries to the mean and deviation of real `observations` `(n, D)`."""
        if self.spec.kind == "vector":
            values = observations.float().view(-1, self.H, 1, 1)
            self.offset.copy_(values.mean(0))
            self.scale.copy_(values.std(0, correction=0).clamp(min=1e-3))  # not NaN where there is one alone

    def forward(self, frames: Tensor) -> Tensor:
        """`(n, *shape)` to `(n, P, V)`."""
        n = frames.shape[0]
        x = (frames.view(n, self.H, self.W, self.C).float() - self.offset) / self.scale
        x = F.pad(x, (0, 0, 0, self.columns * self.pw - self.W, 0, self.rows * self.ph - self.H))
        x = x.view(n, self.rows, self.ph, self.columns, self.pw, self.C).transpose(2, 3)
        x = x.reshape(n, self.count, self.values)
        return x if self.order is None else x[:, self.order]

    def inverse(self, patches: Tensor) -> Tensor:
        """`(n, P, V)` to `(n, *shape)` in the observation's own dtype, rounded and clipped for integers."""
        x = self._whole(patches)
        if self.spec.kind == "choice":
            return F.one_hot(x.argmax(-1), self.H).to(torch.uint8)
        x = (x.view(-1, self.H, self.W, self.C) * self.scale + self.offset).view(x.shape)
        return x.round().clamp(0, 255).to(torch.uint8) if self.spec.dtype == "uint8" else x

    def error(self, painted: Tensor, target: Tensor) -> Tensor:
        """How wrong painted patches `(n, P, V)` are: `(n,)` squared errors summed, or of a choice the cross-entropy."""
        if self.spec.kind == "choice":
            return F.cross_entropy(self._whole(painted), self._whole(target).argmax(-1), reduction="none")
        return (painted - target).square().sum((1, 2))

    def _whole(self, patches: Tensor) -> Tensor:
        """Patches `(n, P, V)` put together: `(n, *shape)`."""
        n = patches.shape[0]
        x = patches if self.place is None else patches[:, self.place]
        x = x.view(n, self.rows, self.columns, self.ph, self.pw, self.C).transpose(2, 3)
        x = x.reshape(n, self.rows * self.ph, self.columns * self.pw, self.C)[:, : self.H, : self.W]
        return x.reshape(n, *self.spec.shape)
