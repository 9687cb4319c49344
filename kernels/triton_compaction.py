"""Compaction in Triton: a program a row moves its kept slots to the left; chunks are spread and summed without atomics.

Shape suffixes: B rows, S slots, M kept slots of the fullest row, N kept slots of all rows, L positions, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.kernels.compaction import totals

POSITIONS = 8  # of a tile


@triton.jit
def _compact_kernel(mask_ptr, start_ptr, index_ptr, S, M, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    start = tl.load(start_ptr + b)  # packed: where the row begins; else: how many it keeps
    kept = tl.zeros([], tl.int32)
    for lo in range(0, S, BLOCK):
        s = lo + tl.arange(0, BLOCK)
        keep = tl.load(mask_ptr + b * S + s, mask=s < S, other=0).to(tl.int32)
        before = kept + tl.cumsum(keep, 0) - keep
        if PACKED:
            tl.store(index_ptr + start + before, b * S + s, mask=keep != 0)
        else:
            to = tl.where(keep != 0, before, start + s - before)
            tl.store(index_ptr + b * M + to, s.to(tl.int64), mask=(s < S) & (to < M))
        kept += tl.sum(keep, 0)


@triton.jit
def _spread_kernel(
    z_ptr, chunk_ptr, out_ptr, L, M, D, z_stride_B, z_stride_M, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    l = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)  # noqa: E741
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    there = (l < L)[:, None] & (d < D)[None, :]
    m = tl.load(chunk_ptr + b * L + l, mask=l < L, other=-1)
    z = z_ptr + b * z_stride_B + m[:, None] * z_stride_M + d[None, :]
    value = tl.load(z, mask=there & ((m >= 0) & (m < M))[:, None], other=0.0)
    tl.store(out_ptr + (b * L + l[:, None]) * D + d[None, :], value, mask=there)


@triton.jit
def _gather_kernel(
    dout_ptr, begin_ptr, dz_ptr, L, M, D, ACCUMULATE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(begin_ptr + b * (M + 1) + m).to(tl.int32)
    end = tl.load(begin_ptr + b * (M + 1) + m + 1).to(tl.int32)
    total = tl.zeros([BLOCK_D], ACCUMULATE)
    for lo in range(begin, end, BLOCK_L):
        l = lo + tl.arange(0, BLOCK_L)  # noqa: E741
        there = (l < end)[:, None] & (d < D)[None, :]
        dout = tl.load(dout_ptr + (b * L + l[:, None]) * D + d[None, :], mask=there, other=0.0)
        total += tl.sum(dout.to(ACCUMULATE), 0)
    tl.store(dz_ptr + (b * M + m) * D + d, total, mask=d < D)


def _launch(mask_BS: Tensor, start_B: Tensor, index: Tensor, M: int, packed: bool) -> None:
    B, S = mask_BS.shape
    if index.numel():
        block = min(1024, triton.next_power_of_2(S))
        mask = mask_BS.contiguous().view(torch.uint8)
        _compact_kernel[(B,)](mask, start_B, index, S, M, PACKED=packed, BLOCK=block)


def compact_triton(mask_BS: Tensor, length: int | None) -> tuple[Tensor, Tensor]:
    """See `compact`."""
    count = mask_BS.sum(1)
    M = (int(count.max()) if len(count) else 0) if length is None else length
    index = count.new_empty(len(count), M)
    _launch(mask_BS, count, index, M, packed=False)
    return index, torch.arange(M, device=index.device) < count.unsqueeze(1)


def pack_triton(mask_BS: Tensor) -> tuple[Tensor, Tensor, int]:
    """See `pack`."""
    count = mask_BS.sum(1)
    bounds = F.pad(count.cumsum(0), (1, 0))
    N, longest = totals(count, bounds)
    index = count.new_empty(N)
    _launch(mask_BS, bounds, index, 0, packed=True)
    return index, bounds.int(), longest


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_BMD: Tensor, chunk_BL: Tensor) -> Tensor:
        (B, M, D), L = z_BMD.shape, chunk_BL.shape[1]
        ctx.M = M
        ctx.save_for_backward(chunk_BL)
        z = z_BMD if z_BMD.stride(2) == 1 else z_BMD.contiguous()
        out = z.new_empty(B, L, D)
        if out.numel():
            block = min(128, triton.next_power_of_2(D))
            grid = (B, triton.cdiv(L, POSITIONS), triton.cdiv(D, block))
            _spread_kernel[grid](z, chunk_BL, out, L, M, D, z.stride(0), z.stride(1), BLOCK_L=POSITIONS, BLOCK_D=block)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BLD: Tensor) -> tuple[Tensor, None]:
        (chunk_BL,), M = ctx.saved_tensors, ctx.M
        B, L, D = dout_BLD.shape
        dz = dout_BLD.new_empty(B, M, D)
        if dz.numel():
            # Where each chunk begins, and the last one ends; the indices are sorted already.
            m = torch.arange(M + 1, device=dz.device).repeat(B, 1)
            begin = torch.searchsorted(chunk_BL, m)
            block = min(128, triton.next_power_of_2(D))
            _gather_kernel[(B, M, triton.cdiv(D, block))](
                dout_BLD.contiguous(),
                begin,
                dz,
                L,
                M,
                D,
                ACCUMULATE=tl.float64 if dz.dtype == torch.float64 else tl.float32,
                BLOCK_L=POSITIONS,
                BLOCK_D=block,
            )
        return dz, None


def spread_triton(z_BMD: Tensor, chunk_BL: Tensor) -> Tensor:
    """See `spread`."""
    return _Spread.apply(z_BMD, chunk_BL.contiguous())
