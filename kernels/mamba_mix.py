"""A whole sequence of Mamba-2 between its two projections: convolution, scan and gated norm, with a gradient by hand.

    x, b, c = silu(conv([x b c]))        y = scan(x, softplus(dt), b, c) + D x        norm(y * silu(z))

The layer's time on a CPU is spent less in its products than in walking over (B, L, I) again and again, so here every
intermediate is walked over once each way, and the gradient of the projection is written straight to its place.

Shape suffixes: B rows, L positions, H heads, P head width, N state width, I inner width (= H P), W convolved width
(= I + 2N), K filter length, E projected width (= I + W + H).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels import ssd_eager
from worldmodel.kernels.backend import choose
from worldmodel.kernels.conv import causal_conv
from worldmodel.kernels.mamba_step import StepWeights
from worldmodel.kernels.ssd import ssd_scan

EPS = 1e-5


def mamba_mix(
    u_BLE: Tensor,
    weights: StepWeights,
    *,
    state_width: int,
    reset_BL: Tensor | None = None,
    chunk_size: int = 32,
    backend: str | None = None,
) -> Tensor:
    """Mix rows that begin with nothing behind them, and whose last state nobody wants: a training pass.

    Args:
        u_BLE: what `in_proj` made of the inputs, `[z, x, b, c, dt]`.
        weights: of the layer.
        state_width: N.
        reset_BL: True where a new sequence begins.
        chunk_size: of the scan.
        backend: "native", "mamba", "triton", "torch" or "reference"; None for what suits the device
            (`kernels/backend.py`). The one in C leaves all but fp32 to the one in torch. Where mamba-ssm's fused
            layer does not fit (`kernels/mamba_layer.py`), "mamba" runs in parts.

    Returns:
        The normed outputs `(B, L, I)`, for `out_proj`.

    Raises:
        MissingBackend: the backend asked for is not installed or cannot run on this device.
    """
    run = choose("mamba_mix", u_BLE, backend, MAMBA_MIX)
    return run(u_BLE, weights, state_width, reset_BL, chunk_size)


def mamba_mix_reference(
    u_BLE: Tensor,
    weights: StepWeights,
    state_width: int,
    reset_BL: Tensor | None,
    chunk_size: int,
    scan: str | None = "reference",
) -> Tensor:
    """The formula, left to autograd."""
    filters, filter_bias, dt_bias, A_log, skip, norm = weights
    B, L, _ = u_BLE.shape
    H, I, N = len(dt_bias), len(norm), state_width  # noqa: E741
    z, xbc, dt = u_BLE.split([I, I + 2 * N, H], dim=-1)
    mixed, _ = causal_conv(xbc, filters, filter_bias, reset_BL=reset_BL)
    # Under autocast the scan's matrix products are to have the projection's precision, not the filters'.
    x, b, c = F.silu(mixed).to(xbc.dtype).split([I, N, N], dim=-1)
    x = x.reshape(B, L, H, I // H)
    y, _ = ssd_scan(
        x,
        F.softplus(dt + dt_bias),
        -A_log.exp(),
        b,
        c,
        reset_BL=reset_BL,
        chunk_size=chunk_size,
        backend=scan,
    )
    y = torch.addcmul(y, x, skip.unsqueeze(-1)).reshape(B, L, I)
    return F.rms_norm(y * F.silu(z), (I,), norm, EPS)


class MambaMix(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u_BLE: Tensor,
        filters: Tensor,
        filter_bias: Tensor,
        dt_bias: Tensor,
        A_log: Tensor,
        skip: Tensor,
        norm: Tensor,
        N: int,
        reset_BL: Tensor | None,
        chunk_size: int,
    ) -> Tensor:
        B, L, _ = u_BLE.shape
        H, I, K = len(dt_bias), len(norm), filters.shape[1]  # noqa: E741
        z, xbc, dt = u_BLE.split([I, I + 2 * N, H], dim=-1)
        blocks = ssd_eager.Blocks(reset_BL, B, L, chunk_size)

        mixed = torch.addcmul(filter_bias, xbc, filters[:, -1])
        for back in range(1, min(K, L)):
            mixed[:, back:].addcmul_(_reached(xbc, reset_BL, back), filters[:, K - 1 - back])
        act = F.silu(mixed)
        x, b, c = act.split([I, N, N], dim=-1)
        x = x.unflatten(-1, (H, -1))
        dt = F.softplus(dt + dt_bias)
        kept = ssd_eager.run(blocks, x, dt, -A_log.exp(), b, c, None, False)
        y = torch.addcmul(blocks.whole(kept.y.transpose(2, 3)), x, skip.unsqueeze(-1)).reshape(B, L, I)
        gated = y * F.silu(z)
        scale = gated.square().mean(-1, keepdim=True).add_(EPS).rsqrt_()
        saved = (u_BLE, filters, dt_bias, A_log, skip, norm, mixed, dt, y, scale)
        ctx.save_for_backward(*saved, *kept.flat())
        ctx.blocks, ctx.sizes, ctx.reset = blocks, (H, I, N, K), reset_BL
        return gated.mul_(scale).mul_(norm)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, filters, dt_bias, A_log, skip, norm, mixed, dt, y, scale, *tensors = ctx.saved_tensors
        kept = ssd_eager.Kept.rebuilt(tensors)
        H, I, N, K = ctx.sizes  # noqa: E741
        blocks, reset = ctx.blocks, ctx.reset
        L = u.shape[1]
        z, xbc, raw_dt = u.split([I, I + 2 * N, H], dim=-1)
        du = torch.empty_like(u)
        dz, dxbc, draw_dt = du.split([I, I + 2 * N, H], dim=-1)
        # What is cheap is computed again: to keep it would take longer, for memory is slow.
        x = F.silu(mixed[..., :I]).unflatten(-1, (H, -1))
        open_gate = F.silu(z)
        normed = (y * open_gate).mul_(scale)

        # The norm: d(w r) with r = 1 / |w| takes out what only changes the length of w.
        dnorm = (dout * normed).sum((0, 1))
        dw = dout * norm
        along = (dw * normed).mean(-1, keepdim=True)
        dw = dw.addcmul_(normed, along, value=-1).mul_(scale)
        dz.copy_(torch.ops.aten.silu_backward(dw * y, z))
        dy = dw.mul_(open_gate).unflatten(-1, (H, -1))  # (B, L, H, P)

        dskip = (dy * x).sum((0, 1, 3))
        with torch.autocast(u.device.type, enabled=False):
            dy_blocks = blocks.cut(dy).transpose(2, 3).contiguous()
            dxt, dlog, db, dc, _ = ssd_eager.run_back(blocks, kept, dy_blocks, None, False)
        A = -A_log.exp()
        ddt = torch.addcmul((dxt * x).sum(-1), dlog, A)
        dA_log = (dlog * dt).sum((0, 1)) * A
        draw_dt.copy_(ddt.mul_(torch.sigmoid(raw_dt + dt_bias)))

        dact = torch.empty_like(mixed)
        dx, db_place, dc_place = dact.split([I, N, N], dim=-1)
        torch.mul(dxt, dt.unsqueeze(-1), out=dx.unflatten(-1, (H, -1))).addcmul_(dy, skip.unsqueeze(-1))
        db_place.copy_(db)
        dc_place.copy_(dc)

        dmixed = torch.ops.aten.silu_backward(dact, mixed)
        torch.mul(dmixed, filters[:, -1], out=dxbc)
        dfilters = torch.empty_like(filters)
        dfilters[:, -1] = (dmixed * xbc).sum((0, 1))
        for back in range(1, K):
            if back >= L:
                dfilters[:, K - 1 - back] = 0
                continue
            reached = _reached(dmixed, reset, back, coming=True)
            dxbc[:, : L - back].addcmul_(reached, filters[:, K - 1 - back])
            dfilters[:, K - 1 - back] = (reached * xbc[:, : L - back]).sum((0, 1))
        return du, dfilters, dmixed.sum((0, 1)), draw_dt.sum((0, 1)), dA_log, dskip, dnorm, None, None, None


def _reached(x_BLW: Tensor, reset_BL: Tensor | None, back: int, coming: bool = False) -> Tensor:
    """The inputs `back` positions before positions `back`, `back + 1`, ...; zero where a reset lies in between.

    With `coming`, what stands at those positions themselves, with the same zeros: the way back.
    """
    L = x_BLW.shape[1]
    x = x_BLW[:, back:] if coming else x_BLW[:, : L - back]
    if reset_BL is None:
        return x
    piece = reset_BL.long().cumsum(1)
    return x * (piece[:, back:] == piece[:, : L - back]).unsqueeze(-1)


def mamba_mix_eager(
    u_BLE: Tensor, weights: StepWeights, state_width: int, reset_BL: Tensor | None, chunk_size: int
) -> Tensor:
    """In torch, the gradient by hand."""
    u = u_BLE if u_BLE.dtype == torch.float64 else u_BLE.float()
    if reset_BL is not None and not bool(reset_BL[:, 1:].any()):
        reset_BL = None  # rows begin with nothing behind them anyway
    with torch.autocast(u.device.type, enabled=False):
        return MambaMix.apply(u, *weights, state_width, reset_BL, chunk_size).to(u_BLE.dtype)


def _native(u_BLE: Tensor, weights: StepWeights, state_width: int, reset_BL: Tensor | None, chunk_size: int) -> Tensor:
    from worldmodel.kernels.native_mix import mamba_mix_native  # here, so that nobody needs a compiler

    return mamba_mix_native(u_BLE, weights, state_width, reset_BL, chunk_size)


def _triton(u_BLE: Tensor, weights: StepWeights, state_width: int, reset_BL: Tensor | None, chunk_size: int) -> Tensor:
    return mamba_mix_reference(u_BLE, weights, state_width, reset_BL, chunk_size, scan="triton")


def _mamba(u_BLE: Tensor, weights: StepWeights, state_width: int, reset_BL: Tensor | None, chunk_size: int) -> Tensor:
    from worldmodel.kernels.mamba_layer import mamba_layer, unfit

    if unfit(u_BLE, weights) is None:
        return mamba_layer(u_BLE, weights, reset_BL, chunk_size)
    return mamba_mix_reference(u_BLE, weights, state_width, reset_BL, chunk_size, scan="mamba")


MAMBA_MIX: dict[str, Callable[..., Tensor]] = {  # the fastest first
    "native": _native,
    "mamba": _mamba,
    "triton": _triton,
    "torch": mamba_mix_eager,
    "reference": mamba_mix_reference,
}
