"""The loop itself: `s_{i+1} = core(A [s_i ; e])` over some tokens, each until it has had its loops or has come to rest.

Whether the tokens are those of whole rows or one a row is told by the pasts that they read (`worldmodel.loop_past`),
how often each goes round by a plan (`worldmodel.loop_plan`). The adapter A, the sandwich norms and the small start of
what is added are those of Geiping et al. 2025 (arXiv 2502.05171, section 3).

Shape suffixes: T tokens of a call, N those of them that run, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.attention import Attention
from worldmodel.config import LoopConfig
from worldmodel.layers import SwiGLU, parse_layers
from worldmodel.loop_past import Past
from worldmodel.loop_plan import LoopPlan


@dataclass
class Ran:
    """How a run ended: `s_TD`, the s before each token's last loop, and how many loops each had (`(T,)` int64)."""

    s: Tensor
    before: Tensor
    loops: Tensor


@dataclass
class Turn:
    """Tokens that go through a loop together: which of the T (None: all), and whether the gradient goes with them."""

    index: Tensor | None
    learns: bool

    def of(self, x_T: Tensor) -> Tensor:
        """Their entries."""
        return x_T if self.index is None else x_T.index_select(0, self.index)

    def mode(self) -> AbstractContextManager[Any]:
        """Around what is computed for them alone."""
        return nullcontext() if self.learns else torch.no_grad()


class CoreBlock(nn.Module):
    """`x = n2(attn(n1 x) + x)`, then, for `T`, `x = n4(mlp(n3 x) + x)`; norms on both sides keep loops in bounds."""

    def __init__(self, kind: str, width: int, *, heads: int, window: int, depth: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, causal=True, window=window)
        self.mlp = SwiGLU(width) if kind == "T" else None
        self.norm3, self.norm4 = (nn.RMSNorm(width, eps=1e-5) if kind == "T" else None for _ in range(2))
        for linear in (self.attention.out, self.mlp.fc2) if self.mlp else (self.attention.out,):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5 / (2 * depth) ** 0.5)

    def project(self, x_ND: Tensor, place_N: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values `(N, H, E)` of tokens at their places in time."""
        return tuple(t.squeeze(2) for t in self.attention.project(self.norm1(x_ND).unsqueeze(1), place_N.unsqueeze(1)))

    def finish(self, x_ND: Tensor, y_NHE: Tensor) -> Tensor:
        """Behind the attention's heads."""
        x_ND = self.norm2(self.attention.out(y_NHE.flatten(1)) + x_ND)
        if self.mlp is None or self.norm3 is None or self.norm4 is None:
            return x_ND
        return self.norm4(self.mlp(self.norm3(x_ND)) + x_ND)


class Core(nn.Module):
    """The adapter and the blocks.

    Args:
        config: `layers` are the blocks; for `loops` rounds of them the weights are scaled.
        width: D.
        heads, window: of the attention, as in `worldmodel.attention.Attention`.

    Raises:
        ValueError: there are no layers, or the attention does not fit the width.
    """

    def __init__(self, config: LoopConfig, width: int, *, heads: int, window: int) -> None:
        super().__init__()
        kinds = parse_layers(config.layers)
        if not kinds:
            raise ValueError(f"LoopConfig: a core needs layers, as in 'T2', not {config.layers!r}")
        self.adapter = nn.Linear(2 * width, width, bias=False)
        depth = max(1.0, config.loops) * len(kinds)  # as a stack that is unrolled
        self.blocks: Any = nn.ModuleList(
            CoreBlock(kind, width, heads=heads, window=window, depth=depth) for kind in kinds
        )
        nn.init.normal_(self.adapter.weight, std=(2 / (5 * width)) ** 0.5)

    def run(self, s_TD: Tensor, e_TD: Tensor, place_T: Tensor, pasts: Sequence[Past], plan: LoopPlan) -> Ran:
        """Loop until every token has had its loops or has come to rest; tokens that do not run keep their s."""
        loops, running = plan.loops, plan.running
        if isinstance(loops, Tensor) and running is not None:
            loops, running = loops * running, None
        before, had = s_TD.detach(), s_TD.new_zeros(len(s_TD), dtype=torch.int64)
        for i in range(loops if isinstance(loops, int) else int(loops.max())):
            going = running
            if isinstance(loops, Tensor):
                going = loops > i if running is None else running & (loops > i)
            turns = _turns(going, True if plan.backprop is None else i >= loops - plan.backprop)
            if not turns:
                break
            new = self._once(s_TD, e_TD, place_T, pasts, i, turns)
            before = s_TD.detach() if going is None else torch.where(going.unsqueeze(1), s_TD.detach(), before)
            if plan.exit:
                moving = moved(new, s_TD) >= plan.exit
                running = moving if running is None else running & moving
            s_TD, had = new, had + (1 if going is None else going)
        return Ran(s_TD, before, had)

    def _once(
        self, s_TD: Tensor, e_TD: Tensor, place_T: Tensor, pasts: Sequence[Past], loop: int, turns: list[Turn]
    ) -> Tensor:
        """One loop. All that run meet in the attention; what each does alone is done by turns."""
        chosen = [turn.index for turn in turns if turn.index is not None]
        index = _join(chosen) if chosen else None
        hs = []
        for turn in turns:
            with turn.mode():
                h = self.adapter(torch.cat([turn.of(s_TD), turn.of(e_TD)], dim=-1))
                hs.append(h.to(s_TD.dtype))  # what is added to stays in fp32 under autocast
        for block, past in zip(self.blocks, pasts):
            projected = []
            for turn, h in zip(turns, hs):
                with turn.mode():
                    projected.append(block.project(h, turn.of(place_T)))
            y = past.read(loop, index, *map(_join, zip(*projected)))
            for n, (turn, heads) in enumerate(zip(turns, y.split([len(h) for h in hs]))):
                with turn.mode():
                    hs[n] = block.finish(hs[n], heads)
        h = _join(hs)
        return h if index is None else s_TD.index_copy(0, index, h)


def _turns(going_T: Tensor | None, learns: bool | Tensor) -> list[Turn]:
    """Who runs in a loop: all, some, or some that learn and some that do not."""
    if going_T is None:
        return [Turn(None, bool(learns))]
    split = [(going_T, learns)] if isinstance(learns, bool) else [(going_T & ~learns, False), (going_T & learns, True)]
    turns = [Turn(mask.nonzero().flatten(), learn) for mask, learn in split]
    return [turn for turn in turns if turn.index is not None and len(turn.index)]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def moved(new_TD: Tensor, old_TD: Tensor) -> Tensor:
    """`(T,)`: |new - old| / |new|, in fp32."""
    new, old = new_TD.detach().float(), old_TD.detach().float()
    return (new - old).norm(dim=-1) / new.norm(dim=-1).clamp(min=1e-6)
