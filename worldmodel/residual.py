"""The residual around what a causal stage runs inside: what its chunks leave out must come by another way.

In H-Net it is a linear layer in full precision that starts at zero. A layer that mixes over time can say more, and it
still starts at zero, because the linear one stands behind it.

Shape suffixes: B rows, L tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import CausalConfig, MambaConfig
from worldmodel.layers import Memory, Stack

LAYERS = {"linear": "", "mamba": "m1", "attention": "t1"}


class Residual(nn.Module):
    """`(B, L, D)` to `(B, L, D)`: "linear", or behind one layer of "mamba" or "attention"."""

    def __init__(self, config: CausalConfig, mamba: MambaConfig) -> None:
        super().__init__()
        layers, width = LAYERS[config.residual], config.width
        self.stack = None
        if layers:
            self.stack = Stack(layers, width, heads=config.heads, mamba=mamba, causal=True, window=config.window)
        self.weight = nn.Parameter(torch.zeros(width, width))
        self.bias = nn.Parameter(torch.zeros(width))  # a random one would be a word that nobody said

    def _linear(self, h: Tensor) -> Tensor:
        kind = h.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return F.linear(h.float(), self.weight, self.bias)
        return F.linear(h, self.weight, self.bias)

    def forward(self, h_BLD: Tensor, reset_BL: Tensor) -> Tensor:
        """Whole rows."""
        return self._linear(h_BLD if self.stack is None else self.stack(h_BLD, reset_BL))

    def step(
        self, h_BD: Tensor, memory: Memory, name: str, count: Tensor, active_B: Tensor | None, *, in_place: bool
    ) -> Tensor:
        """One position; arguments are those of `Stack.step`."""
        if self.stack is not None:
            h_BD = self.stack.step(h_BD, memory, name, count, active_B, in_place=in_place)
        return self._linear(h_BD)

    def extend(self, h_BLD: Tensor, memory: Memory, name: str, count: Tensor) -> Tensor:
        """Several positions; arguments are those of `Stack.extend`."""
        return self._linear(h_BLD if self.stack is None else self.stack.extend(h_BLD, memory, name, count))

    def initial_memory(self, batch: int, name: str) -> Memory:
        """What a layer remembers."""
        return {} if self.stack is None else self.stack.initial_memory(batch, name)
