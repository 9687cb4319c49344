"""The frame stage: one observation into a few chunks, and chunks back into an observation. Nothing crosses frames.

Attention in both directions first (space is not time), then Mamba-2, whose bias towards compression is what makes
chunking work, then the boundaries. The decoder is the mirror image; there is no residual around the chunks, it would
make the picture trivial.

Shape suffixes: U distinct frames, n frames, P patches, V values of a patch, K chunks of the fullest frame, D width d0,
E width d1, Z latent width, R readers.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.chunks import Chunks
from worldmodel.config import ModelConfig
from worldmodel.frame_router import frame_router
from worldmodel.kernels import noise
from worldmodel.kernels.compaction import compact, spread, take
from worldmodel.layers import Stack
from worldmodel.modalities import ModalityRouters, patches_of
from worldmodel.outer import OuterStages
from worldmodel.past_frame import PastFrame
from worldmodel.router import Routing, Threshold, on_the_way, straight_through
from worldmodel.side import action_width
from worldmodel.surprise import Foresight
from worldmodel.temporal import TemporalStage

MASK = 4  # stream of a key's noise


class FrameStage(nn.Module):
    """Encoder, boundaries, posterior, and decoder of single frames."""

    fixed_start: Tensor
    at_stride: Tensor

    def __init__(self, config: ModelConfig, latent_parameters: int, latent_width: int) -> None:
        super().__init__()
        frame = self.config = config.frame
        # A model that has grown has the patches that it was born with, and each of them covers more pixels.
        sizes = frame.patch << frame.grown, *(part.patch for part in frame.beside)
        self.patches = patches_of(config.observation, sizes, frame.order)
        P, V, D = self.patches.count, self.patches.values >> 2 * frame.grown, frame.width
        self.embed = nn.Linear(V, D)
        # Of size 1/2, not 0.02: patches that look alike must still differ for the router, or it never fires.
        self.place = nn.Parameter(torch.randn(P, D) * 0.5)
        self.hidden = round(frame.mask * P)  # patches of a frame that the encoder does not see in training
        if frame.mask > 0 and not 0 < self.hidden < P:
            raise ValueError(
                f"a mask of {frame.mask} would hide {self.hidden} of a frame's {P} patches: hide some, not all"
            )
        self.unseen = nn.Parameter(torch.zeros(D)) if self.hidden else None  # what it gets in their place
        self.past = PastFrame(V, action_width(config.action), D) if frame.sees_past else None
        self.time = TemporalStage(config, P, V) if config.time.layers else None
        self.encoder = Stack(frame.encoder_layers, D, heads=frame.heads, mamba=config.mamba, causal=False)
        self.settled = False
        self.router = frame_router(frame, self.patches.part, self.patches.counts)
        self.learned, self.tries = frame.boundary == "learned", frame.boundary == "tried"
        self.foresight = Foresight(P, V, config.mamba) if frame.boundary == "surprise" else None
        counts, before = self.patches.counts, [0, *accumulate(self.patches.counts)]
        fixed = counts if frame.boundary == "none" else [round(chunks) for _, chunks in frame.targets]
        self.strides = [-(-count // n) for count, n in zip(counts, fixed)]  # of each modality
        starts = [begin + torch.arange(n) * count // n for begin, count, n in zip(before, counts, fixed)]
        self.register_buffer("fixed_start", torch.cat(starts))
        if self.router is not None:
            self.register_buffer("at_stride", torch.tensor(False))  # whether chunks have yet to be handed over to it
        self.max_chunks = len(self.fixed_start) if self.router is None else min(frame.max_chunks, P)
        # The first patch of a chunk cannot know where the chunk will end, so its vector also pools the whole span. A
        # plain mean would mix a dozen patches in D numbers; each patch is weighed by its place first, in R ways.
        R = self.readers = frame.readers
        self.pool_gain = nn.Parameter(torch.randn(P, R, D))
        self.posterior = nn.Linear((1 + R) * D, latent_parameters)
        # The way back is its mirror: R vectors a chunk, from which each patch takes what its place makes of them.
        self.unpack = nn.Linear(latent_width, R * D)
        self.from_past = nn.Linear(config.causal[0].width, R * D, bias=False) if frame.paint_past else None
        self.read_gain = nn.Parameter(torch.randn(P, R, D) / R**0.5)
        self.decoder_place = nn.Parameter(torch.randn(P, D) * 0.5)
        self.decoder = Stack(frame.decoder_layers, D, heads=frame.heads, mamba=config.mamba, causal=False)
        self.paint = nn.Linear(D, V)
        self.outer = OuterStages(config, P, V) if frame.grown else None

    def look(self, patches_UPV: Tensor, past_UPD: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Patches as the encoder takes them in: `(U, P, D)`.

        Args:
            patches_UPV: from `self.patches`.
            past_UPD: what `self.past` says of the frame before.
            key: `()` int64 noise key that says which patches are hidden in training; None hides none.
        """
        with self._at_rest():
            if self.outer is None:
                x = self.embed(patches_UPV)
            else:
                small, beside = self.outer.encode(patches_UPV)
                x = self.embed(small) + beside
            if self.unseen is not None and self.training and not self.settled and key is not None:
                x = torch.where(self._hidden(key, len(x)).unsqueeze(-1), self.unseen.to(x.dtype), x)
            x = x + self.place
        return x if past_UPD is None else x + past_UPD

    def small(self, patches_UPV: Tensor) -> Tensor:
        """The patches at the resolution that the model was born with, `(U, P, V)`."""
        return patches_UPV if self.outer is None else self.outer.shrink(patches_UPV)

    @property
    def routers(self) -> list[Threshold]:
        """Of all modalities that have one."""
        return [] if self.router is None else [router for router in self.router.each if router is not None]

    def settle(self) -> None:
        """Let the encoder and the boundaries stand still: nothing is hidden from them, and no gradient reaches them."""
        self.settled = True
        for router in self.routers:
            router.still = True

    def anneal(self, progress: float) -> float:
        """Set the wanted number of chunks a frame to where it stands; returns it. See `WorldModel.anneal`."""
        if self.router is None:
            return float(self.max_chunks)
        chunks = [on_the_way(*target, progress) for target in self.config.targets]
        for router, wanted, count in zip(self.router.each, chunks, self.patches.counts):
            if router is not None:
                router.aim((wanted - 1) / (count - 1))
        return sum(chunks)

    def hold_stride(self, hold: bool) -> None:
        """Chunk at a fixed stride, as if there were no router, or hand over to it.

        Raises:
            ValueError: there is none.
        """
        if self.router is None:
            raise ValueError(f"there is nothing to hand over to: boundary is '{self.config.boundary}', not 'learned'")
        self.at_stride.fill_(hold)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if self.router is not None:
            state_dict.setdefault(prefix + "at_stride", self.at_stride)  # older weights know of no handing over
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _hidden(self, key: Tensor, frames: int) -> Tensor:
        """Which patches are hidden, `(U, P)` bool: as many in every frame, others by the frame's place in the batch."""
        place = torch.arange(frames, device=key.device)
        drawn = noise.uniform(noise.row_hash(key.expand(frames), place, MASK), self.patches.count)
        chosen = drawn.topk(self.hidden, dim=1).indices
        return torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, chosen, True)

    def encode(
        self,
        x_UPD: Tensor,
        patches_UPV: Tensor,
        weight_U: Tensor | None,
        changed_UP: Tensor | None = None,
        uniform_UP: Tensor | None = None,
    ) -> tuple[Chunks, Tensor, Routing | None]:
        """Chunk some frames.

        Args:
            x_UPD: from `look`, or from the stage through time behind it.
            patches_UPV: from `self.patches`.
            weight_U: how often each frame occurs, for the router's statistics; None leaves them alone.
            changed_UP: the patches that count, None for all; the others are in no chunk, and not seen.
            uniform_UP: random numbers for a router that is to try; None leaves nothing to chance.

        Returns:
            The chunks, the posterior's parameters `(U, K, latent parameters)`, and what the router said.
        """
        with self._at_rest():
            h, chunks, routing = self._cut_up(x_UPD, patches_UPV, weight_U, changed_UP, uniform_UP)
        K = chunks.start.shape[1]
        of_patch = chunks.of_patch if changed_UP is None else chunks.of_patch.masked_fill(~changed_UP, K)
        member = F.one_hot(of_patch, K if changed_UP is None else K + 1)[..., :K]
        member = member.to(h.dtype).transpose(1, 2)  # (U, K, P)
        weighed = (h.unsqueeze(2) * self.pool_gain).flatten(2)  # (U, P, R * D)
        pooled = member @ weighed / member.sum(-1, keepdim=True).clamp(min=1).sqrt()
        posterior = self.posterior(torch.cat([take(h, chunks.start), pooled], dim=-1))
        # In full precision under autocast, too: classes are told apart by it.
        return chunks, posterior.to(h.dtype), routing

    def _cut_up(
        self,
        x_UPD: Tensor,
        patches_UPV: Tensor,
        weight_U: Tensor | None,
        changed_UP: Tensor | None,
        uniform_UP: Tensor | None,
    ) -> tuple[Tensor, Chunks, Routing | None]:
        """What the encoder makes of the patches, the chunks, and what the router said; arguments are `encode`'s."""
        order = present = None
        if changed_UP is None:
            h = self.encoder(x_UPD)
            scored = self._scored(h, self.small(patches_UPV), None)
        else:
            order, present = compact(changed_UP)
            packed = self.encoder(take(x_UPD, order), present=present)
            h = torch.zeros_like(x_UPD).scatter(1, order.unsqueeze(-1).expand_as(packed), packed)
            # Nothing at pads, so that a hash of what is there knows nothing of them.
            scored = self._scored(packed, self.small(patches_UPV), order)
            scored = scored.masked_fill(~present.unsqueeze(-1), 0.0)
        if self.router is None or self.at_stride:
            return h, self._fixed(len(h), changed_UP), None
        return h, *self._route(self.router, scored, weight_U, order, present, changed_UP, uniform_UP)

    def _scored(self, h: Tensor, patches: Tensor, order: Tensor | None) -> Tensor:
        """What the router is shown: what the encoder says, the patches in their order, both, or how they surprise."""
        if self.foresight is not None:
            with torch.no_grad():
                surprise = self.foresight(patches).unsqueeze(-1)
            return surprise if order is None else take(surprise, order)
        patches = patches if order is None else take(patches, order)
        if self.tries:
            return torch.cat([h, patches.to(h.dtype)], dim=-1)
        return h if self.learned else patches

    def _at_rest(self) -> torch.set_grad_enabled:
        """No gradient for an encoder that has settled."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.settled)

    def _fixed(self, U: int, changed_UP: Tensor | None) -> Chunks:
        """At a fixed stride, over those patches that changed."""
        P = self.patches.count
        if changed_UP is None:
            start = self.fixed_start.expand(U, -1)
            return Chunks.at(start, torch.ones_like(start, dtype=torch.bool), P)
        return self._chunks(self.strided(changed_UP), changed_UP)

    def strided(self, changed_UP: Tensor) -> Tensor:
        """Where chunks start at a fixed stride, if only some patches changed: `(U, P)` bool."""
        of_each = zip(changed_UP.split(self.patches.counts, dim=1), self.strides)
        return torch.cat([new & ((new.long().cumsum(1) - 1) % stride == 0) for new, stride in of_each], dim=1)

    def _chunks(self, boundary_UP: Tensor, changed_UP: Tensor | None) -> Chunks:
        start, valid = compact(boundary_UP)
        if start.shape[1] == 0:  # nothing changed anywhere: one column of chunks that do not exist
            start, valid = start.new_zeros(len(start), 1), valid.new_zeros(len(start), 1)
        start, valid = start[:, : self.max_chunks], valid[:, : self.max_chunks]
        return Chunks.at(torch.where(valid, start, 0), valid, self.patches.count, changed_UP)

    def _route(
        self,
        router: Threshold | ModalityRouters,
        scored: Tensor,
        weight_U: Tensor | None,
        order: Tensor | None,
        present: Tensor | None,
        changed_UP: Tensor | None,
        uniform_UP: Tensor | None,
    ) -> tuple[Chunks, Routing]:
        """By the scores of a router, over all patches or over those that changed, `order` of them `present`."""
        U, S = scored.shape[:2]
        opening = self._opening(order)[:, :S]  # starts a chunk whatever the router says
        free = ~opening.expand(U, -1)
        if present is not None:
            opening, free = opening & present, free & present
        free = free.float()
        weight = None if weight_U is None else weight_U[:, None].expand(U, S).float()
        drawn = () if uniform_UP is None else (uniform_UP[:, :S],)
        placed = {"order_US": order} if isinstance(router, ModalityRouters) else {}
        routing = router(scored, free, weight, *drawn, **placed)
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
        if order is not None and changed_UP is not None:
            boundary = torch.zeros_like(changed_UP).scatter(1, order, boundary)
            if gate is not None:
                gate = torch.ones_like(changed_UP, dtype=gate.dtype).scatter(1, order, gate)
        chunks = self._chunks(boundary, changed_UP)
        chunks.gate = gate
        return chunks, routing

    def _opening(self, order_US: Tensor | None) -> Tensor:
        """Which patches are the first of their modality, `(U or 1, S)` bool; those in that order, if it is given."""
        part = self.patches.part.unsqueeze(0) if order_US is None else self.patches.part[order_US]
        return F.pad(part[:, 1:] != part[:, :-1], (1, 0), value=True)

    def unpacked(self, latent_nKZ: Tensor, past_nKE: Tensor | None) -> Tensor:
        """What the painter reads of each chunk, `(n, K, R * D)`; arguments are those of `decode`."""
        x = self.unpack(latent_nKZ)
        if self.from_past is not None and past_nKE is not None:
            x = x + self.from_past(past_nKE)
        return x

    def paint_canvas(self, canvas_nPR: Tensor, gate_nP: Tensor | None) -> Tensor:
        """Paint frames of which each patch has before it what its chunk says, `(n, P, R * D)`: `(n, P, V)`."""
        x = (canvas_nPR.unflatten(-1, (self.readers, -1)) * self.read_gain).sum(2)
        if gate_nP is not None:
            x = x * gate_nP.unsqueeze(-1).to(x.dtype)
        x = self.decoder(x + self.decoder_place)
        painted = self.paint(x).to(x.dtype)
        if self.patches.mask is not None:
            painted = painted * self.patches.mask
        return painted if self.outer is None else self.outer.decode(x, painted)

    def decode(self, latent_nKZ: Tensor, past_nKE: Tensor | None, chunks: Chunks) -> Tensor:
        """Paint frames: `(n, P, V)`.

        Args:
            latent_nKZ: the latent of each chunk.
            past_nKE: y of the token that predicted each chunk, zeros where the past is withheld; not used unless
                `paint_past` is set.
            chunks: where they are.
        """
        return self.paint_canvas(spread(self.unpacked(latent_nKZ, past_nKE), chunks.of_patch), chunks.gate)
