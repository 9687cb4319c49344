"""The main network: what runs on the chunks of the innermost causal stage, once a frame unless its router says more.

Shape suffixes: B rows, M main tokens, D width of the stage around it, E width d2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.layers import Memory, Stack
from worldmodel.router import Routing
from worldmodel.side import Widening, action_width
from worldmodel.tokens import Marks, Side


class MainNetwork(nn.Module):
    """Tokens of the innermost stage's width in, d2 wide tokens out; the caller cuts them back."""

    def __init__(self, config: ModelConfig, latent_width: int) -> None:
        super().__init__()
        main, side = config.main, config.side
        self.width = main.width
        entries = action_width(config.action)
        self.widen = Widening(config.causal[-1].width, main.width, side, entries, side.path)
        self.stack = Stack(
            main.layers,
            main.width,
            heads=main.heads,
            mamba=config.mamba,
            causal=True,
            window=main.window,
            value_width=latent_width + entries if side.values else 0,
        )

    def forward(self, x_BMD: Tensor, side: Side, marks: Marks) -> tuple[Tensor, dict[str, Routing]]:
        """Whole rows: `(B, M, E)`, and nothing from routers, for there are none."""
        x = self.widen(x_BMD, side.action, side.path)
        return self.stack(x, marks.reset, values=side.values), {}

    def step(
        self, x_BD: Tensor, side: Side, memory: Memory, active_B: Tensor | None, *, frame: bool, own: bool
    ) -> Tensor:
        """One token, `(B, E)`; arguments are those of `CausalStage.step`."""
        count = memory["main.count"]
        x = self.widen(x_BD, side.action, side.path)
        x = self.stack.step(x, memory, "main", count, active_B, in_place=own, values=side.values)
        memory["main.count"] = count + (1 if active_B is None else active_B)
        return x

    def initial_memory(self, batch: int) -> Memory:
        """Zeros for everything that a row remembers."""
        count = torch.zeros(batch, dtype=torch.int64, device=self.widen.rest.device)
        return {"main.count": count, **self.stack.initial_memory(batch, "main")}
