"""`ssd_scan` in Triton: one program runs all chunks of one head of one row, forwards and backwards.

The sequences here are short and there are many of them, so rows times heads fill the GPU, and the state (P, N) never
leaves the registers between chunks. The backward pass goes through the chunks in reverse; it makes each chunk's
matrices again and reads the state that entered the chunk, which the forward pass kept.

Which sequence a position belongs to only matters relative to its chunk: `piece` counts the resets since the chunk's
start, so a position sees the incoming state if its piece is 0, and another position if their pieces are equal.

Shape suffixes: B batch, L positions, H heads, P head width, N state width, C chunks, Q positions a chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


@triton.jit
def _decays(
    dt_ptr, dt_l, reset_ptr, reset_at, A, here_Q,
    HAS_RESET: tl.constexpr, ACC: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Step sizes, what survives to each position, from each to the end, from start to end, and from each to each."""
    q = tl.arange(0, Q)
    dt_Q = tl.load(dt_ptr + q * dt_l, mask=here_Q, other=0).to(ACC)
    total_Q = tl.cumsum(dt_Q * A, 0)
    # Read off, not summed anew: the last position's own share must be exactly exp(0).
    total = tl.sum(tl.where(q == Q - 1, total_Q, 0), 0)
    if HAS_RESET:
        reset_Q = tl.load(reset_ptr + reset_at + q, mask=here_Q, other=0).to(tl.int32)
    else:
        reset_Q = tl.zeros([Q], tl.int32)
    piece_Q = tl.cumsum(reset_Q, 0)
    pieces = tl.sum(reset_Q, 0)
    survives_Q = tl.where(piece_Q == 0, tl.exp(total_Q), 0)
    to_end_Q = tl.where(piece_Q == pieces, tl.exp(total - total_Q), 0)
    through = tl.where(pieces == 0, tl.exp(total), 0)
    allowed_QQ = (q[:, None] >= q[None, :]) & (piece_Q[:, None] == piece_Q[None, :])
    left_QQ = tl.exp(tl.where(allowed_QQ, total_Q[:, None] - total_Q[None, :], float("-inf")))
    return dt_Q, survives_Q, to_end_Q, through, left_QQ


@triton.jit
def _tile(ptr, stride, pos_Q, L, width, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """One chunk's rows; a position or a column that is not there is 0."""
    k = tl.arange(0, BLOCK)
    at = ptr + (pos_Q[:, None] * stride + k[None, :])
    return tl.load(at, mask=(pos_Q[:, None] < L) & (k[None, :] < width), other=0).to(ACC)


@triton.jit
def _put(ptr, stride, pos_Q, L, width, value, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    at = ptr + (pos_Q[:, None] * stride + k[None, :])
    tl.store(at, value.to(ptr.dtype.element_ty), mask=(pos_Q[:, None] < L) & (k[None, :] < width))


@triton.jit
def _forward(
    x_ptr, dt_ptr, A_ptr, b_ptr, c_ptr, reset_ptr, initial_ptr, y_ptr, entering_ptr, final_ptr,
    L, H, P, N, chunks, x_b, x_l, x_h, dt_b, dt_l, dt_h, b_b, b_l, c_b, c_l,
    HAS_RESET: tl.constexpr, HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # 64-bit offsets in scalars only: a tile of them would take twice the registers of a tile of numbers.
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    A = tl.load(A_ptr + head).to(ACC)
    at_PN = p[:, None] * N + n[None, :]
    mask_PN = (p[:, None] < P) & (n[None, :] < N)
    state_PN = tl.zeros([BLOCK_P, BLOCK_N], ACC)
    if HAS_INITIAL:
        state_PN = tl.load(initial_ptr + (row * H + head) * P * N + at_PN, mask=mask_PN, other=0).to(ACC)
    # Nothing is moved out of the loop: the tiles' addresses and masks, kept, would push the state out of the registers.
    for chunk in tl.range(chunks, disable_licm=True):
        start = chunk * Q
        pos_Q = start + tl.arange(0, Q)
        dt_at = row * dt_b + start * dt_l + head * dt_h
        dt_Q, survives_Q, to_end_Q, through, left_QQ = _decays(
            dt_ptr + dt_at, dt_l, reset_ptr, row * L + start, A, pos_Q < L, HAS_RESET, ACC, Q
        )
        x_QP = _tile(x_ptr + (row * x_b + head * x_h), x_l, pos_Q, L, P, ACC, BLOCK_P)
        b_QN = _tile(b_ptr + (row * b_b), b_l, pos_Q, L, N, ACC, BLOCK_N)
        c_QN = _tile(c_ptr + (row * c_b), c_l, pos_Q, L, N, ACC, BLOCK_N)

        mixed_QQ = tl.dot(c_QN, tl.trans(b_QN), input_precision=PRECISION) * left_QQ * dt_Q[None, :]
        y_QP = tl.dot(c_QN, tl.trans(state_PN), input_precision=PRECISION) * survives_Q[:, None]
        y_QP += tl.dot(mixed_QQ, x_QP, input_precision=PRECISION)
        _put(y_ptr + (row * L * H + head) * P, H * P, pos_Q, L, P, y_QP, BLOCK_P)

        weighted_QP = x_QP * (dt_Q * to_end_Q)[:, None]
        state_PN = state_PN * through + tl.dot(tl.trans(weighted_QP), b_QN, input_precision=PRECISION)
        if SAVE:  # noqa: SIM102 (a constant, which cannot stand in one condition with what the kernel finds out)
            if chunk < chunks - 1:
                entering_at = ((row * (chunks - 1) + chunk) * H + head) * P * N
                tl.store(entering_ptr + entering_at + at_PN, state_PN, mask=mask_PN)
    tl.store(final_ptr + (row * H + head) * P * N + at_PN, state_PN, mask=mask_PN)


@triton.jit
def _backward(
    x_ptr, dt_ptr, A_ptr, b_ptr, c_ptr, reset_ptr, initial_ptr, entering_ptr, dy_ptr, dfinal_ptr,
    dx_ptr, ddt_ptr, dA_ptr, db_ptr, dc_ptr, dinitial_ptr,
    L, H, P, N, chunks, x_b, x_l, x_h, dt_b, dt_l, dt_h, b_b, b_l, c_b, c_l, dy_b, dy_l, dy_h,
    HAS_RESET: tl.constexpr, HAS_INITIAL: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    q = tl.arange(0, Q)
    p = tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    A = tl.load(A_ptr + head).to(ACC)
    at_PN = p[:, None] * N + n[None, :]
    mask_PN = (p[:, None] < P) & (n[None, :] < N)
    dstate_PN = tl.load(dfinal_ptr + (row * H + head) * P * N + at_PN, mask=mask_PN, other=0).to(ACC)
    dA_Q = tl.zeros([Q], ACC)
    for i in tl.range(chunks, disable_licm=True):
        chunk = chunks - 1 - i
        start = chunk * Q
        pos_Q = start + q
        dt_at = row * dt_b + start * dt_l + head * dt_h
        dt_Q, survives_Q, to_end_Q, through, left_QQ = _decays(
            dt_ptr + dt_at, dt_l, reset_ptr, row * L + start, A, pos_Q < L, HAS_RESET, ACC, Q
        )
        x_at = x_ptr + (row * x_b + head * x_h)
        b_at = b_ptr + (row * b_b)
        c_at = c_ptr + (row * c_b)
        dy_at = dy_ptr + (row * dy_b + head * dy_h)
        out_at = row * L * H + head

        # One gradient after the other, and tiles read again for each: all of them at once do not fit in the registers.
        dy_QP = _tile(dy_at, dy_l, pos_Q, L, P, ACC, BLOCK_P)
        x_QP = _tile(x_at, x_l, pos_Q, L, P, ACC, BLOCK_P)
        dcb_QQ = tl.dot(dy_QP, tl.trans(x_QP), input_precision=PRECISION) * left_QQ * dt_Q[None, :]
        state_PN = tl.zeros([BLOCK_P, BLOCK_N], ACC)
        if chunk > 0:
            entering_at = ((row * (chunks - 1) + chunk - 1) * H + head) * P * N
            state_PN = tl.load(entering_ptr + entering_at + at_PN, mask=mask_PN, other=0)
        else:
            if HAS_INITIAL:
                state_PN = tl.load(initial_ptr + (row * H + head) * P * N + at_PN, mask=mask_PN, other=0).to(ACC)
        passes = tl.sum(tl.sum(dstate_PN * state_PN, 1), 0) * through
        dc_QN = tl.dot(dy_QP, state_PN, input_precision=PRECISION) * survives_Q[:, None]
        c_QN = _tile(c_at, c_l, pos_Q, L, N, ACC, BLOCK_N)
        came_Q = tl.sum(dc_QN * c_QN, 1)
        b_QN = _tile(b_at, b_l, pos_Q, L, N, ACC, BLOCK_N)
        dc_QN += tl.dot(dcb_QQ, b_QN, input_precision=PRECISION)
        _put(dc_ptr + out_at * N, H * N, pos_Q, L, N, dc_QN, BLOCK_N)

        x_QP = _tile(x_at, x_l, pos_Q, L, P, ACC, BLOCK_P)
        db_QN = tl.dot(x_QP, dstate_PN, input_precision=PRECISION) * (dt_Q * to_end_Q)[:, None]
        b_QN = _tile(b_at, b_l, pos_Q, L, N, ACC, BLOCK_N)
        goes_Q = tl.sum(db_QN * b_QN, 1)
        c_QN = _tile(c_at, c_l, pos_Q, L, N, ACC, BLOCK_N)
        db_QN += tl.dot(tl.trans(dcb_QQ), c_QN, input_precision=PRECISION)
        _put(db_ptr + out_at * N, H * N, pos_Q, L, N, db_QN, BLOCK_N)

        # The decay at t bears on each pair s < t <= q, on what came in for t <= q, on what goes out from s < t, and on
        # what passes through. Summed as such nothing cancels: a suffix sum of the gradients of the cumulated decays
        # would lose the small ones in fp32, and would not be exactly 0 at a reset.
        b_QN = _tile(b_at, b_l, pos_Q, L, N, ACC, BLOCK_N)
        c_QN = _tile(c_at, c_l, pos_Q, L, N, ACC, BLOCK_N)
        cb_QQ = tl.dot(c_QN, tl.trans(b_QN), input_precision=PRECISION)
        before_QQ = (q[:, None] < q[None, :]).to(ACC)
        spans_QQ = tl.dot(dcb_QQ * cb_QQ, before_QQ, input_precision=PRECISION)
        reaches_QQ = tl.where(q[:, None] >= q[None, :], spans_QQ + came_Q[:, None], goes_Q[:, None])
        da_Q = tl.sum(reaches_QQ, 0) + passes
        dA_Q += da_Q * dt_Q

        dxdt_QP = tl.dot(b_QN, tl.trans(dstate_PN), input_precision=PRECISION) * to_end_Q[:, None]
        dy_QP = _tile(dy_at, dy_l, pos_Q, L, P, ACC, BLOCK_P)
        dxdt_QP += tl.dot(tl.trans(cb_QQ * left_QQ), dy_QP, input_precision=PRECISION)
        x_QP = _tile(x_at, x_l, pos_Q, L, P, ACC, BLOCK_P)
        ddt_Q = da_Q * A + tl.sum(dxdt_QP * x_QP, 1)
        tl.store(ddt_ptr + out_at + pos_Q * H, ddt_Q.to(ddt_ptr.dtype.element_ty), mask=pos_Q < L)
        _put(dx_ptr + out_at * P, H * P, pos_Q, L, P, dxdt_QP * dt_Q[:, None], BLOCK_P)

        dy_QP = _tile(dy_at, dy_l, pos_Q, L, P, ACC, BLOCK_P) * survives_Q[:, None]
        c_QN = _tile(c_at, c_l, pos_Q, L, N, ACC, BLOCK_N)
        dstate_PN = dstate_PN * through + tl.dot(tl.trans(dy_QP), c_QN, input_precision=PRECISION)
    tl.store(dA_ptr + row * H + head, tl.sum(dA_Q, 0))
    if HAS_INITIAL:
        tl.store(dinitial_ptr + (row * H + head) * P * N + at_PN, dstate_PN, mask=mask_PN)


def _unit_stride(t: Tensor) -> Tensor:
    """The kernels take any strides but the last, which must be 1: x, B and C are slices of one projection."""
    return t if t.stride(-1) == 1 else t.contiguous()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, b, c, reset, initial, Q):
        B, L, H, P = x.shape
        N = b.shape[-1]
        x, b, c, A = _unit_stride(x), _unit_stride(b), _unit_stride(c), A.contiguous()
        initial = None if initial is None else initial.contiguous()
        reset = None if reset is None else reset.bool().contiguous().view(torch.uint8)
        acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        chunks = triton.cdiv(L, Q)
        save = any(ctx.needs_input_grad)
        y = torch.empty(B, L, H, P, dtype=x.dtype, device=x.device)
        final = torch.empty(B, H, P, N, dtype=acc, device=x.device)
        # The first chunk's is the initial state, so a sequence of one chunk keeps nothing.
        entering = torch.empty(B, chunks - 1 if save else 0, H, P, N, dtype=acc, device=x.device)
        ctx.shape = (L, H, P, N, chunks, *x.stride()[:3], *dt.stride(), *b.stride()[:2], *c.stride()[:2])
        ctx.options = {
            "HAS_RESET": reset is not None,
            "HAS_INITIAL": initial is not None,
            "ACC": tl.float64 if acc == torch.float64 else tl.float32,
            "PRECISION": "tf32" if x.dtype.itemsize == 2 else "ieee",
            "Q": Q,
            "BLOCK_P": max(16, triton.next_power_of_2(P)),
            "BLOCK_N": max(16, triton.next_power_of_2(N)),
            "num_warps": 4,
            "num_stages": 1,
        }
        _forward[(B * H,)](x, dt, A, b, c, reset, initial, y, entering, final, *ctx.shape, SAVE=save, **ctx.options)
        if save:
            ctx.save_for_backward(x, dt, A, b, c, reset, initial, entering)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dfinal):
        x, dt, A, b, c, reset, initial, entering = ctx.saved_tensors
        B, L, H, _ = x.shape
        dy = _unit_stride(dy)
        acc = entering.dtype
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ddt = torch.empty(dt.shape, dtype=dt.dtype, device=x.device)
        # All heads share B and C, all rows share A: each program writes its part, and torch adds them up.
        dA = torch.empty(B, H, dtype=acc, device=x.device)
        db = torch.empty(B, L, H, b.shape[-1], dtype=acc, device=x.device)
        dc = torch.empty_like(db)
        dinitial = None if initial is None else torch.empty(initial.shape, dtype=acc, device=x.device)
        _backward[(B * H,)](
            x, dt, A, b, c, reset, initial, entering, dy, dfinal.contiguous(), dx, ddt, dA, db, dc, dinitial,
            *ctx.shape, *dy.stride()[:3], **ctx.options,
        )  # fmt: skip
        if dinitial is not None:
            dinitial = dinitial.to(initial.dtype)
        return dx, ddt, dA.sum(0).to(A.dtype), db.sum(2).to(b.dtype), dc.sum(2).to(c.dtype), None, dinitial, None


def ssd_scan_triton(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    reset_BL: Tensor | None = None,
    initial_BHPN: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan`, in chunks of 16, 32 or 64 positions (fp32: 32 at most)."""
    B, L, H, P = x_BLHP.shape
    if B == 0 or L == 0:
        if initial_BHPN is None:
            initial_BHPN = A_H.new_zeros(B, H, P, B_BLN.shape[-1])
        return torch.zeros_like(x_BLHP), initial_BHPN
    # Without tensor cores a chunk of 64 does not fit in the registers by far.
    Q = min(64 if x_BLHP.dtype.itemsize == 2 else 32, max(16, triton.next_power_of_2(min(chunk_size, L))))
    with torch.cuda.device_of(x_BLHP):  # Triton launches on the current GPU, not on the tensors'
        return _Scan.apply(x_BLHP, dt_BLH, A_H, B_BLN, C_BLN, reset_BL, initial_BHPN, Q)
