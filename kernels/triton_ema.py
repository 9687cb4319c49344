"""The smoothing scan in Triton: a program walks along a row with the values of some channels in its registers.

    s_j = p_j z_j + (1 - p_j) s_{j-1}
    g_j = ds_j + (1 - p_{j+1}) g_{j+1}     dz_j = p_j g_j     dp_j = sum_D g_j (z_j - s_{j-1})

Where p is 1, s_{j-1} is left out of all three, as kernels/ema.py says.

Shape suffixes: B batch, M positions, D channels, N blocks of channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.kernels.ema import ema_scan_torch


@triton.jit
def _forward_kernel(
    z_ptr, p_ptr, initial_ptr, s_ptr, last_ptr, M, D, z_stride_B, z_stride_M, INITIAL: tl.constexpr, BLOCK: tl.constexpr
):
    dtype = s_ptr.dtype.element_ty
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = tl.zeros([BLOCK], dtype)
    if INITIAL:
        s = tl.load(initial_ptr + b * D + d, mask=d < D, other=0.0).to(dtype)
    for j in range(M):
        p = tl.load(p_ptr + b * M + j).to(dtype)
        z = tl.load(z_ptr + b * z_stride_B + j * z_stride_M + d, mask=d < D, other=0.0).to(dtype)
        s = tl.where(p < 1, p * z + (1 - p) * s, p * z)
        tl.store(s_ptr + (b * M + j) * D + d, s, mask=d < D)
    tl.store(last_ptr + b * D + d, s, mask=d < D)


@triton.jit
def _backward_kernel(
    z_ptr,
    p_ptr,
    initial_ptr,
    s_ptr,
    ds_ptr,
    dlast_ptr,
    dz_ptr,
    dp_ptr,
    dinitial_ptr,
    B,
    M,
    D,
    z_stride_B,
    z_stride_M,
    INITIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype = s_ptr.dtype.element_ty
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1)
    d = n * BLOCK + tl.arange(0, BLOCK)
    initial = tl.zeros([BLOCK], dtype)
    if INITIAL:
        initial = tl.load(initial_ptr + b * D + d, mask=d < D, other=0.0).to(dtype)
    g = tl.load(dlast_ptr + b * D + d, mask=d < D, other=0.0)
    for back in range(M):
        j = M - 1 - back
        p = tl.load(p_ptr + b * M + j).to(dtype)
        z = tl.load(z_ptr + b * z_stride_B + j * z_stride_M + d, mask=d < D, other=0.0).to(dtype)
        before = tl.load(s_ptr + (b * M + tl.maximum(j - 1, 0)) * D + d, mask=d < D, other=0.0)
        before = tl.where(j > 0, before, initial)
        g += tl.load(ds_ptr + (b * M + j) * D + d, mask=d < D, other=0.0)
        tl.store(dz_ptr + (b * M + j) * D + d, p * g, mask=d < D)
        tl.store(dp_ptr + (n * B + b) * M + j, tl.sum(g * tl.where(p < 1, z - before, z), axis=0))
        g = (1 - p) * g
    tl.store(dinitial_ptr + b * D + d, g, mask=d < D)


class _EmaScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_BMD: Tensor, p_BM: Tensor, initial_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        B, M, D = z_BMD.shape
        ctx.block = min(64, triton.next_power_of_2(D))
        dtype = torch.float64 if z_BMD.dtype == torch.float64 else torch.float32
        s = torch.empty(B, M, D, dtype=dtype, device=z_BMD.device)
        last = s.new_empty(B, D)
        z = z_BMD if z_BMD.stride(2) == 1 else z_BMD.contiguous()  # the narrowed output of the main network stays as is
        p = p_BM.contiguous()
        initial = None if initial_BD is None else initial_BD.contiguous()
        _forward_kernel[(B, triton.cdiv(D, ctx.block))](
            z,
            p,
            s if initial is None else initial,
            s,
            last,
            M,
            D,
            z.stride(0),
            z.stride(1),
            INITIAL=initial is not None,
            BLOCK=ctx.block,
            num_warps=1,
        )
        ctx.save_for_backward(z, p, initial, s)
        return s, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ds_BMD: Tensor, dlast_BD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        z, p, initial, s = ctx.saved_tensors
        B, M, D = z.shape
        N = triton.cdiv(D, ctx.block)
        dz = torch.empty(B, M, D, dtype=z.dtype, device=z.device)
        dp, dinitial = s.new_empty(N, B, M), s.new_empty(B, D)
        _backward_kernel[(B, N)](
            z,
            p,
            s if initial is None else initial,
            s,
            ds_BMD.contiguous(),
            dlast_BD.contiguous(),
            dz,
            dp,
            dinitial,
            B,
            M,
            D,
            z.stride(0),
            z.stride(1),
            INITIAL=initial is not None,
            BLOCK=ctx.block,
            num_warps=1,
        )
        return dz, dp.sum(0).to(p.dtype), None if initial is None else dinitial.to(initial.dtype)


def ema_scan_triton(z_BMD: Tensor, p_BM: Tensor, initial_BD: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `ema_scan`."""
    if not z_BMD.numel():
        return ema_scan_torch(z_BMD, p_BM, initial_BD)
    return _EmaScan.apply(z_BMD, p_BM, initial_BD)
