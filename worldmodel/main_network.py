"""The main network: what runs on the chunks of the innermost causal stage, once a frame unless its router says more.

    tokens ─ widened ─ layers ─ looped core ─ coda        core and coda only if the config has a loop

Shape suffixes: B rows, M main tokens, D width of the stage around it, E width d2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.layers import Memory, Stack
from worldmodel.loop_plan import LoopCues
from worldmodel.loops import CoreNoise, LoopedCore
from worldmodel.side import Widening, action_width
from worldmodel.tokens import Marks, Said, Side, number_in_piece


class MainNetwork(nn.Module):
    """Tokens of the innermost stage's width in, d2 wide tokens out; the caller cuts them back.

    Raises:
        ValueError: the loops are to follow the certainty of boundaries, and no router sets any; or more of them are
            budgeted than tokens may have.
    """

    def __init__(self, config: ModelConfig, latent_width: int) -> None:
        super().__init__()
        main, side, loop = config.main, config.side, config.main.loop
        self.width = main.width
        entries = action_width(config.action)
        self.widen = Widening(config.causal[-1].width, main.width, side, entries, side.path)

        def stack(layers: str) -> Stack:
            return Stack(
                layers,
                main.width,
                heads=main.heads,
                mamba=config.mamba,
                causal=True,
                window=main.window,
                value_width=latent_width + entries if side.values else 0,
            )

        self.stack = stack(main.layers)
        self.core = LoopedCore(loop, main.width, heads=main.heads, window=main.window) if loop.layers else None
        self.coda = stack(loop.coda) if loop.coda else None
        if loop.certainty and config.causal[-1].extra == 0:
            raise ValueError("LoopConfig.certainty needs a router around the main network: set causal.extra above 0")
        most = 1 + (config.causal[-1].max_extra if config.causal[-1].extra else 0)
        if loop.layers and loop.budget > most * loop.max_loops:
            raise ValueError(
                f"main.loop.budget={loop.budget:g} loops a frame cannot be spent: a frame has at most {most} main "
                f"tokens, and main.loop.max_loops caps each at {loop.max_loops}"
            )

    def forward(self, x_BMD: Tensor, side: Side, marks: Marks) -> tuple[Tensor, Said]:
        """Whole rows: `(B, M, E)`, and how the loops went."""
        x, notes = self.widen(x_BMD, side.action, side.path), None
        x = self.stack(x, marks.reset, values=side.values)
        if self.core is not None:
            cues = LoopCues(side.certainty, side.frame, number_in_piece(marks.reset))
            x, notes = self.core(x, cues, marks.reset, marks.present, CoreNoise(marks.key, marks.place))
        if self.coda is not None:
            x = self.coda(x, marks.reset, values=side.values)
        return x, Said({}, notes)

    def step(
        self, x_BD: Tensor, side: Side, memory: Memory, active_B: Tensor | None, *, frame: bool, own: bool
    ) -> Tensor:
        """One token, `(B, E)`; arguments are those of `CausalStage.step`."""
        count = memory["main.count"]
        x = self.widen(x_BD, side.action, side.path)
        x = self.stack.step(x, memory, "main", count, active_B, in_place=own, values=side.values)
        if self.core is not None:
            cues = LoopCues(side.certainty, side.frame, count + 1)
            x = self.core.step(x, memory, "main.core", count, cues, active_B, in_place=own)
        if self.coda is not None:
            x = self.coda.step(x, memory, "main.coda", count, active_B, in_place=own, values=side.values)
        memory["main.count"] = count + (1 if active_B is None else active_B)
        return x

    def initial_memory(self, batch: int) -> Memory:
        """Zeros for everything that a row remembers."""
        memory = self.stack.initial_memory(batch, "main")
        if self.core is not None:
            memory |= self.core.initial_memory(batch, "main.core")
        if self.coda is not None:
            memory |= self.coda.initial_memory(batch, "main.coda")
        return memory | {"main.count": torch.zeros(batch, dtype=torch.int64, device=self.widen.rest.device)}
