"""The router's question in Triton: q and k of some pairs of vectors stay in registers, only their cosine is kept.

A program takes a block of pairs. It goes over the vectors once for their norms, then over blocks of the projections'
outputs, and of each it keeps three sums: q.k, q.q and k.k. The norms are scalars, so they are applied to the outputs.

All products are in full fp32, even of vectors that came in bf16: what is left of them without their mean is not bf16,
and where neighbours are alike the answer lies in the last bits of the cosine.

Shape suffixes: R pairs, T positions of a row, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.kernels.routing import LOWEST, boundary_logit_torch

PAIRS = 32  # of one program
BLOCK = 32  # inputs and outputs of the projections at a time


@triton.jit
def _without_mean(x_ptr, mean_ptr, at_R, d, there_R, D, dtype: tl.constexpr):
    x = tl.load(x_ptr + at_R[:, None] + d[None, :], mask=there_R[:, None] & (d < D)[None, :], other=0.0).to(dtype)
    # What is not there must stay 0, not become -mean.
    mean = tl.load(mean_ptr + d, mask=d < D, other=0.0).to(dtype)
    return tl.where(there_R[:, None], x - mean[None, :], 0.0)


@triton.jit
def _weight(w_ptr, i, o, D, dtype: tl.constexpr):
    there = (i < D)[:, None] & (o < D)[None, :]
    return tl.load(w_ptr + o[None, :] * D + i[:, None], mask=there, other=0.0).to(dtype)


@triton.jit
def _logit_kernel(
    before_ptr,
    here_ptr,
    mean_ptr,
    q_ptr,
    k_ptr,
    logit_ptr,
    R,
    T,
    D,
    before_stride_B,
    before_stride_T,
    here_stride_B,
    here_stride_T,
    EPS: tl.constexpr,
    LOWEST: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = logit_ptr.dtype.element_ty
    r = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    there = r < R
    before_at = r // T * before_stride_B + r % T * before_stride_T
    here_at = r // T * here_stride_B + r % T * here_stride_T
    before_square = tl.zeros([PAIRS], dtype)
    here_square = tl.zeros([PAIRS], dtype)
    for lo in range(0, D, BLOCK):
        i = lo + tl.arange(0, BLOCK)
        b = _without_mean(before_ptr, mean_ptr, before_at, i, there, D, dtype)
        h = _without_mean(here_ptr, mean_ptr, here_at, i, there, D, dtype)
        before_square += tl.sum(b * b, 1)
        here_square += tl.sum(h * h, 1)
    before_norm = tl.sqrt(before_square / D + EPS)
    here_norm = tl.sqrt(here_square / D + EPS)
    qk = tl.zeros([PAIRS], dtype)
    qq = tl.zeros([PAIRS], dtype)
    kk = tl.zeros([PAIRS], dtype)
    for out in range(0, D, BLOCK):
        o = out + tl.arange(0, BLOCK)
        q = tl.zeros([PAIRS, BLOCK], dtype)
        k = tl.zeros([PAIRS, BLOCK], dtype)
        for lo in range(0, D, BLOCK):
            i = lo + tl.arange(0, BLOCK)
            b = _without_mean(before_ptr, mean_ptr, before_at, i, there, D, dtype)
            h = _without_mean(here_ptr, mean_ptr, here_at, i, there, D, dtype)
            q += tl.dot(b, _weight(q_ptr, i, o, D, dtype), input_precision="ieee", out_dtype=dtype)
            k += tl.dot(h, _weight(k_ptr, i, o, D, dtype), input_precision="ieee", out_dtype=dtype)
        q = q / before_norm[:, None]
        k = k / here_norm[:, None]
        qk += tl.sum(q * k, 1)
        qq += tl.sum(q * q, 1)
        kk += tl.sum(k * k, 1)
    # Each length is at least 1e-8, as in torch.
    cosine = qk / (tl.maximum(tl.sqrt(qq), 1e-8) * tl.maximum(tl.sqrt(kk), 1e-8))
    p = 0.5 - 0.5 * cosine
    p = tl.where(p < LOWEST, LOWEST, p)  # minimum and maximum would hide a NaN
    p = tl.where(p > 1 - LOWEST, 1 - LOWEST, p)
    tl.store(logit_ptr + r, tl.log(p / (1 - p)), mask=there)


def _rows(x: Tensor) -> Tensor:
    """As `(rows, T, D)`; two neighbouring windows of a sequence stay views of it."""
    x = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
    return x if x.stride(2) == 1 else x.contiguous()


class _BoundaryLogit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, here: Tensor, mean_D: Tensor, q_DD: Tensor, k_DD: Tensor) -> Tensor:
        # The router moves its mean before the next pass, whether this one's gradient was taken or not.
        ctx.save_for_backward(before, here, mean_D.clone(), q_DD, k_DD)
        dtype = torch.float64 if here.dtype == torch.float64 else torch.float32
        logit = torch.empty(here.shape[:-1], dtype=dtype, device=here.device)
        b, h = _rows(before), _rows(here)
        R, T, D = logit.numel(), h.shape[1], h.shape[2]
        if R:
            _logit_kernel[(triton.cdiv(R, PAIRS),)](
                b,
                h,
                mean_D.contiguous(),
                q_DD.contiguous(),
                k_DD.contiguous(),
                logit,
                R,
                T,
                D,
                b.stride(0),
                b.stride(1),
                h.stride(0),
                h.stride(1),
                EPS=torch.finfo(dtype).eps,
                LOWEST=LOWEST,
                PAIRS=PAIRS,
                BLOCK=BLOCK,
            )
        return logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogit: Tensor) -> tuple[Tensor | None, ...]:
        # The reference computes it all again, with q and k in memory for as long as this takes.
        needs = ctx.needs_input_grad
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needs)]
            logit = boundary_logit_torch(*inputs)
        gradients = iter(torch.autograd.grad(logit, [x for x in inputs if x.requires_grad], dlogit))
        return tuple(next(gradients) if need else None for need in needs)


def boundary_logit_triton(before: Tensor, here: Tensor, mean_D: Tensor, q_DD: Tensor, k_DD: Tensor) -> Tensor:
    """See `boundary_logit`."""
    return _BoundaryLogit.apply(before, here, mean_D, q_DD, k_DD)
