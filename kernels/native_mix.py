"""`mamba_mix` in C, with its gradient (native_mix.c): the recurrence itself, a row at a time.

Kept for the way back are only the inputs and the states between blocks of positions. All else is computed again: to
fetch it from memory would take longer.

Shape suffixes: those of kernels/mamba_mix.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.kernels.native import LIBRARY, over_rows, pointer

if TYPE_CHECKING:
    from worldmodel.kernels.mamba_step import StepWeights

SIZES = ("L", "H", "P", "N", "K")
INPUTS = ("u", "filters", "filter_bias", "dt_bias", "A_log", "D", "norm", "reset")
OTHERS = ("y", "kept", "dy", "du", "dweights")


class Mix(Structure):
    """Field by field the struct in C. It does not keep the tensors alive."""

    _fields_ = [*((name, c_int64) for name in SIZES), *((name, c_void_p) for name in INPUTS + OTHERS)]


FORWARD, BACKWARD = LIBRARY.worldmodel_mamba_mix, LIBRARY.worldmodel_mamba_mix_back
FORWARD.argtypes = BACKWARD.argtypes = [POINTER(Mix), c_int64, c_int64]
KEPT = LIBRARY.worldmodel_mamba_mix_kept
KEPT.argtypes, KEPT.restype = [POINTER(Mix)], c_int64


def _mix(u: Tensor, weights: Sequence[Tensor], N: int, reset: Tensor | None, **others: Tensor) -> Mix:
    H, I, K = len(weights[2]), len(weights[5]), weights[0].shape[1]  # noqa: E741
    arrays = dict(zip(INPUTS, (u, *weights, reset))) | others
    return Mix(u.shape[1], H, I // H, N, K, **{name: pointer(x) for name, x in arrays.items()})


def _run(function: Any, mix: Mix, u: Tensor) -> None:
    def rows(first: int, last: int) -> None:
        if function(mix, first, last):
            raise MemoryError("mamba_mix in C")

    over_rows(rows, len(u), u.numel())


def _forward(
    u: Tensor, weights: Sequence[Tensor], N: int, reset: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The outputs and, with `keep`, the states between the blocks, in C's own order."""
    y, kept = u.new_empty(*u.shape[:2], len(weights[5])), None
    mix = _mix(u, weights, N, reset, y=y)
    if keep:
        kept = u.new_empty(len(u), KEPT(mix))
        mix.kept = pointer(kept)
    _run(FORWARD, mix, u)
    return y, kept


class MambaMixNative(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(ctx: Any, N: int, reset: Tensor | None, u: Tensor, *weights: Tensor) -> Tensor:  # type: ignore[override]
        y, kept = _forward(u, weights, N, reset, keep=True)
        ctx.save_for_backward(reset, kept, u, *weights)
        ctx.N = N
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        reset, kept, u, *weights = ctx.saved_tensors
        (W, K), H, I = weights[0].shape, len(weights[2]), len(weights[5])  # noqa: E741
        dy, du = dy.contiguous(), torch.empty_like(u)
        shares = u.new_empty(len(u), (K + 1) * W + 3 * H + I)  # every row's of the gradients of the weights
        _run(BACKWARD, _mix(u, weights, ctx.N, reset, kept=kept, dy=dy, du=du, dweights=shares), u)
        dfilters, *others = shares.sum(0).split([K * W, W, H, H, H, I])
        gradients = (du, dfilters.view(K, W).t().contiguous(), *others)
        return None, None, *(d if needed else None for d, needed in zip(gradients, ctx.needs_input_grad[2:]))


def mamba_mix_native(
    u_BLE: Tensor, weights: StepWeights, state_width: int, reset_BL: Tensor | None, chunk_size: int
) -> Tensor:
    """In C over fp32. Other numbers are left to torch."""
    if any(t.dtype != torch.float32 for t in (u_BLE, *weights)):
        from worldmodel.kernels.mamba_mix import mamba_mix_eager

        return mamba_mix_eager(u_BLE, weights, state_width, reset_BL, chunk_size)
    u, *dense = (t.contiguous() for t in (u_BLE, *weights))
    reset = None if reset_BL is None else reset_BL.bool().contiguous()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (u, *dense)):
        return MambaMixNative.apply(state_width, reset, u, *dense)
    return _forward(u, dense, state_width, reset, keep=False)[0]
