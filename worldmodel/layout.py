"""Where the slots of frames stand among the tokens that the causal stage reads.

Every frame has 1 + K slots, for F_t and for as many chunks as the fullest frame has. Three layouts of the same tokens:

    dense     rows of slots as they are, where all frames have K chunks
    padded    empty slots taken out row by row, and pads behind each row's end
    packed    empty slots taken out, and all rows one behind the other in one row: no pads, but resets where rows begin

Shape suffixes: B rows of frames, S slots in each, R token rows, L tokens in each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.compaction import compact, pack


class Layout:
    """One of the layouts of some slots.

    Args:
        used_BS: which slots hold a token; the first of a row always does.
        kind: "dense", "padded" or "packed".

    Attributes:
        present: `(R, L)` bool, False at pads.
    """

    def __init__(self, used_BS: Tensor, kind: str) -> None:
        B, S = self.shape = used_BS.shape
        self.present = used_BS
        self.index: Tensor | None = None  # (R, L), the flat slot of each token
        if kind == "padded":
            index, self.present = compact(used_BS)
            row = torch.arange(B, device=used_BS.device).unsqueeze(1)
            self.index = index + row * S
            self.place = used_BS.long().cumsum(1) - 1 + row * index.shape[1]  # (B, S), of the flat token
        elif kind == "packed":
            index, _, _ = pack(used_BS)
            self.index = index.unsqueeze(0)
            self.present = torch.ones_like(self.index, dtype=torch.bool)
            self.place = (used_BS.flatten().long().cumsum(0) - 1).view(B, S)

    def lay(self, x_BS: Tensor) -> Tensor:
        """`(B, S, ...)` to `(R, L, ...)`; at pads stands anything."""
        if self.index is None:
            return x_BS
        return x_BS.flatten(0, 1).index_select(0, self.index.flatten()).unflatten(0, self.index.shape)

    def back(self, y_RL: Tensor) -> Tensor:
        """`(R, L, ...)` to `(B, S, ...)`; at empty slots stands what stood before them."""
        if self.index is None:
            return y_RL
        return y_RL.flatten(0, 1).index_select(0, self.place.flatten()).unflatten(0, self.shape)
