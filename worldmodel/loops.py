"""Recurrent depth: a core of a few layers that is run several times, sooner or later done with a token.

    s_0 = 0, noise in training, or where the token before ended (`warm_start`)
    s_{i+1} = core(A [s_i ; e])                                       e: what the layers before the core say

After Geiping et al. 2025 (arXiv 2502.05171, section 3): in training the number of loops is drawn, and the gradient goes
through the last ones only. Tokens need not all get the same number: one that has had its loops keeps its s, and in
later loops the others read its newest keys and values.

`forward` runs whole rows at once, `step` one token a row on a carried memory; both give the same numbers. Where a token
needs the whole loop of the one before (`keys == "last"`, `warm_start`), whole rows go token after token as well: right,
and as slow as it sounds.

Shape suffixes: B rows, M main tokens, T tokens of a call, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.config import LoopConfig
from worldmodel.layers import Memory
from worldmodel.loop_core import Core, Ran, moved
from worldmodel.loop_past import RingPast, RowPast, Sight
from worldmodel.loop_plan import (
    LoopCues,
    LoopPlan,
    Purse,
    draw_loops,
    plan_backprop,
    plan_loops,
    plan_step,
    starting_noise,
)


@dataclass
class LoopNotes:
    """What to watch in a looped core: detached scalars over the tokens that are present.

    Attributes:
        loops: mean loops a token.
        each: `(B, M)` int64, the loops of each token, 0 at pads.
        correlation: mean correlation between the s of two tokens; near 1 the core has collapsed.
        moved: mean |s_r - s_{r-1}| / |s_r| of a token's last loop; near 1 more loops would have gone on.
    """

    loops: Tensor
    each: Tensor
    correlation: Tensor
    moved: Tensor


@dataclass
class CoreNoise:
    """What the randomness of a training pass follows from, the same in whatever layout the tokens are.

    Attributes:
        key: `(B, M)` int64 noise key of each token's row. The first one draws the number of loops, for all.
        place: `(B, M)` int64, a number that the token shares with no other of its row.
    """

    key: Tensor
    place: Tensor


class LoopedCore(Core):
    """The looped core of a main network, see the module's docstring.

    Args:
        config: what is looped and how often; its `coda` is the caller's.
        width: D.
        heads, window: of the attention, as in `worldmodel.attention.Attention`.

    Attributes:
        loops: what `set_loops` said.

    Raises:
        ValueError: the core has no layers, its attention does not fit the width, or `loops` is above `max_loops`.
    """

    def __init__(self, config: LoopConfig, width: int, *, heads: int, window: int) -> None:
        super().__init__(config, width, heads=heads, window=window)
        if config.loops > config.max_loops:
            raise ValueError(
                f"main.loop.loops={config.loops:g} is the mean of what main.loop.max_loops={config.max_loops} caps: "
                "raise the cap"
            )
        self.config, self.heads, self.window = config, heads, window
        self.loops: float | None = None

    @property
    def alike(self) -> bool:
        """Whether all tokens get the same loops outside of training, so that a step has nothing to ask the host."""
        return not (self.config.certainty or self.config.budget or self.config.exit)

    def set_loops(self, loops: float | None) -> None:
        """Choose the base number of loops outside of training; None is the config's.

        Raises:
            ValueError: the number is below 1 or above `max_loops`.
        """
        if loops is not None and not 1 <= loops <= self.config.max_loops:
            raise ValueError(
                f"loops must lie between 1 and max_loops, which is {self.config.max_loops}, not at {loops!r}"
            )
        self.loops = loops

    # ---- whole rows -----------------------------------------------------------------------------------------------

    def forward(
        self, e_BMD: Tensor, cues: LoopCues, reset_BM: Tensor, present_BM: Tensor, noise: CoreNoise
    ) -> tuple[Tensor, LoopNotes]:
        """Run whole rows.

        Args:
            e_BMD: what the core is shown in every loop.
            cues: `(B, M)`, what the config's rules ask for.
            reset_BM: True where a new piece begins.
            present_BM: False at pads, which all lie to the right; what comes out there is anything.
            noise: for training.

        Returns:
            `s_BMD` after each token's last loop, and the notes.
        """
        B, M, D = e_BMD.shape
        plan = self._plan(cues, present_BM, noise.key[0, 0])
        noisy = self.training and not self.config.warm_start
        s = starting_noise(noise.key, noise.place, D).to(e_BMD) if noisy else torch.zeros_like(e_BMD)
        if self.config.keys == "last" or self.config.warm_start:
            ran = self._one_by_one(s, e_BMD, reset_BM, plan)
        else:
            sight, place = Sight(e_BMD, reset_BM, self.window), torch.arange(M, device=s.device).repeat(B)
            pasts = [RowPast(sight) for _ in self.blocks]
            ran = self.run(s.flatten(0, 1), e_BMD.flatten(0, 1), place, pasts, plan.map(torch.flatten))
        return ran.s.view(B, M, D), _notes(ran, present_BM)

    def _plan(self, cues: LoopCues, present_BM: Tensor, key: Tensor) -> LoopPlan:
        config = self.config
        if self.training:
            loops = plan_loops(config, draw_loops(config, key), cues)
            plan = LoopPlan(loops, plan_backprop(config, cues), present_BM, 0.0)
        else:
            plan = LoopPlan(plan_loops(config, self._base(), cues), None, present_BM, config.exit)
        # Pads that run among tokens that all run alike do no harm, and a mask would cost more than they do.
        return replace(plan, running=None) if isinstance(plan.loops, int) and not plan.exit else plan

    def _one_by_one(self, s_BMD: Tensor, e_BMD: Tensor, reset_BM: Tensor, plan: LoopPlan) -> Ran:
        """Whole rows as steps are run, with a gradient where there is one."""
        B, M, _ = e_BMD.shape
        place = torch.arange(M, device=e_BMD.device)
        count = place - torch.where(reset_BM, place, 0).cummax(1).values
        most = plan.loops if isinstance(plan.loops, int) else int(plan.loops.max())
        memory, own = self._rings(B, "core", most), not torch.is_grad_enabled()
        runs: list[Ran] = []
        for m in range(M):
            s = s_BMD[:, m]
            if self.config.warm_start and m:
                s = torch.where(reset_BM[:, m, None], 0.0, runs[-1].s)
            pasts = self._ring_pasts(memory, "core", count[:, m], in_place=own)
            runs.append(self.run(s, e_BMD[:, m], count[:, m], pasts, plan.map(itemgetter((slice(None), m)))))
        s, before, loops = (
            torch.stack(parts, 1).flatten(0, 1) for parts in zip(*((r.s, r.before, r.loops) for r in runs))
        )
        return Ran(s, before, loops)

    # ---- one token a row ------------------------------------------------------------------------------------------

    def initial_memory(self, batch: int, name: str) -> Memory:
        """The state before the first token, all zeros."""
        memory = self._rings(batch, name, self.config.max_loops)
        if self.config.warm_start:
            memory[f"{name}.state"] = self.adapter.weight.new_zeros(batch, self.adapter.out_features)
        if self.config.budget:
            purse = Purse.empty(self.adapter.weight.new_zeros(batch))
            memory |= {f"{name}.purse.{what}": value for what, value in vars(purse).items()}
        return memory

    def step(
        self,
        e_BD: Tensor,
        memory: Memory,
        name: str,
        count_B: Tensor,
        cues: LoopCues,
        active_B: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        """One token, never as in training: no noise, no draw.

        Args:
            e_BD: what the core is shown in every loop.
            memory: the state, changed as a dict: entries under `name` are replaced.
            name: prefix of the core's entries.
            count_B: int64, tokens this core has seen before.
            cues: `(B,)`, what the config's rules ask for.
            active_B: False in rows that sit this token out: their memory stays, their output is anything.
            in_place: whether the tensors in `memory` may be written to; otherwise they are left alone.

        Returns:
            `s_BD` after each row's last loop.
        """
        writes = not torch.is_grad_enabled()  # autograd needs every loop's rings as they were read
        if writes and not in_place:
            memory |= {ring: memory[ring].clone() for ring in self._ring_names(name)}  # once for all loops
        s = memory[f"{name}.state"] if self.config.warm_start else torch.zeros_like(e_BD)
        pasts = self._ring_pasts(memory, name, count_B, in_place=writes)
        loops = self._plan_step(memory, name, cues, active_B)
        plan = LoopPlan(loops, None, active_B, self.config.exit)
        ran = self.run(s, e_BD, count_B, pasts, plan)
        if self.config.warm_start:
            memory[f"{name}.state"] = ran.s
        return ran.s

    def _plan_step(self, memory: Memory, name: str, cues: LoopCues, active_B: Tensor | None) -> int | Tensor:
        before = None
        if self.config.budget:
            before = Purse(*(memory[f"{name}.purse.{field.name}"] for field in fields(Purse)))
        loops, after = plan_step(self.config, self._base(), cues, before)
        if before is not None and after is not None:
            after = after if active_B is None else after.where(active_B, before)
            memory |= {f"{name}.purse.{what}": value for what, value in vars(after).items()}
        return loops

    # ---- what both share ------------------------------------------------------------------------------------------

    def _base(self) -> float:
        return self.config.loops if self.loops is None else self.loops

    def _rings(self, batch: int, name: str, loops: int) -> Memory:
        rings = 1 if self.config.keys == "last" else loops
        weight, heads = self.adapter.weight, self.heads
        shape = (batch, self.window, rings, heads, len(weight) // heads)
        return {ring: weight.new_zeros(shape) for ring in self._ring_names(name)}

    def _ring_names(self, name: str) -> list[str]:
        return [f"{name}.{i}.{what}" for i in range(len(self.blocks)) for what in ("keys", "values")]

    def _ring_pasts(self, memory: Memory, name: str, count_B: Tensor, *, in_place: bool) -> list[RingPast]:
        return [RingPast(memory, f"{name}.{i}", count_B, in_place=in_place) for i in range(len(self.blocks))]


def _notes(ran: Ran, present_BM: Tensor) -> LoopNotes:
    present_T, count = present_BM.flatten(), present_BM.sum()

    def mean(x_T: Tensor) -> Tensor:
        return x_T.masked_fill(~present_T, 0).sum() / count

    s = ran.s.detach().float()
    unit = F.normalize(s - s.mean(-1, keepdim=True), dim=-1)
    unit = unit.masked_fill(~present_T.unsqueeze(-1), 0)
    # The sum over all pairs is the square of the sum; each token's correlation of 1 with itself is taken away.
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    correlation = pairs / (count * (count - 1)).clamp(min=1)
    each = ran.loops.view(present_BM.shape) * present_BM
    return LoopNotes(mean(ran.loops), each, correlation, mean(moved(ran.s, ran.before)))
