"""Temporal merging: each patch position is followed through time before space is merged.

A causal Mamba-2 runs along time, all positions side by side, and a threshold along time asks whether a patch has
changed enough to begin a new chunk. One that has not stays in its old chunk: the frame stage does not see it, it costs
no token, and the painter goes on with the latent that it had. A scene that stands still costs one token a frame.

A learned router can ask, too. Its gradient says what is convenient to paint anew, not what has changed: docs/hnet.md.

Shape suffixes: B rows, T frames, P patches, V values of a patch, D width d0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.boundaries import Motion
from worldmodel.config import ModelConfig
from worldmodel.layers import Memory, Stack
from worldmodel.router import Router, Routing, straight_through


@dataclass
class Changes:
    """Which patches begin a new chunk in time.

    Attributes:
        h: `(..., P, D)` what the stage says of each patch.
        changed: `(..., P)` bool; all of them where nothing is remembered.
        gate: `(..., P)` STE of a learned router's confidence, else 1.
        routing: what the threshold said, over rows of positions; None for single frames.
    """

    h: Tensor
    changed: Tensor
    gate: Tensor
    routing: Routing | None = None


class TemporalStage(nn.Module):
    """Patches of width d0 in, patches of width d0 out, and which of them are new.

    Args:
        config: of the whole model.
        patches: P.
        values: V.

    Raises:
        ValueError: the layers are not Mamba-2, or more patches are to change than there are.
    """

    def __init__(self, config: ModelConfig, patches: int, values: int) -> None:
        super().__init__()
        time, width = config.time, config.frame.width
        if set(time.layers) & set("tT"):
            raise ValueError(
                f"TimeConfig: patches are followed through time by Mamba-2, 'm' or 'M', not {time.layers!r}"
            )
        if not time.changes < patches:
            raise ValueError(f"TimeConfig: of {patches} patches a frame, {time.changes} cannot change on average")
        self.patches, self.width = patches, width
        self.stack = Stack(time.layers, width, heads=1, mamba=config.mamba, causal=True)
        rate, self.learned = time.changes / patches, time.boundary == "learned"
        self.router: Router | Motion = Router(width, rate) if self.learned else Motion(rate)
        self.scored = width if self.learned else values

    def forward(self, x_BTPD: Tensor, patches_BTPV: Tensor, reset_BT: Tensor, weight_BT: Tensor | None) -> Changes:
        """Whole rows.

        Args:
            x_BTPD: embedded patches.
            patches_BTPV: the patches.
            reset_BT: frames at which a piece begins and all patches are new.
            weight_BT: how often each frame counts in the statistics of the threshold; None leaves them alone.
        """
        B, T, P, _ = x_BTPD.shape
        reset = reset_BT.unsqueeze(1).expand(B, P, T).flatten(0, 1)  # rows of positions
        h = x_BTPD.transpose(1, 2).flatten(0, 1)
        h = h + self.stack(h, reset)
        weight = None if weight_BT is None else weight_BT.unsqueeze(1).expand(B, P, T).flatten(0, 1)
        scored = h if self.learned else patches_BTPV.transpose(1, 2).flatten(0, 1)
        routing = self.router(scored, (~reset).float(), weight)
        changed, p = routing.boundary | reset, torch.where(reset, 1.0, routing.probability)
        gate = straight_through(p, changed) if self.learned else torch.ones_like(p)
        h, changed, gate = (t.unflatten(0, (B, P)).transpose(1, 2) for t in (h, changed, gate))
        return Changes(h, changed, gate, routing)

    def initial_memory(self, batch: int) -> Memory:
        """Zeros for everything that a row remembers of its patches; all are new at the first frame."""
        tau = self.router.logit_tau
        memory = self.stack.initial_memory(batch * self.patches, "time")
        memory = {name: value.unflatten(0, (batch, self.patches)) for name, value in memory.items()}
        memory["time.before"] = tau.new_zeros(batch, self.patches, self.scored)
        memory["time.begun"] = torch.zeros(batch, dtype=torch.bool, device=tau.device)
        return memory

    def step(self, x_BPD: Tensor, patches_BPV: Tensor, memory: Memory) -> Changes:
        """One frame of each row; entries of `memory` are replaced, the tensors themselves are left alone."""
        B, P, D = x_BPD.shape
        begun = memory["time.begun"]
        # Where the row has not begun, or has dreamed in between, what is remembered of its patches counts for nothing.
        rows = {
            name: (memory[name] * begun.view(B, *[1] * (memory[name].dim() - 1))).flatten(0, 1)
            for name in memory
            if name.startswith("time.") and name not in ("time.before", "time.begun")
        }
        x = x_BPD.flatten(0, 1)
        h = x + self.stack.step(x, rows, "time", torch.zeros(B * P, dtype=torch.int64, device=x.device))
        h = h.view(B, P, D)
        scored = h if self.learned else patches_BPV
        p = self.router.probability(memory["time.before"], scored)
        p = torch.where(begun.unsqueeze(1), p, 1.0)
        memory.update({name: value.unflatten(0, (B, P)) for name, value in rows.items()})
        memory["time.before"], memory["time.begun"] = scored, torch.ones_like(begun)
        return Changes(h, p > 0.5, torch.ones_like(p))
