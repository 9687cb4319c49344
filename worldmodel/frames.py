"""The frame stage: one observation into a few chunks, and chunks back into an observation. Nothing crosses frames.

Attention in both directions first (space is not time), then Mamba-2, whose bias towards compression is what makes
chunking work, then the boundaries. The decoder is the mirror image; there is no residual around the chunks, it would
make the picture trivial.

Shape suffixes: U distinct frames, n frames, P patches, V values of a patch, K chunks of the fullest frame, D width d0,
E width d1, Z latent width, R readers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.boundaries import frame_router
from worldmodel.chunks import Chunks
from worldmodel.config import ModelConfig
from worldmodel.kernels.compaction import compact, spread, take
from worldmodel.layers import Stack
from worldmodel.patches import Patches
from worldmodel.router import Routing, Threshold, straight_through


class FrameStage(nn.Module):
    """Encoder, boundaries, posterior, and decoder of single frames."""

    fixed_start: Tensor

    def __init__(self, config: ModelConfig, latent_parameters: int, latent_width: int) -> None:
        super().__init__()
        frame = config.frame
        self.patches = Patches(config.observation, frame.patch, frame.order)
        P, V, D = self.patches.count, self.patches.values, frame.width
        self.embed = nn.Linear(V, D)
        # Of size 1/2, not 0.02: patches that look alike must still differ for the router, or it never fires.
        self.place = nn.Parameter(torch.randn(P, D) * 0.5)
        self.encoder = Stack(frame.encoder_layers, D, heads=frame.heads, mamba=config.mamba, causal=False)
        self.router = frame_router(frame, P)
        self.learned = frame.boundary == "learned"
        fixed = P if frame.boundary == "none" else round(frame.chunks)
        self.register_buffer("fixed_start", torch.arange(fixed) * P // fixed)
        self.max_chunks = fixed if self.router is None else min(frame.max_chunks, P)
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

    def encode(self, patches_UPV: Tensor, weight_U: Tensor | None) -> tuple[Chunks, Tensor, Routing | None]:
        """Chunk some frames.

        Args:
            patches_UPV: from `self.patches`.
            weight_U: how often each frame occurs, for the router's statistics; None leaves them alone.

        Returns:
            The chunks, the posterior's parameters `(U, K, latent parameters)`, and what the router said.
        """
        U, P, _ = patches_UPV.shape
        h = self.encoder(self.embed(patches_UPV) + self.place)
        if self.router is None:
            start = self.fixed_start.expand(U, -1)
            chunks, routing = Chunks.at(start, torch.ones_like(start, dtype=torch.bool), P), None
        else:
            chunks, routing = self._route(self.router, h if self.learned else patches_UPV, weight_U)
        K = chunks.start.shape[1]
        member = F.one_hot(chunks.of_patch, K).to(h.dtype).transpose(1, 2)  # (U, K, P)
        weighed = (h.unsqueeze(2) * self.pool_gain).flatten(2)  # (U, P, R * D)
        pooled = member @ weighed / member.sum(-1, keepdim=True).clamp(min=1).sqrt()
        posterior = self.posterior(torch.cat([take(h, chunks.start), pooled], dim=-1))
        return (
            chunks,
            posterior.to(h.dtype),
            routing,
        )  # full precision under autocast, too: classes are told apart by it

    def _route(self, router: Threshold, x_UPD: Tensor, weight_U: Tensor | None) -> tuple[Chunks, Routing]:
        U, P, _ = x_UPD.shape
        free = torch.ones(U, P, device=x_UPD.device)
        free[:, 0] = 0  # the first patch always starts a chunk, and does not count as the router's doing
        weight = None if weight_U is None else weight_U[:, None].expand(U, P).float()
        routing = router(x_UPD, free, weight)
        rank = routing.probability.detach().clone()
        rank[:, 0] = 2.0
        boundary = routing.boundary.clone()
        boundary[:, 0] = True
        if self.max_chunks < P:  # the cap: the most probable boundaries of a frame win
            worst_kept = rank.topk(self.max_chunks, dim=1).values[:, -1:]
            boundary &= rank >= worst_kept
        start, valid = compact(boundary)
        start, valid = start[:, : self.max_chunks], valid[:, : self.max_chunks]
        chunks = Chunks.at(torch.where(valid, start, 0), valid, P)
        if self.learned:
            probability = torch.cat([torch.ones_like(free[:, :1]), routing.probability[:, 1:]], dim=1)
            chunks.gate = straight_through(probability, boundary)
        return chunks, routing

    def decode(self, latent_nKZ: Tensor, past_nKE: Tensor | None, chunks: Chunks) -> Tensor:
        """Paint frames: `(n, P, V)`.

        Args:
            latent_nKZ: the latent of each chunk.
            past_nKE: y of the token that predicted each chunk, zeros where the past is withheld; not used unless
                `paint_past` is set.
            chunks: where they are.
        """
        x = self.unpack(latent_nKZ)
        if self.from_past is not None and past_nKE is not None:
            x = x + self.from_past(past_nKE)
        x = spread(x, chunks.of_patch)  # (n, P, R * D)
        x = (x.unflatten(-1, (self.readers, -1)) * self.read_gain).sum(2)
        if chunks.gate is not None:
            x = x * chunks.gate.unsqueeze(-1).to(x.dtype)
        x = self.decoder(x + self.decoder_place)
        return self.paint(x).to(x.dtype)
