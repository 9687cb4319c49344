"""One position of Mamba-2 in Triton: convolution, state and gated norm in one launch, one program a row.

A program keeps its whole row of outputs in registers, which the norm wants, and walks through the state a few of its N
rows at a time: each number of the state is read once and written once.

Shape suffixes: B rows, I inner width, N state width, W convolved width (= I + 2N), K filter length, n the state rows
in hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from worldmodel.kernels.mamba_step import StepWeights


@triton.jit
def _softplus(x):
    # log(1 + e), with the rounding of 1 + e taken out again: a step size of 1e-3 keeps all its digits.
    e = tl.exp(tl.minimum(x, 20.0))
    rounded = 1.0 + e
    kept = rounded - 1.0
    log = tl.where(kept == 0.0, e, tl.log(rounded) * (e / tl.where(kept == 0.0, 1.0, kept)))
    return tl.where(x > 20.0, x, log)


@triton.jit
def _mixed(
    new_ptr, window_ptr, filters_ptr, bias_ptr, w, there, seen, W: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr
):
    """Convolution and SiLU of the channels `w`; the row's window and input are read where `seen`."""
    tap = tl.load(filters_ptr + w * K + K - 1, mask=there, other=0).to(ACC)
    total = tl.load(bias_ptr + w, mask=there, other=0).to(ACC)
    total += tap * tl.load(new_ptr + w, mask=seen, other=0).to(ACC)
    for k in tl.static_range(K - 1):
        tap = tl.load(filters_ptr + w * K + k, mask=there, other=0).to(ACC)
        total += tap * tl.load(window_ptr + k * W + w, mask=seen, other=0).to(ACC)
    return total * tl.sigmoid(total)


@triton.jit
def _step(
    u_ptr, window_ptr, state_ptr, active_ptr, filters_ptr, bias_ptr, dt_bias_ptr, A_log_ptr, D_ptr, norm_ptr,
    y_ptr, new_window_ptr, new_state_ptr,
    I: tl.constexpr, N: tl.constexpr, H: tl.constexpr, K: tl.constexpr,  # noqa: E741
    HAS_ACTIVE: tl.constexpr, IN_PLACE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    W: tl.constexpr = I + 2 * N
    row = tl.program_id(0).to(tl.int64)
    u_ptr += row * (I + W + H)
    window_ptr += row * (K - 1) * W
    new_window_ptr += row * (K - 1) * W
    state_ptr += row * N * I
    new_state_ptr += row * N * I

    # In place, a row that sits out is neither read nor written: 0 of its numbers are seen. Else its memory is copied.
    active = tl.program_id(0) >= 0
    seen = 1
    if HAS_ACTIVE:
        active = tl.load(active_ptr + row) != 0
        if IN_PLACE:
            seen = active.to(tl.int32)

    i = tl.arange(0, BLOCK_I)
    there_I = i < I
    head_I = i // (I // H)
    raw_I = tl.load(u_ptr + I + W + head_I, mask=there_I, other=0).to(ACC)
    dt_I = _softplus(raw_I + tl.load(dt_bias_ptr + head_I, mask=there_I, other=0).to(ACC))
    A_I = tl.exp(tl.load(A_log_ptr + head_I, mask=there_I, other=0).to(ACC))
    decay_I = tl.exp(-dt_I * A_I)
    x_I = _mixed(u_ptr + I, window_ptr, filters_ptr, bias_ptr, i, there_I, i < I * seen, W, K, ACC)
    xdt_I = x_I * dt_I

    y_nI = tl.zeros([ROWS, BLOCK_I], ACC)
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        there_n = n < N
        seen_n = n < N * seen
        b_n = _mixed(u_ptr + I, window_ptr, filters_ptr, bias_ptr, I + n, there_n, seen_n, W, K, ACC)
        c_n = _mixed(u_ptr + I, window_ptr, filters_ptr, bias_ptr, I + N + n, there_n, seen_n, W, K, ACC)
        at_nI = n[:, None] * I + i[None, :]
        seen_nI = seen_n[:, None] & there_I[None, :]
        old_nI = tl.load(state_ptr + at_nI, mask=seen_nI, other=0)
        new_nI = old_nI.to(ACC) * decay_I[None, :] + b_n[:, None] * xdt_I[None, :]
        y_nI += c_n[:, None] * new_nI
        tl.store(new_state_ptr + at_nI, tl.where(active, new_nI.to(old_nI.dtype), old_nI), mask=seen_nI)

    y_I = tl.sum(y_nI, 0) + tl.load(D_ptr + head_I, mask=there_I, other=0).to(ACC) * x_I
    z_I = tl.load(u_ptr + i, mask=there_I, other=0).to(ACC)
    y_I = y_I * (z_I * tl.sigmoid(z_I))
    scale = tl.rsqrt(tl.sum(y_I * y_I, 0) / I + 1e-5)
    y_I = y_I * scale * tl.load(norm_ptr + i, mask=there_I, other=0).to(ACC)
    tl.store(y_ptr + row * I + i, y_I.to(y_ptr.dtype.element_ty), mask=there_I)

    # The window moves on by one, after everybody has read it: threads need not write where they read.
    w = tl.arange(0, BLOCK_W)
    seen_W = w < W * seen
    for k in tl.static_range(K - 1):
        old_W = tl.load(window_ptr + k * W + w, mask=seen_W, other=0)
        if k + 1 < K - 1:
            next_W = tl.load(window_ptr + (k + 1) * W + w, mask=seen_W, other=0)
        else:
            next_W = tl.load(u_ptr + I + w, mask=seen_W, other=0).to(old_W.dtype)
        if IN_PLACE:
            tl.debug_barrier()
        tl.store(new_window_ptr + k * W + w, tl.where(active, next_W, old_W), mask=seen_W)


def mamba_step_triton(
    u_BE: Tensor, conv_BKW: Tensor, ssm_BNI: Tensor, weights: StepWeights, active_B: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba_step` without gradients; the output comes in u's dtype."""
    B, N, I = ssm_BNI.shape  # noqa: E741
    u, window, state = u_BE.contiguous(), conv_BKW.contiguous(), ssm_BNI.contiguous()
    new_window, new_state = (window, state) if in_place else (torch.empty_like(window), torch.empty_like(state))
    y = torch.empty(B, I, dtype=u.dtype, device=u.device)
    BLOCK_I = triton.next_power_of_2(I)
    if B:
        _step[(B,)](
            u, window, state, None if active_B is None else active_B.contiguous().view(torch.uint8),
            *(weight.contiguous() for weight in weights), y, new_window, new_state,
            I=I, N=N, H=len(weights.dt_bias_H), K=weights.filters_WK.shape[1],
            HAS_ACTIVE=active_B is not None, IN_PLACE=in_place,
            ACC=tl.float64 if state.dtype == torch.float64 else tl.float32,
            BLOCK_I=BLOCK_I, BLOCK_W=triton.next_power_of_2(I + 2 * N),
            ROWS=max(1, min(triton.next_power_of_2(N), 8192 // BLOCK_I)),
            num_warps=min(16, max(4, BLOCK_I // 128)),
        )  # fmt: skip
    if in_place:
        for given, written in ((conv_BKW, new_window), (ssm_BNI, new_state)):
            if written is not given:
                given.copy_(written)
        return y, conv_BKW, ssm_BNI
    return y, new_window, new_state
