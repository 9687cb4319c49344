"""Attention: over a whole frame, over the last positions of rows, or one position on rings of keys and values.

Shape suffixes: B batch, L positions, D width, H heads, E head width, W window, S entries from the side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.kernels.attention import pack, varlen_attention

GATE = 16  # entries of x that decide how much of a value embedding is let in
LONG = 256  # a single row longer than this is faster as pieces than with a mask over all of it
Pieces = tuple[Tensor, int]  # where they begin and end among all positions, and how long the longest is


def pieces_of(x_BLD: Tensor, reset_BL: Tensor | None, *, causal: bool) -> Pieces | None:
    """The sequences in some rows, where attention is to go by sequences and not by rows with a mask; else None.

    Once for a whole stack: with resets it costs a GPU one synchronisation with the host.
    """
    B, L, _ = x_BLD.shape
    if not (x_BLD.is_cuda or (causal and B == 1 and L > LONG)):
        return None
    return pack(reset_BL if causal else None, B, L, x_BLD.device)


def rotate(x: Tensor, position_BL: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) of the first half of each head: only distances matter, so time may go on.

    Args:
        x: `(..., B, H, L, E)`, queries and keys together.
        position_BL: where in time each is.
    """
    pairs = x.shape[-1] // 4
    speed = 1e4 ** (-torch.arange(pairs, device=x.device, dtype=torch.float64) / pairs)
    angle = (position_BL[:, None, :, None].double() * speed).remainder(2 * torch.pi)  # fp64: a long dream stays exact
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


def window_mask(length: int, window: int, reset_BL: Tensor | None, device: torch.device) -> Tensor:
    """Which positions (last axis) a position sees: the last `window` of its own piece, itself among them.

    Returns:
        Bool, `(L, L)`, or `(B, 1, L, L)` with resets.
    """
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    mask = (back >= 0) & (back < window)
    if reset_BL is None:
        return mask
    piece = reset_BL.long().cumsum(1)
    return (mask & (piece[:, :, None] == piece[:, None, :])).unsqueeze(1)


class Attention(nn.Module):
    """Multi-head attention: over a whole frame (`causal=False`) or over the last `window` positions.

    With `value_width`, values have an embedding of what came from the side added to them (value embeddings, as in
    modded-nanogpt): `v + 2 sigmoid(gate x) * embed(side)`, a gate for each head from the first entries of x. The
    embedding starts at zero and the gate at one.
    """

    def __init__(self, width: int, heads: int, *, causal: bool, window: int = 0, value_width: int = 0) -> None:
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise ValueError(f"attention: width {width} does not split into {heads} heads of a multiple of 4")
        if causal and window < 1:
            raise ValueError(f"attention: a window of {window} positions sees nothing, not even the present")
        self.heads, self.causal, self.window = heads, causal, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.embed_value = None
        if value_width:
            self.embed_value = nn.Linear(value_width, width, bias=False)
            nn.init.zeros_(self.embed_value.weight)
            self.value_gate = nn.Linear(min(GATE, width), heads, bias=False)
            nn.init.zeros_(self.value_gate.weight)

    def project(
        self, x_BLD: Tensor, position_BL: Tensor | None, values_BLS: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `(B, H, L, E)`; the first two rotated by their positions, if there are any."""
        B, L, D = x_BLD.shape
        qkv = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = qkv[:2] if position_BL is None else rotate(qkv[:2], position_BL)
        v = qkv[2]
        if self.embed_value is not None and values_BLS is not None:
            gate = 2 * self.value_gate(x_BLD[..., : self.value_gate.in_features]).sigmoid()  # (B, L, H)
            embedded = self.embed_value(values_BLS).view(B, L, self.heads, D // self.heads)
            v = v + (gate.unsqueeze(-1) * embedded).transpose(1, 2)
        return q, k, v

    def forward(
        self,
        x_BLD: Tensor,
        reset_BL: Tensor | None = None,
        pieces: Pieces | None = None,
        values_BLS: Tensor | None = None,
        present_BL: Tensor | None = None,
    ) -> Tensor:
        """Attend; with resets, only within one's own piece of the row.

        Args:
            x_BLD: inputs.
            reset_BL: True where a new sequence begins.
            pieces: from `pieces_of`: rows are laid one behind the other, and no mask over whole rows is made.
            values_BLS: what value embeddings are made of.
            present_BL: False at positions that nobody is to see; for attention over whole frames.
        """
        B, L, D = x_BLD.shape
        if pieces is not None:
            return self._packed(x_BLD, pieces, values_BLS)
        place = torch.arange(L, device=x_BLD.device)
        q, k, v = self.project(x_BLD, place[None] if self.causal else None, values_BLS)
        mask = window_mask(L, self.window, reset_BL, x_BLD.device) if self.causal else None
        if present_BL is not None and not self.causal:  # and everybody sees itself: where nobody is, 0 / 0
            mask = present_BL[:, None, None, :] | (place[:, None] == place)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(B, L, D))

    def _packed(self, x_BLD: Tensor, pieces: Pieces, values_BLS: Tensor | None) -> Tensor:
        B, L, D = x_BLD.shape
        place = torch.arange(L, device=x_BLD.device)[None] if self.causal else None
        q, k, v = self.project(x_BLD, place, values_BLS)
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        window = self.window if self.causal else 0
        y = varlen_attention(q, k, v, *pieces, causal=self.causal, window=window)
        return self.out(y.reshape(B, L, D))

    def step(
        self,
        x_BD: Tensor,
        keys: Tensor,
        values: Tensor,
        count: Tensor,
        active_B: Tensor | None = None,
        *,
        in_place: bool = False,
        values_BS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One position. `keys`, `values` are rings `(B, W, H, E)`; `count` `(B,)` is how many positions came before."""
        B, D = x_BD.shape
        side = None if values_BS is None else values_BS.unsqueeze(1)
        q, k, v = self.project(x_BD.unsqueeze(1), count[:, None], side)
        keys = self._put(keys, k, count, active_B, in_place)
        values = self._put(values, v, count, active_B, in_place)
        filled = (torch.arange(self.window, device=x_BD.device) <= count[:, None])[:, None, None, :]
        y = F.scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=filled)
        return self.out(y.reshape(B, D)), keys, values

    def _put(self, ring: Tensor, new_BH1E: Tensor, count: Tensor, active_B: Tensor | None, in_place: bool) -> Tensor:
        rows, slot = torch.arange(len(ring), device=ring.device), count % self.window
        new = new_BH1E[:, :, 0].to(ring.dtype)  # half as wide under autocast
        if active_B is not None:
            new = torch.where(active_B[:, None, None], new, ring[rows, slot])
        if not in_place:
            ring = ring.clone()  # and not torch.where over the whole ring, which took four times as long
        ring[rows, slot] = new
        return ring
