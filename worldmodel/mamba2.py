"""Mamba-2 (Dao & Gu 2024) in plain torch; parameter names and shapes are those of mamba-ssm's `Mamba2`.

Shape suffixes: B batch, L positions, D model width, I inner width (= H heads x P), N state width, K filter length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import MambaConfig
from worldmodel.kernels.conv import causal_conv
from worldmodel.kernels.mamba_mix import mamba_mix
from worldmodel.kernels.mamba_step import StepWeights, mamba_step
from worldmodel.kernels.ssd import ssd_scan


class GatedRMSNorm(nn.Module):
    """`RMSNorm(y * silu(z))`, the norm inside Mamba-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return F.rms_norm(y * F.silu(z), y.shape[-1:], self.weight, 1e-5)


class Mamba2(nn.Module):
    """One Mamba-2 mixer: `(B, L, D) -> (B, L, D)`, causal.

    `forward` runs a whole sequence, `step` one position on a carried state; both give the same numbers.
    """

    def __init__(self, width: int, config: MambaConfig) -> None:
        super().__init__()
        self.inner = config.expand * width
        self.state = config.d_state
        self.taps = config.d_conv
        self.headdim = config.headdim
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
        self.norm = GatedRMSNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, xBC, dt = self.in_proj(u).split([self.inner, self.conv_width, self.heads], dim=-1)
        return z, xBC, F.softplus(dt + self.dt_bias)

    def _filters(self) -> tuple[Tensor, Tensor]:
        assert self.conv1d.bias is not None
        return self.conv1d.weight[:, 0], self.conv1d.bias

    def _weights(self) -> StepWeights:
        return StepWeights(*self._filters(), self.dt_bias, self.A_log, self.D, self.norm.weight)

    def forward(
        self,
        u_BLD: Tensor,
        reset_BL: Tensor | None = None,
        state: tuple[Tensor, Tensor] | None = None,
        *,
        final_state: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Run a sequence.

        Args:
            u_BLD: inputs.
            reset_BL: True where a new sequence begins.
            state: what `forward`, `step` or `initial_state` returned, to go on from there.
            final_state: whether it is wanted.

        Returns:
            Outputs `(B, L, D)` and the state after the last position, None without `final_state`.
        """
        if state is None and not final_state:
            u = self.in_proj(u_BLD)
            y = mamba_mix(u, self._weights(), state_width=self.state, reset_BL=reset_BL, chunk_size=self.chunk_size)
            return self.out_proj(y), None
        B, L, _ = u_BLD.shape
        conv, ssm = state if state is not None else (None, None)
        z, xBC, dt = self._split(u_BLD)
        mixed, conv = causal_conv(xBC, *self._filters(), reset_BL=reset_BL, initial_BKD=conv)
        # Under autocast the scan's matrix products are to have the projection's precision, not the filters'.
        x, b, c = F.silu(mixed).to(xBC.dtype).split([self.inner, self.state, self.state], dim=-1)
        x = x.reshape(B, L, self.heads, self.headdim)
        if ssm is not None:  # steps keep it with the state's axis first
            ssm = ssm.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        y, ssm = ssd_scan(
            x,
            dt,
            -self.A_log.exp(),
            b,
            c,
            reset_BL=reset_BL,
            initial_BHPN=ssm,
            chunk_size=self.chunk_size,
            final_state=final_state,
        )
        y = torch.addcmul(y, x, self.D.unsqueeze(-1)).reshape(B, L, self.inner)
        after = (conv, ssm.permute(0, 3, 1, 2).flatten(2)) if ssm is not None else None
        return self.out_proj(self.norm(y, z)), after

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

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zeros: the convolution's window `(B, K - 1, I + 2N)` and the scan's state `(B, N, I)`."""
        new = self.dt_bias.new_zeros
        return new(batch, self.taps - 1, self.conv_width), new(batch, self.state, self.inner)
