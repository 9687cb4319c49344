"""Stacks of pre-norm layers, written as in H-Net: `m` Mamba-2, `t` attention, upper case with a SwiGLU behind it.

Three uses: inside a frame (attention sees everything, `causal=False`), and between frames as a whole sequence
(`forward`) or one position at a time (`step`, on a memory of named tensors).

Shape suffixes: B batch, L positions, D width, H heads, E head width, W window.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.attention import Attention, Pieces, pieces_of
from worldmodel.config import MambaConfig
from worldmodel.mamba2 import Mamba2

Memory = dict[str, Tensor]  # every tensor has the batch first


def parse_layers(text: str) -> list[str]:
    """`"T2m1"` -> `["T", "T", "m"]`.

    Raises:
        ValueError: the text is not letters m, M, t, T each followed by a count.
    """
    if not re.fullmatch(r"([mMtT]\d+)*", text):
        raise ValueError(f"layers must read like 'm2T1' (letters m, M, t, T, each with a count), not {text!r}")
    return [kind for kind, count in re.findall(r"([mMtT])(\d+)", text) for _ in range(int(count))]


class SwiGLU(nn.Module):
    """`W_out(silu(W_gate x) * W_in x)`, inner width 8/3 of the outer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (8 * width // 3 + 15) // 16 * 16
        self.fc1 = nn.Linear(width, 2 * inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    """`x + mixer(norm(x))`, then, for upper-case kinds, `x + swiglu(norm(x))`."""

    def __init__(
        self, kind: str, width: int, *, heads: int, mamba: MambaConfig, causal: bool, window: int, value_width: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.mixer: Any = (
            Mamba2(width, mamba)
            if kind in "mM"
            else Attention(width, heads, causal=causal, window=window, value_width=value_width)
        )
        self.norm2 = nn.RMSNorm(width, eps=1e-5) if kind in "MT" else None
        self.mlp = SwiGLU(width) if kind in "MT" else None

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.mlp is None or self.norm2 is None else x + self.mlp(self.norm2(x))

    def forward(
        self,
        x_BLD: Tensor,
        reset_BL: Tensor | None,
        pieces: Pieces | None,
        values_BLS: Tensor | None,
        present_BL: Tensor | None,
    ) -> Tensor:
        h = self.norm1(x_BLD)
        if isinstance(self.mixer, Mamba2):
            h = self.mixer(h, reset_BL)
        else:
            h = self.mixer(h, reset_BL, pieces, values_BLS, present_BL)
        return self._finish(x_BLD + h)

    def step(
        self,
        x_BD: Tensor,
        memory: Memory,
        name: str,
        count: Tensor,
        active_B: Tensor | None,
        in_place: bool,
        values_BS: Tensor | None,
    ) -> Tensor:
        h = self.norm1(x_BD)
        if isinstance(self.mixer, Mamba2):
            h, state = self.mixer.step(h, (memory[f"{name}.conv"], memory[f"{name}.ssm"]), active_B, in_place=in_place)
            memory[f"{name}.conv"], memory[f"{name}.ssm"] = state
        else:
            rings = memory[f"{name}.keys"], memory[f"{name}.values"]
            h, keys, values = self.mixer.step(h, *rings, count, active_B, in_place=in_place, values_BS=values_BS)
            memory[f"{name}.keys"], memory[f"{name}.values"] = keys, values
        return self._finish(x_BD + h)

    def extend(self, x_BLD: Tensor, memory: Memory, name: str, count: Tensor, values_BLS: Tensor | None) -> Tensor:
        h = self.norm1(x_BLD)
        if isinstance(self.mixer, Mamba2):
            h, state = self.mixer.extend(h, (memory[f"{name}.conv"], memory[f"{name}.ssm"]))
            memory[f"{name}.conv"], memory[f"{name}.ssm"] = state
        else:
            keys, values, said = memory[f"{name}.keys"], memory[f"{name}.values"], []
            for i in range(h.shape[1]):
                side = None if values_BLS is None else values_BLS[:, i]
                y, keys, values = self.mixer.step(h[:, i], keys, values, count + i, in_place=i > 0, values_BS=side)
                said.append(y)
            memory[f"{name}.keys"], memory[f"{name}.values"] = keys, values
            h = torch.stack(said, dim=1)
        return self._finish(x_BLD + h)

    def initial_memory(self, batch: int, name: str) -> Memory:
        if isinstance(self.mixer, Mamba2):
            conv, ssm = self.mixer.initial_state(batch)
            return {f"{name}.conv": conv, f"{name}.ssm": ssm}
        width = self.mixer.out.weight.shape[0]
        ring = self.mixer.out.weight.new_zeros(batch, self.mixer.window, self.mixer.heads, width // self.mixer.heads)
        return {f"{name}.keys": ring, f"{name}.values": ring}


class Stack(nn.Module):
    """Blocks and a final norm: every sub-network of an H-Net ends normalised.

    Args:
        layers: as `parse_layers` reads them.
        width: D.
        heads, mamba, causal, window: of the mixers.
        value_width: entries of what value embeddings are made of, 0 without.
        recalls: whether every block is shown an x0: `block(x + gain * x0)`, with a gain for each, zero at first.
    """

    def __init__(
        self,
        layers: str,
        width: int,
        *,
        heads: int,
        mamba: MambaConfig,
        causal: bool,
        window: int = 0,
        value_width: int = 0,
        recalls: bool = False,
    ) -> None:
        super().__init__()
        kinds = parse_layers(layers)
        self.causal, self.attends = causal, any(kind in "tT" for kind in kinds)
        self.blocks: Iterable[Any] = nn.ModuleList(
            Block(kind, width, heads=heads, mamba=mamba, causal=causal, window=window, value_width=value_width)
            for kind in kinds
        )
        self.gain = nn.Parameter(torch.zeros(len(kinds))) if recalls else None
        self.norm = nn.RMSNorm(width, eps=1e-5)
        for block in self.blocks:  # residual branches start smaller the more of them there are
            for module in block.modules():
                for label in ("out", "out_proj", "fc2"):
                    if isinstance(linear := getattr(module, label, None), nn.Linear):
                        nn.init.normal_(linear.weight, std=linear.in_features**-0.5 / (2 * len(kinds)) ** 0.5)

    def _shown(self, x: Tensor, i: int, x0: Tensor | None) -> Tensor:
        return x if self.gain is None or x0 is None else x + self.gain[i] * x0

    def forward(
        self,
        x_BLD: Tensor,
        reset_BL: Tensor | None = None,
        *,
        values: Tensor | None = None,
        x0: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Whole rows.

        Args:
            x_BLD: the inputs.
            reset_BL: True where a new sequence begins.
            values: `(B, L, value width)`.
            x0: `(B, L, D)`.
            present: `(B, L)` bool, False at pads, all on the right, that whole frames are not to see.
        """
        by_pieces = self.attends and present is None
        pieces = pieces_of(x_BLD, reset_BL, causal=self.causal) if by_pieces else None
        for i, block in enumerate(self.blocks):
            x_BLD = block(self._shown(x_BLD, i, x0), reset_BL, pieces, values, present)
        return self.norm(x_BLD)

    def step(
        self,
        x_BD: Tensor,
        memory: Memory,
        name: str,
        count: Tensor,
        active_B: Tensor | None = None,
        *,
        in_place: bool = False,
        values: Tensor | None = None,
        x0: Tensor | None = None,
    ) -> Tensor:
        """One position.

        Args:
            x_BD: the inputs.
            memory: the state, changed as a dict: entries under `name` are replaced.
            name: prefix of this stack's entries.
            count: `(B,)` int64, positions this stack has seen before.
            active_B: False in rows that sit this position out: their memory stays, their output is anything.
            in_place: whether the tensors in `memory` may be written to; otherwise they are left alone.
            values, x0: of this position.
        """
        for i, block in enumerate(self.blocks):
            x_BD = block.step(self._shown(x_BD, i, x0), memory, f"{name}.{i}", count, active_B, in_place, values)
        return self.norm(x_BD)

    def extend(
        self,
        x_BLD: Tensor,
        memory: Memory,
        name: str,
        count: Tensor,
        *,
        values: Tensor | None = None,
        x0: Tensor | None = None,
    ) -> Tensor:
        """Several positions that are known together: what as many calls of `step` give, sooner.

        Arguments are those of `step`. The tensors in `memory` are left alone.
        """
        for i, block in enumerate(self.blocks):
            x_BLD = block.extend(self._shown(x_BLD, i, x0), memory, f"{name}.{i}", count, values)
        return self.norm(x_BLD)

    def initial_memory(self, batch: int, name: str) -> Memory:
        """The state before the first position, all zeros."""
        memory: Memory = {}
        for i, block in enumerate(self.blocks):
            memory |= block.initial_memory(batch, f"{name}.{i}")
        return memory
