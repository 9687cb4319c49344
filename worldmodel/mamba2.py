"""Mamba-2 (Dao & Gu 2024) around its kernels; parameter names and shapes are those of mamba-ssm's `Mamba2`.

Shape suffixes: B batch, L positions, D model width, I inner width (= H heads x P), N state width, K filter length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worldmodel.config import MambaConfig
from worldmodel.kernels.mamba_mix import mamba_mix
from worldmodel.kernels.mamba_step import StepWeights, mamba_step


class Mamba2(nn.Module):
    """One Mamba-2 mixer: `(B, L, D) -> (B, L, D)`, causal.

    `forward` runs a whole sequence, `step` one position on a carried state; both give the same numbers.
    """

    def __init__(self, width: int, config: MambaConfig) -> None:
        super().__init__()
        self.inner = config.expand * width
        self.state = config.d_state
        self.taps = config.d_conv
        self.chunk_size = config.chunk_size
        if self.inner % config.headdim:
            raise ValueError(f"Mamba-2: expand x width = {self.inner} is not a multiple of headdim = {config.headdim}")
        self.heads = self.inner // config.headdim
        self.conv_width = self.inner + 2 * self.state

        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * self.state + self.heads, bias=False)  # [z, x, B, C, dt]
        self.conv1d = nn.Conv1d(self.conv_width, self.conv_width, self.taps, groups=self.conv_width)  # holds weights
        # dt starts log-uniform in [1e-3, 0.1], A uniform in [-16, -1]: memories of ten to a thousand positions.
        dt = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of the softplus
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)  # of what the gate lets through; holds its weight
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def _weights(self) -> StepWeights:
        assert self.conv1d.bias is not None
        filters = self.conv1d.weight[:, 0]
        return StepWeights(filters, self.conv1d.bias, self.dt_bias, self.A_log, self.D, self.norm.weight)

    def forward(self, u_BLD: Tensor, reset_BL: Tensor | None = None) -> Tensor:
        """Run whole rows, with nothing behind them and nothing after: `(B, L, D)`.

        Args:
            u_BLD: inputs.
            reset_BL: True where a new sequence begins.
        """
        u = self.in_proj(u_BLD)
        y = mamba_mix(u, self._weights(), state_width=self.state, reset_BL=reset_BL, chunk_size=self.chunk_size)
        return self.out_proj(y)

    def step(
        self,
        u_BD: Tensor,
        state: tuple[Tensor, Tensor],
        active_B: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run one position; the given state is written to only if `in_place`. Rows not `active_B` keep their state."""
        y, conv, ssm = mamba_step(self.in_proj(u_BD), *state, self._weights(), active_B=active_B, in_place=in_place)
        return self.out_proj(y), (conv, ssm)

    def extend(self, u_BLD: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run a few positions that are known together: projected at once, mixed one by one; the state is left alone."""
        u, weights, said = self.in_proj(u_BLD), self._weights(), []
        for i in range(u.shape[1]):
            y, *memory = mamba_step(u[:, i], *state, weights, in_place=i > 0)
            state = (memory[0], memory[1])
            said.append(y)
        return self.out_proj(torch.stack(said, dim=1)), state

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zeros: the convolution's window `(B, K - 1, I + 2N)` and the scan's state `(B, N, I)`."""
        new = self.dt_bias.new_zeros
        return new(batch, self.taps - 1, self.conv_width), new(batch, self.state, self.inner)
