"""Where the chunks of frames start: at a fixed stride, or by what a router or a rule says of their patches.

Every modality begins with a chunk of its own, and no frame has more than `max_chunks`. Where patches are followed
through time, only those that are new are cut up.

Shape suffixes: U frames, P patches, S of them in a sequence, V values of a patch, D width d0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.chunks import Chunks
from worldmodel.config import FrameConfig, MambaConfig
from worldmodel.frame_router import frame_router
from worldmodel.kernels.compaction import compact, take
from worldmodel.modalities import Modalities, ModalityRouters
from worldmodel.patches import Patches
from worldmodel.router import Routing, Threshold, on_the_way, straight_through
from worldmodel.surprise import Foresight


@dataclass
class New:
    """The patches that are new, where they are followed through time.

    Attributes:
        changed: `(U, P)` bool, which they are.
        order: `(U, S)` int64, the same, without the others between them.
        present: `(U, S)` bool, False at pads.
    """

    changed: Tensor
    order: Tensor
    present: Tensor

    @classmethod
    def of(cls, changed_UP: Tensor) -> New:
        """From which of all patches they are."""
        return cls(changed_UP, *compact(changed_UP))


class Cutting(nn.Module):
    """Patches in, chunks out.

    Args:
        config: of the frame stage.
        patches: what cuts frames into patches.
        values: V.
        mamba: of the network that foretells patches, for boundaries by surprise.

    Attributes:
        router: what decides; None where that is fixed.
        foresight: what a router by surprise is told by; None for the others.
        max_chunks: of a frame.
        settled: whether scores stand still, and tau comes to rest.
        fixed: whether the same frame is cut up the same forever.
    """

    part: Tensor
    fixed_start: Tensor
    at_stride: Tensor

    def __init__(self, config: FrameConfig, patches: Patches | Modalities, values: int, mamba: MambaConfig) -> None:
        super().__init__()
        self.config, self.counts, self.count = config, patches.counts, patches.count
        self.register_buffer("part", patches.part, persistent=False)
        self.router = frame_router(config, patches.part, patches.counts)
        self.learned, self.tries = config.boundary == "learned", config.boundary == "tried"
        self.foresight = Foresight(self.count, values, mamba) if config.boundary == "surprise" else None
        before = [0, *accumulate(self.counts)]
        fixed = self.counts if config.boundary == "none" else [round(chunks) for _, chunks in config.targets]
        self.strides = [-(-count // n) for count, n in zip(self.counts, fixed)]  # of each modality
        starts = [begin + torch.arange(n) * count // n for begin, count, n in zip(before, self.counts, fixed)]
        self.register_buffer("fixed_start", torch.cat(starts))
        if self.router is not None:
            self.register_buffer("at_stride", torch.tensor(False))  # whether chunks have yet to be handed over to it
        self.max_chunks = len(self.fixed_start) if self.router is None else min(config.max_chunks, self.count)
        self.settled = self.fixed = False

    @property
    def routers(self) -> list[Threshold]:
        """Of all modalities that have one."""
        return [] if self.router is None else [router for router in self.router.each if router is not None]

    @property
    def trying(self) -> bool:
        """Whether there is a router that learns by trying, and not a stride in its place."""
        return self.tries and not self.at_stride

    def settle(self) -> None:
        """Let what is said of patches stand still. Tau comes to rest at what the frames to come say of it."""
        self.settled, self.fixed = True, self.fixed or not self.routers
        for router in self.routers:
            router.still = True

    def fix(self) -> None:
        """Let tau stand still as well."""
        self.fixed = True
        for router in self.routers:
            router.fixed = True

    @property
    def wanted(self) -> tuple[float, float]:
        """Chunks of a frame that is cut up whole, on average: in the end, and the fewest while targets move."""
        if self.router is None:
            return float(self.max_chunks), float(self.max_chunks)
        targets = self.config.targets
        return sum(last for _, last in targets), sum(min(first or last, last) for first, last in targets)

    def anneal(self, progress: float) -> float:
        """Set the wanted number of chunks a frame to where it stands; returns it. See `WorldModel.anneal`."""
        if self.router is None:
            return float(self.max_chunks)
        chunks = [on_the_way(*target, progress) for target in self.config.targets]
        for router, wanted, count in zip(self.router.each, chunks, self.counts):
            if router is not None:
                router.aim((wanted - 1) / (count - 1))
        return sum(chunks)

    def hold_stride(self, hold: bool) -> None:
        """Chunk at a fixed stride, as if there were no router, or hand over to it.

        Raises:
            ValueError: there is none, or a stride has more chunks than the cap lets a frame have.
        """
        if self.router is None:
            raise ValueError(
                f"there is nothing to hand over to: boundary is '{self.config.boundary}', without a router"
            )
        if hold and (whole := len(self.fixed_start)) > self.max_chunks:
            raise ValueError(
                f"at a stride a frame has {whole} chunks, a whole number of each modality, but frame.max_chunks is "
                f"{self.max_chunks}: set it to {whole} or more"
            )
        self.at_stride.fill_(hold)

    def forward(
        self, h_USD: Tensor, patches_UPV: Tensor, weight_U: Tensor | None, new: New | None, uniform_UP: Tensor | None
    ) -> tuple[Chunks, Routing | None]:
        """Cut up some frames.

        Args:
            h_USD: what the encoder says of the patches that it sees, in their order.
            patches_UPV: all patches, at the resolution that the model was born with.
            weight_U: how often each frame counts, for the router's statistics; None leaves them alone.
            new: those that the encoder sees; None for all.
            uniform_UP: random numbers for a router that is to try; None leaves nothing to chance.

        Returns:
            The chunks, and what the router said.
        """
        if self.router is not None and not self.at_stride:
            scored = self._scored(h_USD, patches_UPV, new)
            return self._route(self.router, scored, weight_U, new, uniform_UP)
        if new is not None:
            return self._chunks(self.strided(new.changed), new), None
        return self.at_places(len(h_USD)), None

    def at_places(self, frames: int) -> Chunks:
        """The chunks of so many frames at a fixed stride."""
        start = self.fixed_start.expand(frames, -1)
        return Chunks.at(start, torch.ones_like(start, dtype=torch.bool), self.count)

    def known_starts(self, frames: int, changed_UP: Tensor | None) -> Tensor | None:
        """Where chunks start that no dream has to foretell, `(U, K)`, P behind a frame's last; None with a router."""
        if self.router is not None:
            return None
        if changed_UP is None:
            return self.fixed_start.expand(frames, -1)
        place = torch.arange(self.count, device=changed_UP.device)
        return torch.where(self.strided(changed_UP), place, self.count).sort(1).values[:, : self.max_chunks]

    def strided(self, changed_UP: Tensor) -> Tensor:
        """Where chunks start at a fixed stride, if only some patches changed: `(U, P)` bool.

        Each chunk of the whole frame that has new patches is one, of those alone: so no two of them share a slot.
        """
        place = torch.arange(self.count, device=changed_UP.device)
        of_whole = (self.fixed_start <= place.unsqueeze(-1)).sum(1)
        newest = torch.where(changed_UP, place, -1).cummax(1).values
        before = F.pad(newest[:, :-1], (1, 0), value=-1)  # the last new patch before each
        return changed_UP & ((before < 0) | (of_whole[before.clamp(min=0)] != of_whole))

    def _scored(self, h: Tensor, patches: Tensor, new: New | None) -> Tensor:
        """What the router is shown: what the encoder says, the patches, both, or by how much they surprise."""
        if self.foresight is not None:
            with torch.no_grad():
                patches = self.foresight(patches).unsqueeze(-1)
        if new is not None:
            patches = take(patches, new.order)
        scored = torch.cat([h, patches.to(h.dtype)], dim=-1) if self.tries else h if self.learned else patches
        # Nothing at pads, so that a hash of what is there knows nothing of them.
        return scored if new is None else scored.masked_fill(~new.present.unsqueeze(-1), 0.0)

    def _route(
        self,
        router: Threshold | ModalityRouters,
        scored: Tensor,
        weight_U: Tensor | None,
        new: New | None,
        uniform_UP: Tensor | None,
    ) -> tuple[Chunks, Routing]:
        """By the scores of a router."""
        U, S = scored.shape[:2]
        order = None if new is None else new.order
        opening = self._opening(order)[:, :S]  # starts a chunk whatever the router says
        free = ~opening.expand(U, -1)
        if new is not None:
            opening, free = opening & new.present, free & new.present
        weight = None if weight_U is None else weight_U[:, None].expand(U, S).float()
        drawn = () if uniform_UP is None else (uniform_UP[:, :S],)
        placed = {"order_US": order} if isinstance(router, ModalityRouters) else {}
        routing = router(scored, free.float(), weight, *drawn, **placed)
        boundary = routing.boundary | opening
        rank = (routing.probability.detach() * boundary).masked_fill(opening, 2.0)
        if self.max_chunks < S:  # the cap: the most probable boundaries of a frame win
            worst_kept = rank.topk(self.max_chunks, dim=1).values[:, -1:]
            boundary &= rank >= worst_kept
            spare = self.max_chunks - opening.sum(1, keepdim=True)  # of those that are as probable the first ones
            boundary &= opening | ((boundary & ~opening).cumsum(1) <= spare)
        gate = None
        if self.learned and not self.settled:
            gate = straight_through(routing.probability.masked_fill(opening, 1.0), boundary)
        if new is not None:
            boundary = torch.zeros_like(new.changed).scatter(1, new.order, boundary)
            if gate is not None:
                gate = torch.ones_like(new.changed, dtype=gate.dtype).scatter(1, new.order, gate)
        chunks = self._chunks(boundary, new)
        chunks.gate = gate
        return chunks, routing

    def _opening(self, order_US: Tensor | None) -> Tensor:
        """Which patches are the first of their modality, `(U or 1, S)` bool; those in that order, if it is given."""
        part = self.part.unsqueeze(0) if order_US is None else self.part[order_US]
        return F.pad(part[:, 1:] != part[:, :-1], (1, 0), value=True)

    def _chunks(self, boundary_UP: Tensor, new: New | None) -> Chunks:
        start, valid = compact(boundary_UP)
        if start.shape[1] == 0:  # nothing changed anywhere: one column of chunks that do not exist
            start, valid = start.new_zeros(len(start), 1), valid.new_zeros(len(start), 1)
        start, valid = start[:, : self.max_chunks], valid[:, : self.max_chunks]
        return Chunks.at(torch.where(valid, start, 0), valid, self.count, None if new is None else new.changed)
