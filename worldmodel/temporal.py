"""Temporal merging: each patch position is followed through time before space is merged.

A causal Mamba-2 runs along time, all positions side by side, and a threshold asks whether a patch has changed enough,
since it was last new, to begin a new chunk. One that has not stays in its old chunk: the frame stage does not see it,
it costs no token, and the painter goes on with the latent that it had. A scene that stands still costs one token a
frame.

Time and space can take turns: behind the first round attention goes over the new patches of each frame, and a second
stage follows the patches as they are then, and asks again. Only what was new in every round is new in the end.

A learned router can ask, too. Its gradient says what is convenient to paint anew, not what has changed: docs/hnet.md.

Shape suffixes: B rows, T frames, P patches, V values of a patch, D width d0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from worldmodel.boundaries import Motion, moved, moved_since
from worldmodel.config import ModelConfig
from worldmodel.kernels.compaction import compact, take
from worldmodel.layers import Memory, Stack
from worldmodel.router import Router, Routing, Threshold, on_the_way, straight_through


@dataclass
class Changes:
    """Which patches begin a new chunk in time.

    Attributes:
        h: `(..., P, D)` what the stage says of each patch.
        changed: `(..., P)` bool; all of them where nothing is remembered.
        gate: `(..., P)` STE of a learned router's confidence, else 1.
        routing: what the threshold of each round said, over rows of positions; empty for single frames.
    """

    h: Tensor
    changed: Tensor
    gate: Tensor
    routing: dict[str, Routing] = field(default_factory=dict)


class TemporalStage(nn.Module):
    """Patches of width d0 in, patches of width d0 out, and which of them are new.

    Args:
        config: of the whole model.
        patches: P.
        values: V.
        round: which of the rounds this is; the next one is inside it.

    Raises:
        ValueError: the layers are not Mamba-2, or more patches are to change than there are.
    """

    def __init__(self, config: ModelConfig, patches: int, values: int, round: int = 0) -> None:
        super().__init__()
        time, width = config.time, config.frame.width
        self.name = f"time{round or ''}"
        if set(time.layers) & set("tT"):
            raise ValueError(
                f"TimeConfig: patches are followed through time by Mamba-2, 'm' or 'M', not {time.layers!r}"
            )
        # From round to round by equal factors, each from where it begins to where it arrives.
        share = round / (time.rounds - 1) if time.rounds > 1 else 1.0
        self.changes = on_the_way(time.changes_outer, time.changes, share)
        self.changes_first = time.changes_first and time.changes_first * self.changes / time.changes
        if not max(self.changes, self.changes_first) < patches:
            most = max(self.changes, self.changes_first)
            raise ValueError(f"TimeConfig: of {patches} patches a frame, {most:g} cannot change on average")
        if time.rounds > 1 and 0 < time.changes_outer < time.changes:
            raise ValueError(
                f"TimeConfig: what is new in the end is new in every round, so changes_outer={time.changes_outer:g} "
                f"lets no more than that through: set it above changes={time.changes:g}"
            )
        self.patches, self.width = patches, width
        self.stack = Stack(time.layers, width, heads=1, mamba=config.mamba, causal=True)
        rate, self.learned = self.changes / patches, time.boundary == "learned"
        self.router: Router | Motion = Router(width, rate) if self.learned else Motion(rate)
        self.round, self.scored = round, width if self.learned else values
        self.space = self.inner = None
        if round + 1 < time.rounds:
            self.space = Stack(time.space, width, heads=config.frame.heads, mamba=config.mamba, causal=False)
            self.inner = TemporalStage(config, patches, values, round + 1)

    def forward(
        self,
        x_BTPD: Tensor,
        patches_BTPV: Tensor,
        reset_BT: Tensor,
        weight_BT: Tensor | None,
        moves_BTP: Tensor | None = None,
    ) -> Changes:
        """Whole rows.

        Args:
            x_BTPD: embedded patches.
            patches_BTPV: the patches, as fine as they are painted.
            reset_BT: frames at which a piece begins and all patches are new.
            weight_BT: how often each frame counts in the statistics of the threshold; None leaves them alone.
            moves_BTP: how far patches have moved, as the first round tells the others.
        """
        if moves_BTP is None and not self.learned:
            # Only what is new in every round is painted anew.
            highest = torch.stack([router.logit_tau for router in self.routers]).amax()
            moves_BTP = moved_since(patches_BTPV, reset_BT, highest)
        B, T, P, _ = x_BTPD.shape
        reset = reset_BT.unsqueeze(1).expand(B, P, T).flatten(0, 1)  # rows of positions
        h = x_BTPD.transpose(1, 2).flatten(0, 1)
        h = h + self.stack(h, reset)
        weight = None if weight_BT is None else weight_BT.unsqueeze(1).expand(B, P, T).flatten(0, 1)
        scored = h if moves_BTP is None else moves_BTP.transpose(1, 2).flatten(0, 1)
        routing = self.router(scored, (~reset).float(), weight)
        changed, p = routing.boundary | reset, torch.where(reset, 1.0, routing.probability)
        gate = straight_through(p, changed) if self.learned else torch.ones_like(p)
        h, changed, gate = (t.unflatten(0, (B, P)).transpose(1, 2) for t in (h, changed, gate))
        if self.inner is None:
            return Changes(h, changed, gate, {self.name: routing})
        h = self._among_the_new(h.flatten(0, 1), changed.flatten(0, 1)).unflatten(0, (B, T))
        inner = self.inner(h, patches_BTPV, reset_BT, weight_BT, moves_BTP)
        return Changes(inner.h, changed & inner.changed, gate * inner.gate, {self.name: routing, **inner.routing})

    def _among_the_new(self, h_nPD: Tensor, changed_nP: Tensor) -> Tensor:
        """Attention over the new patches of each frame; the others are not seen, and stay as they are."""
        assert self.space is not None
        order, present = compact(changed_nP)
        packed = self.space(take(h_nPD, order), present=present)
        packed = torch.where(present.unsqueeze(-1), packed, take(h_nPD, order))
        return h_nPD.scatter(1, order.unsqueeze(-1).expand_as(packed), packed)

    @property
    def routers(self) -> list[Threshold]:
        """Of all rounds."""
        return [self.router] + ([] if self.inner is None else self.inner.routers)

    def anneal(self, progress: float) -> None:
        """Set how many patches are wanted to change to where that stands; see `WorldModel.anneal`."""
        self.router.aim(on_the_way(self.changes_first, self.changes, progress) / self.patches)
        if self.inner is not None:
            self.inner.anneal(progress)

    def settle(self) -> None:
        """Let what is said of changes stand still."""
        for router in self.routers:
            router.still = True

    def fix(self) -> None:
        """Let what counts as a change stand still as well."""
        for router in self.routers:
            router.fixed = True

    def initial_memory(self, batch: int) -> Memory:
        """Zeros for everything that a row remembers of its patches; all are new at the first frame."""
        tau = self.router.logit_tau
        name = self.name
        memory = self.stack.initial_memory(batch * self.patches, name)
        memory = {name: value.unflatten(0, (batch, self.patches)) for name, value in memory.items()}
        if self.learned or self.round == 0:  # what the router saw a frame ago, or each patch as it was when it was new
            memory[f"{name}.before"] = tau.new_zeros(batch, self.patches, self.scored)
        memory[f"{name}.begun"] = torch.zeros(batch, dtype=torch.bool, device=tau.device)
        return memory if self.inner is None else memory | self.inner.initial_memory(batch)

    def step(self, x_BPD: Tensor, patches_BPV: Tensor, memory: Memory, moves_BP: Tensor | None = None) -> Changes:
        """One frame of each row; entries of `memory` are replaced, the tensors themselves are left alone."""
        B, P, D = x_BPD.shape
        own = f"{self.name}."
        begun = memory[own + "begun"]
        # Where the row has not begun, or has dreamed in between, what is remembered of its patches counts for nothing.
        rows = {
            name: (memory[name] * begun.view(B, *[1] * (memory[name].dim() - 1))).flatten(0, 1)
            for name in memory
            if name.startswith(own) and name not in (own + "before", own + "begun")
        }
        x = x_BPD.flatten(0, 1)
        h = x + self.stack.step(x, rows, self.name, torch.zeros(B * P, dtype=torch.int64, device=x.device))
        h = h.view(B, P, D)
        if isinstance(self.router, Motion):
            if moves_BP is None:
                moves_BP = moved(memory[own + "before"], patches_BPV)
            p = self.router.probability(moves_BP)
        else:
            p = self.router.probability(memory[own + "before"], h)
            memory[own + "before"] = h
        p = torch.where(begun.unsqueeze(1), p, 1.0)
        memory.update({name: value.unflatten(0, (B, P)) for name, value in rows.items()})
        memory[own + "begun"] = torch.ones_like(begun)
        changes = Changes(h, p > 0.5, torch.ones_like(p))
        if self.inner is not None:
            inner = self.inner.step(self._among_the_new(h, changes.changed), patches_BPV, memory, moves_BP)
            changes = Changes(inner.h, changes.changed & inner.changed, inner.gate)
        if self.round == 0 and not self.learned:
            held = memory[own + "before"]
            memory[own + "before"] = torch.where(changes.changed.unsqueeze(-1), patches_BPV, held)
        return changes
