"""The frame stage: one observation into a few chunks, and chunks back into an observation. Nothing crosses frames.

Attention in both directions first (space is not time), then Mamba-2, whose bias towards compression is what makes
chunking work, then the boundaries. The decoder is the mirror image; there is no residual around the chunks, it would
make the picture trivial.

Shape suffixes: U distinct frames, n frames, P patches, V values of a patch, K chunks of the fullest frame, D width d0,
E width d1, Z latent width, W what the painter is told of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.chunks import Chunks
from worldmodel.codes import make_code
from worldmodel.config import ModelConfig
from worldmodel.cutting import Cutting, New
from worldmodel.kernels import noise
from worldmodel.kernels.compaction import spread, take
from worldmodel.latents import Latent
from worldmodel.layers import Stack
from worldmodel.modalities import patches_of
from worldmodel.outer import OuterStages
from worldmodel.past_frame import PastFrame
from worldmodel.router import Routing, Threshold
from worldmodel.side import action_width
from worldmodel.temporal import TemporalStage

MASK = 4  # stream of a key's noise
MOVED = {
    "cutting": ("router.", "foresight.", "fixed_start", "at_stride"),
    "code": ("pool_gain", "posterior.", "unpack.", "read_gain", "from_past."),
}


class FrameStage(nn.Module):
    """Encoder, boundaries, posterior, and decoder of single frames."""

    def __init__(self, config: ModelConfig, latent: Latent) -> None:
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
        self.time = TemporalStage(config, P, self.patches.values) if config.time.layers else None
        self.encoder = Stack(frame.encoder_layers, D, heads=frame.heads, mamba=config.mamba, causal=False)
        self.cutting = Cutting(frame, self.patches, V, config.mamba)
        self.code = make_code(config, latent, self.patches.part, self.cutting.strides)
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
        with self.at_rest():
            if self.outer is None:
                x = self.embed(patches_UPV)
            else:
                small, beside = self.outer.encode(patches_UPV)
                x = self.embed(small) + beside
            if self.unseen is not None and self.training and not self.settled and key is not None:
                hidden = self._hidden(key, len(x)).unsqueeze(-1)
                x = torch.where(hidden, self.unseen.to(x.dtype), x)
                if past_UPD is not None:  # where nothing moves it would show what is hidden
                    past_UPD = past_UPD.masked_fill(hidden, 0.0)
            x = x + self.place
        return x if past_UPD is None else x + past_UPD

    def small(self, patches_UPV: Tensor) -> Tensor:
        """The patches at the resolution that the model was born with, `(U, P, V)`."""
        return patches_UPV if self.outer is None else self.outer.shrink(patches_UPV)

    @property
    def settled(self) -> bool:
        """Whether the encoder, the boundaries, and codes that settle stand still."""
        return self.cutting.settled

    @property
    def learns_order(self) -> bool:
        """Whether frames are coded by something that no loose pictures show, but the order in which they come."""
        return self.past is not None or (self.time is not None and self.time.learned)

    @property
    def fixed(self) -> bool:
        """Whether a frame is coded the same forever, whenever it comes."""
        return self.cutting.fixed and self.code.settles and self.past is None and self.time is None

    def settle(self) -> None:
        """Let encoder, boundaries and slots stand still: nothing is hidden from them, and no gradient reaches them."""
        self.cutting.settle()
        if self.time is not None:
            self.time.settle()

    def fix(self) -> None:
        """Let the routers' quantiles stand still as well."""
        self.cutting.fix()
        if self.time is not None:
            self.time.fix()

    @property
    def routers(self) -> list[Threshold]:
        """Of the patches, and of their changes in time."""
        return self.cutting.routers + ([] if self.time is None else self.time.routers)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in list(state_dict):  # older weights have what cuts up and what codes directly here
            own = name.removeprefix(prefix)
            for part, names in MOVED.items():
                if name.startswith(prefix) and own.startswith(names):
                    state_dict[f"{prefix}{part}.{own}"] = state_dict.pop(name)
        if self.cutting.router is not None:
            state_dict.setdefault(prefix + "cutting.at_stride", self.cutting.at_stride)  # nor did they hand over
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
        with self.at_rest():
            h, chunks, routing = self._cut_up(x_UPD, patches_UPV, weight_U, changed_UP, uniform_UP)
        K = chunks.start.shape[1]
        of_patch = chunks.of_patch if changed_UP is None else chunks.of_patch.masked_fill(~changed_UP, K)
        member = F.one_hot(of_patch, K if changed_UP is None else K + 1)[..., :K]
        member = member.to(h.dtype).transpose(1, 2)  # (U, K, P)
        with self.at_rest(self.code.settles):
            posterior = self.code(h, chunks.start, member)
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
        if changed_UP is None:
            new, h = None, self.encoder(x_UPD)
            seen = h
        else:
            new = New.of(changed_UP)
            seen = self.encoder(take(x_UPD, new.order), present=new.present)
            h = torch.zeros_like(x_UPD).scatter(1, new.order.unsqueeze(-1).expand_as(seen), seen)
        return h, *self.cutting(seen, self.small(patches_UPV), weight_U, new, uniform_UP)

    def at_rest(self, settles: bool = True) -> torch.set_grad_enabled:
        """No gradient for what has settled, if it settles at all."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not (self.settled and settles))

    def paint_canvas(self, canvas_nPW: Tensor, gate_nP: Tensor | None) -> Tensor:
        """Paint frames of which each patch has before it what its chunk says (`code.tell`): `(n, P, V)`."""
        x = self.code.read(canvas_nPW)
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
        return self.paint_canvas(spread(self.code.tell(latent_nKZ, past_nKE), chunks.of_patch), chunks.gate)
