"""The causal stage: tokens of all frames in their order, and the main network inside.

    tokens of frame t:  F_t  C_{t,1} ... C_{t,K}      F_t carries the action that led to frame t

Mamba-2 reads the tokens; where a chunk starts (always at F_t, elsewhere if the router says so) the main network runs,
widened by a side vector that carries the action again; its output is smoothed over chunks, joined with the residual and
read by the decoder. What comes out at a token, y, predicts the next token of the frame.

`forward` runs whole rows at once, `step` one token on a carried memory; both give the same numbers.

Shape suffixes: B rows, L tokens, M main tokens, D width d1, E width d2, S side entries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.kernels.compaction import compact, spread, take
from worldmodel.kernels.ema import ema_scan
from worldmodel.layers import Memory, Stack
from worldmodel.router import Router, Routing, straight_through
from worldmodel.side import SideVector


class CausalStage(nn.Module):
    """Tokens of width d0 in, y of width d1 out."""

    def __init__(self, config: ModelConfig, action_width: int) -> None:
        super().__init__()
        d0, causal, main = config.frame.width, config.causal[0], config.main
        self.extra = causal.extra
        self.max_extra = causal.max_extra
        self.frame_token = nn.Parameter(torch.randn(d0) * 0.5)  # the content of every F_t
        self.side1 = SideVector(d0, causal.width, action_width)
        self.side2 = SideVector(causal.width, main.width, action_width)
        mamba = config.mamba
        self.encoder = Stack(
            causal.encoder_layers, causal.width, heads=causal.heads, mamba=mamba, causal=True, window=causal.window
        )
        self.main = Stack(main.layers, main.width, heads=main.heads, mamba=mamba, causal=True, window=main.window)
        self.decoder = Stack(
            causal.decoder_layers, causal.width, heads=causal.heads, mamba=mamba, causal=True, window=causal.window
        )
        self.residual = nn.Linear(causal.width, causal.width)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)
        # The rate among chunk tokens; F_t is forced and does not count.
        self.router = Router(causal.width, rate=causal.extra / config.frame.chunks) if causal.extra > 0 else None

    def forward(
        self, content_BLd: Tensor, action_BLA: Tensor, is_frame_BL: Tensor, reset_BL: Tensor, valid_BL: Tensor
    ) -> tuple[Tensor, Routing | None]:
        """Run whole rows.

        Args:
            content_BLd: contents of the chunk tokens; what stands at a frame token is replaced by the learned one.
            action_BLA: action vector of each token's frame.
            is_frame_BL: which tokens are F_t.
            reset_BL: frame tokens at which a new piece begins and nothing is remembered.
            valid_BL: False at pads, which all lie to the right.

        Returns:
            `y_BLD`, and what the router said (None where the main network runs once a frame).
        """
        content = torch.where(is_frame_BL.unsqueeze(-1), self.frame_token, content_BLd)
        h = self.encoder(torch.cat([content, self.side1(action_BLA)], dim=-1), reset_BL)

        boundary, p, routing = is_frame_BL & valid_BL, is_frame_BL.float(), None
        if self.router is not None:
            routing = self.router(h, (valid_BL & ~is_frame_BL).float(), valid_BL.float())
            extra = routing.boundary & ~is_frame_BL & valid_BL
            boundary = boundary | (extra & (self._earlier_in_frame(extra, is_frame_BL) < self.max_extra))
            p = torch.where(is_frame_BL, 1.0, routing.probability)

        index, kept = compact(boundary)
        z = self.main(
            torch.cat([take(h, index), self.side2(take(action_BLA, index))], dim=-1),
            reset_BL.gather(1, index) & kept,
        )[..., : h.shape[-1]]  # narrowed by cutting off, as in H-Net
        if routing is not None:
            z, _ = ema_scan(z, p.gather(1, index) * kept)
        up = spread(z, boundary)
        if routing is not None:
            up = up * straight_through(p, boundary).unsqueeze(-1)
        return self.decoder(up + self.residual(h), reset_BL), routing

    @staticmethod
    def _earlier_in_frame(extra_BL: Tensor, is_frame_BL: Tensor) -> Tensor:
        """How many extra boundaries came before each token in its own frame; looks back only."""
        so_far = extra_BL.long().cumsum(1) - extra_BL.long()
        at_frame = torch.where(is_frame_BL, so_far, 0).cummax(1).values
        return so_far - at_frame

    def initial_memory(self, batch: int) -> Memory:
        """Zeros for everything that a row remembers."""
        memory = self.encoder.initial_memory(batch, "encoder")
        memory |= self.main.initial_memory(batch, "main")
        memory |= self.decoder.initial_memory(batch, "decoder")
        width = self.residual.in_features
        new = self.residual.weight.new_zeros
        memory["smoothed"] = new(batch, width)  # the EMA's value: what the main network last said
        memory["encoded"] = new(batch, width)  # the router compares with the token before
        for name in ("tokens", "chunks", "extra"):
            memory[name] = torch.zeros(batch, dtype=torch.int64, device=self.residual.weight.device)
        return memory

    def step(
        self, content_Bd: Tensor | None, action_BA: Tensor, memory: Memory, active_B: Tensor | None = None
    ) -> Tensor:
        """One token for every row: the frame token if `content_Bd` is None, else a chunk token.

        A frame token leaves the tensors in `memory` alone and puts new ones in their place. The chunk tokens behind it
        write into those, for nobody else has them.

        Args:
            content_Bd: the chunk's content.
            action_BA: action vector of the frame.
            memory: entries are replaced.
            active_B: False in rows that have no such token; their memory stays, and their y is anything.

        Returns:
            `y_BD`.
        """
        own = content_Bd is not None
        content = self.frame_token.expand(action_BA.shape[0], -1) if content_Bd is None else content_Bd
        tokens = memory["tokens"]
        wide = torch.cat([content, self.side1(action_BA)], dim=-1)
        h = self.encoder.step(wide, memory, "encoder", tokens, active_B, in_place=own)
        if not own:
            memory["smoothed"] = self._main_step(h, action_BA, memory, None, in_place=False)
            memory["chunks"] = memory["chunks"] + 1
            memory["extra"] = torch.zeros_like(memory["extra"])
        elif self.router is not None:
            self._route_step(self.router, h, action_BA, memory, active_B)
        said = memory["smoothed"] + self.residual(h)
        y = self.decoder.step(said, memory, "decoder", tokens, active_B, in_place=own)
        memory["encoded"] = h if active_B is None else where_rows(active_B, h, memory["encoded"])
        memory["tokens"] = tokens + (1 if active_B is None else active_B)
        return y

    def extend(self, content_BKd: Tensor, action_BA: Tensor, memory: Memory, valid_BK: Tensor | None = None) -> Tensor:
        """A frame whose chunks are known: F_t and all of them.

        Args:
            content_BKd: the chunks' contents.
            action_BA: action vector of the frame.
            memory: entries are replaced; the tensors themselves are left alone.
            valid_BK: which chunks there are, None for all.

        Returns:
            y at every token, `(B, 1 + K, D)`; where there is no chunk, y of the last one.
        """
        B, K, _ = content_BKd.shape
        if self.router is not None or valid_BK is not None:
            said = [self.step(None, action_BA, memory)]
            for k in range(K):
                active = None if valid_BK is None else valid_BK[:, k]
                y = self.step(content_BKd[:, k], action_BA, memory, active)
                said.append(y if active is None else where_rows(active, y, said[-1]))
            return torch.stack(said, dim=1)
        content = torch.cat([self.frame_token.expand(B, 1, -1), content_BKd], dim=1)
        side = self.side1(action_BA).unsqueeze(1).expand(-1, 1 + K, -1)
        tokens = memory["tokens"]
        h = self.encoder.extend(torch.cat([content, side], dim=-1), memory, "encoder", tokens)
        memory["smoothed"] = self._main_step(h[:, 0], action_BA, memory, None, in_place=False)
        memory["chunks"] = memory["chunks"] + 1
        memory["encoded"], memory["tokens"] = h[:, -1], tokens + 1 + K
        return self.decoder.extend(memory["smoothed"].unsqueeze(1) + self.residual(h), memory, "decoder", tokens)

    def _main_step(
        self, h: Tensor, action: Tensor, memory: Memory, active_B: Tensor | None, *, in_place: bool
    ) -> Tensor:
        wide = torch.cat([h, self.side2(action)], dim=-1)
        return self.main.step(wide, memory, "main", memory["chunks"], active_B, in_place=in_place)[:, : h.shape[-1]]

    def _route_step(self, router: Router, h: Tensor, action: Tensor, memory: Memory, active_B: Tensor | None) -> None:
        p = router.probability(memory["encoded"], h)
        wanted = p > 0.5 if active_B is None else (p > 0.5) & active_B
        boundary = wanted & (memory["extra"] < self.max_extra)
        memory["extra"] = memory["extra"] + wanted  # counts refused ones too, as the whole-row pass does
        if not boundary.any():
            return
        z = self._main_step(h, action, memory, boundary, in_place=True)
        memory["smoothed"] = torch.lerp(memory["smoothed"], z, (p * boundary).unsqueeze(-1))
        memory["chunks"] = memory["chunks"] + boundary


def where_rows(mask_B: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Rows of `yes` where the mask is True, of `no` elsewhere, whatever comes behind the batch axis."""
    return torch.where(mask_B.view(-1, *[1] * (yes.dim() - 1)), yes, no)
