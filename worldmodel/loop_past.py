"""What a token reads in a loop: the newest keys and values of the tokens before it, and its own.

Tokens may stop after different numbers of loops. In loop i a token of loop i is read, or the last loop of one that has
stopped before. Whole rows keep one set of keys and values and replace those of the tokens that still run (`RowPast`).
Steps keep a ring for every loop, and what is written to one is written to those of all later loops (`RingPast`): the
tokens of a row come one after the other, each through all of its loops. With a single ring all loops read what the past
tokens came to in their last loop.

Shape suffixes: B rows, M main tokens, T tokens of a call (B M or B), N those of them that run, D width, H heads, E head
width, W window, R rings.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.attention import pieces_of, window_mask
from worldmodel.kernels.attention import varlen_attention
from worldmodel.layers import Memory


class Past(Protocol):
    """Keys and values of one block of the core."""

    def read(self, loop: int, index_N: Tensor | None, q_NHE: Tensor, k_NHE: Tensor, v_NHE: Tensor) -> Tensor:
        """Take in what some tokens say in a loop, and attend for them.

        Args:
            loop: from 0.
            index_N: which of the T tokens; None for all of them.
            q_NHE, k_NHE, v_NHE: their queries, keys and values.

        Returns:
            `y_NHE`.
        """


class Sight:
    """Which tokens of whole rows see which: found once a pass, for all blocks and loops."""

    def __init__(self, e_BMD: Tensor, reset_BM: Tensor, window: int) -> None:
        self.rows, self.length, _ = e_BMD.shape
        self.window = window
        self.pieces = pieces_of(e_BMD, reset_BM, causal=True)
        self.mask = window_mask(self.length, window, reset_BM, e_BMD.device) if self.pieces is None else None

    def attend(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor) -> Tensor:
        """`y_THE`."""
        if self.pieces is not None:
            return varlen_attention(q_THE, k_THE, v_THE, *self.pieces, causal=True, window=self.window)
        q, k, v = (t.unflatten(0, (self.rows, self.length)).transpose(1, 2) for t in (q_THE, k_THE, v_THE))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2).flatten(0, 1)


class RowPast:
    """The past within whole rows, T = B M."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def read(self, loop: int, index_N: Tensor | None, q_NHE: Tensor, k_NHE: Tensor, v_NHE: Tensor) -> Tensor:
        if index_N is None:
            self.keys, self.values = k_NHE, v_NHE
            return self.sight.attend(q_NHE, k_NHE, v_NHE)
        nothing = q_NHE.new_zeros(self.sight.rows * self.sight.length, *q_NHE.shape[1:])
        self.keys = (nothing if self.keys is None else self.keys).index_copy(0, index_N, k_NHE)
        self.values = (nothing if self.values is None else self.values).index_copy(0, index_N, v_NHE)
        q = nothing.index_copy(0, index_N, q_NHE)
        return self.sight.attend(q, self.keys, self.values).index_select(0, index_N)


class RingPast:
    """The past of rows that come to a token each, T = B, in rings `(B, W, R, H, E)`.

    Args:
        memory: entries `name.keys` and `name.values` are replaced.
        name: of the block.
        count_B: int64, how many tokens came before.
        in_place: whether the rings may be written to.
    """

    def __init__(self, memory: Memory, name: str, count_B: Tensor, *, in_place: bool) -> None:
        self.memory, self.keys, self.values = memory, f"{name}.keys", f"{name}.values"
        self.in_place = in_place
        window = memory[self.keys].shape[1]
        self.slot = count_B % window
        self.filled = torch.arange(window, device=count_B.device) <= count_B[:, None]

    def read(self, loop: int, index_N: Tensor | None, q_NHE: Tensor, k_NHE: Tensor, v_NHE: Tensor) -> Tensor:
        k, v = self._put(self.keys, loop, index_N, k_NHE), self._put(self.values, loop, index_N, v_NHE)
        filled = (self.filled if index_N is None else self.filled[index_N])[:, None, None, :]
        y = F.scaled_dot_product_attention(q_NHE.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=filled)
        return y.squeeze(2)

    def _put(self, name: str, loop: int, index_N: Tensor | None, new_NHE: Tensor) -> Tensor:
        """Write, and return what the loop then reads, `(N, W, H, E)`."""
        ring = self.memory[name] if self.in_place else self.memory[name].clone()
        rows = torch.arange(len(ring), device=ring.device) if index_N is None else index_N
        at = min(loop, ring.shape[2] - 1)
        ring[rows, self.slot[rows], at:] = new_NHE.unsqueeze(1).to(ring.dtype)  # half as wide under autocast
        self.memory[name] = ring
        return ring[:, :, at] if index_N is None else ring[:, :, at][index_N]
