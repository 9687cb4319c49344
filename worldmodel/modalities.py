"""Observations of several modalities: cut into patches each by itself, side by side in one sequence.

A record holds the bytes of its parts one behind the other. Each modality has patches of its own, columns of its own in
the embedding and in what is painted, a router and a compression target of its own; and a chunk never reaches from one
into the next. From the chunks on there is one sequence, for everybody to look at.

Shape suffixes: n frames, P patches of all modalities, S of them in a sequence, V values of a patch, U frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.patches import Patches
from worldmodel.router import Routing, Threshold
from worldmodel.specs import ObservationSpec

TYPES = {"uint8": torch.uint8, "float32": torch.float32}


class Modalities(nn.Module):
    """Like `Patches`, for records: those of the parts, one behind the other.

    Attributes:
        count, counts: P, and the patches of each modality.
        values: V. Those of each modality have columns of their own, and zeros in the others'.
        part: `(P,)` int64, the modality that each patch belongs to.
        mask: `(P, V)` bool, the columns that count.
    """

    part: Tensor
    mask: Tensor

    def __init__(self, spec: ObservationSpec, sizes: tuple[int, ...], order: str) -> None:
        super().__init__()
        self.spec = spec
        self.parts = nn.ModuleList([Patches(part, size, order) for part, size in zip(spec.parts, sizes, strict=True)])
        self.counts = [patches.count for patches in self._patches()]
        self.count, self.values = sum(self.counts), sum(patches.values for patches in self._patches())
        part = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        column = torch.cat([torch.full((patches.values,), i) for i, patches in enumerate(self._patches())])
        self.register_buffer("part", part, persistent=False)
        self.register_buffer("mask", part[:, None] == column, persistent=False)

    def _patches(self) -> list[Patches]:
        return [part for part in self.parts if isinstance(part, Patches)]

    @property
    def shown(self) -> Patches:
        """The first of them, that of which pictures are made."""
        return self._patches()[0]

    def fit(self, observations: Tensor) -> None:
        """See `Patches.fit`; of vectors only."""
        for patches, place in zip(self._patches(), self.spec.places):
            if patches.spec.kind == "vector":
                patches.fit(self._view(observations, patches.spec, place))

    def forward(self, frames: Tensor) -> Tensor:
        """`(n, bytes)` uint8 to `(n, P, V)`."""
        cut, before = [], 0
        for patches, place in zip(self._patches(), self.spec.places):
            own = patches(self._view(frames, patches.spec, place))
            cut.append(F.pad(own, (before, self.values - before - patches.values)))
            before += patches.values
        return torch.cat(cut, dim=1)

    def inverse(self, patches_nPV: Tensor) -> Tensor:
        """`(n, P, V)` to `(n, bytes)` uint8."""
        each = (patches.inverse(own.float()) for patches, own in self._apart(patches_nPV))
        return torch.cat([values.flatten(1).contiguous().view(torch.uint8) for values in each], dim=1)

    def error(self, painted_nPV: Tensor, target_nPV: Tensor) -> Tensor:
        """See `Patches.error`; the sum over modalities."""
        pairs = zip(self._apart(painted_nPV), self._apart(target_nPV))
        return torch.stack([patches.error(painted, target) for (patches, painted), (_, target) in pairs]).sum(0)

    def _apart(self, patches_nPV: Tensor) -> Iterator[tuple[Patches, Tensor]]:
        """The patches of each modality, in its own columns: `(n, own P, own V)`."""
        before = 0
        for patches, own in zip(self._patches(), patches_nPV.split(self.counts, dim=1)):
            yield patches, own[..., before : before + patches.values]
            before += patches.values

    @staticmethod
    def _view(frames: Tensor, spec: ObservationSpec, place: slice) -> Tensor:
        own = frames[:, place].flatten().clone()  # bytes are numbers only where numbers may begin
        return own.view(TYPES[spec.dtype]).view(len(frames), *spec.shape)


def patches_of(spec: ObservationSpec, sizes: tuple[int, ...], order: str) -> Patches | Modalities:
    """What cuts up observations.

    Args:
        spec: what one looks like.
        sizes: of the patches of each modality.
        order: as for `Patches`.
    """
    return Modalities(spec, sizes, order) if spec.parts else Patches(spec, sizes[0], order)


class ModalityRouters(nn.Module):
    """Like one `Threshold`, but each modality is asked its own, about its own patches.

    Args:
        routers: one a modality; None for those that are always one chunk.
        part: `(P,)` int64, the modality of each patch.
    """

    part: Tensor

    def __init__(self, routers: list[Threshold | None], part: Tensor) -> None:
        super().__init__()
        self.each = routers
        self.routers = nn.ModuleDict({str(i): router for i, router in enumerate(routers) if router is not None})
        self.register_buffer("part", part, persistent=False)

    def forward(
        self,
        x_USX: Tensor,
        free_US: Tensor,
        weight_US: Tensor | None,
        uniform_US: Tensor | None = None,
        order_US: Tensor | None = None,
    ) -> Routing:
        """Boundaries of some frames.

        Args:
            x_USX, free_US, weight_US, uniform_US: as for the routers themselves.
            order_US: int64, the patch that stands at each place, if they are not all there.
        """
        part = self.part.expand(len(x_USX), -1) if order_US is None else self.part[order_US]
        together = Routing(
            boundary=torch.zeros_like(free_US, dtype=torch.bool),
            probability=torch.zeros_like(free_US),
            certainty=torch.ones_like(free_US),
            hard_rate=free_US.new_zeros(()),
            soft_rate=free_US.new_zeros(()),
        )
        drawn = () if uniform_US is None else (uniform_US,)
        total = (free_US if weight_US is None else free_US * weight_US).sum().clamp(min=1e-6)
        for name, router in self.routers.items():
            own = part == int(name)
            free = free_US * own
            said: Routing = router(x_USX, free, weight_US, *drawn)
            together.boundary = together.boundary | said.boundary
            together.probability = together.probability + said.probability
            together.certainty = torch.where(own, said.certainty, together.certainty)
            share = (free if weight_US is None else free * weight_US).sum() / total
            together.hard_rate = together.hard_rate + share * said.hard_rate
            together.soft_rate = together.soft_rate + share * said.soft_rate
            together.ratio_loss = _sum(together.ratio_loss, said.ratio_loss)
            together.log_probability = _sum(together.log_probability, said.log_probability)
        return together


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
