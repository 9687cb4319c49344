"""One position of Mamba-2 between its two projections: convolution, state and gated norm in one go.

    x, b, c = silu(conv([x b c]))        h = exp(dt A) h + dt b x^T        y = norm((c h + D x) * silu(z))

This is the inner loop of imagination. The state is kept as (B, N, I): its rows are then long and lie in memory as the
inputs do, which on a CPU halves the time of its update.

Shape suffixes: B rows, N state width, I inner width (= H heads x P), W convolved width (= I + 2N), K filter length,
E projected width (= I + W + H).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.backend import choose


class StepWeights(NamedTuple):
    """The weights of a Mamba-2 layer that lie between its projections, in mamba-ssm's shapes but for the filters."""

    filters_WK: Tensor
    filter_bias_W: Tensor
    dt_bias_H: Tensor
    A_log_H: Tensor
    D_H: Tensor
    norm_I: Tensor


def mamba_step(
    u_BE: Tensor,
    conv_BKW: Tensor,
    ssm_BNI: Tensor,
    weights: StepWeights,
    *,
    active_B: Tensor | None = None,
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one position in.

    Args:
        u_BE: what `in_proj` made of the input, `[z, x, b, c, dt]`.
        conv_BKW: the K - 1 inputs of the convolution before this one, `(B, K - 1, W)`.
        ssm_BNI: the state.
        weights: of the layer.
        active_B: False in rows that sit this position out: their memory stays as it is and their output is anything.
        in_place: whether `conv_BKW` and `ssm_BNI` may be written to; otherwise they are left alone.
        backend: "native", "triton" or "torch"; None for what suits the device (`kernels/backend.py`). Where a gradient
            is wanted, or the one in C is given other numbers than fp32, the reference runs.

    Returns:
        The normed output `(B, I)`, for `out_proj`, and the new window and state.

    Raises:
        MissingBackend: the backend asked for is not installed or cannot run on this device.
    """
    run = choose("mamba_step", u_BE, backend, MAMBA_STEP)
    return run(u_BE, conv_BKW, ssm_BNI, weights, active_B, in_place)


def mamba_step_torch(
    u_BE: Tensor, conv_BKW: Tensor, ssm_BNI: Tensor, weights: StepWeights, active_B: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference."""
    filters, filter_bias, dt_bias, A_log, skip, norm = weights
    B, N, I = ssm_BNI.shape  # noqa: E741
    H, taps = len(dt_bias), filters.shape[1]
    z, new, dt = u_BE.split([I, I + 2 * N, H], dim=-1)
    dt = F.softplus(dt + dt_bias)

    mixed = torch.addcmul(filter_bias, new, filters[:, -1])
    for k in range(taps - 1):
        mixed = mixed.addcmul_(conv_BKW[:, k], filters[:, k])
    x, b, c = F.silu(mixed, inplace=True).split([I, N, N], dim=-1)
    window = torch.cat([conv_BKW[:, 1:], new.unsqueeze(1)], dim=1) if taps > 1 else conv_BKW
    if active_B is not None:
        dt = dt * active_B.unsqueeze(-1)  # without a step the state neither decays nor takes anything in
        window = torch.where(active_B[:, None, None], window, conv_BKW)

    x = x.unflatten(-1, (H, -1))
    decay = (dt * -A_log.exp()).exp().unsqueeze(-1).expand_as(x).reshape(B, 1, I)
    ssm = ssm_BNI.mul_(decay) if in_place else ssm_BNI * decay
    ssm.addcmul_(b.unsqueeze(-1), (x * dt.unsqueeze(-1)).view(B, 1, I))
    y = torch.bmm(c.unsqueeze(1), ssm).to(ssm.dtype).view_as(x)  # autocast would leave it in bf16
    y = y.addcmul_(x, skip.unsqueeze(-1)).view(B, I).mul_(F.silu(z))
    return F.rms_norm(y, (I,), norm, 1e-5), window, ssm


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _native(
    u_BE: Tensor, conv_BKW: Tensor, ssm_BNI: Tensor, weights: StepWeights, active_B: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from worldmodel.kernels.native_step import mamba_step_native  # here, so that nobody needs a compiler

    tensors = (u_BE, conv_BKW, ssm_BNI, *weights)
    unfit = _wants_gradient(*tensors) or any(t.dtype != torch.float32 for t in tensors)
    run = mamba_step_torch if unfit else mamba_step_native
    return run(u_BE, conv_BKW, ssm_BNI, weights, active_B, in_place)


def _triton(
    u_BE: Tensor, conv_BKW: Tensor, ssm_BNI: Tensor, weights: StepWeights, active_B: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from worldmodel.kernels.triton_mamba_step import mamba_step_triton  # here, so that nobody needs Triton

    run = mamba_step_torch if _wants_gradient(u_BE, conv_BKW, ssm_BNI, *weights) else mamba_step_triton
    return run(u_BE, conv_BKW, ssm_BNI, weights, active_B, in_place)


MAMBA_STEP = {"native": _native, "triton": _triton, "torch": mamba_step_torch}
