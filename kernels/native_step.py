"""`mamba_step` in C (native_step.c): a row at a time, its state read and written once. No gradient."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldmodel.kernels.native import LIBRARY, over_rows, pointer

if TYPE_CHECKING:  # kernels/mamba_step.py imports this file
    from worldmodel.kernels.mamba_step import StepWeights

STEP = LIBRARY.worldmodel_mamba_step
STEP.argtypes = [c_void_p] * 13 + [c_int64] * 2 + [c_int] * 4


def mamba_step_native(
    u_BE: Tensor, conv_BKW: Tensor, ssm_BNI: Tensor, weights: StepWeights, active_B: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `worldmodel.kernels.mamba_step.mamba_step`; all in fp32."""
    B, N, I = ssm_BNI.shape  # noqa: E741
    H, K = len(weights.dt_bias_H), weights.filters_WK.shape[1]
    u, conv, ssm = u_BE.contiguous(), conv_BKW.contiguous(), ssm_BNI.contiguous()
    filters, *others = (weights.filters_WK.t().contiguous(), *(w.contiguous() for w in weights[1:]))
    active = None if active_B is None else active_B.contiguous()
    y = torch.empty(B, I)
    new_conv, new_ssm = (conv, ssm) if in_place else (torch.empty_like(conv), torch.empty_like(ssm))
    arguments = [pointer(x) for x in (u, conv, ssm, filters, *others, active, y, new_conv, new_ssm)]

    def rows(first: int, last: int) -> None:
        if STEP(*arguments, first, last, H, I // H, N, K):
            raise MemoryError("mamba_step in C")

    over_rows(rows, B, ssm.numel())
    if in_place:  # into the given tensors, however they lie
        return (
            y,
            conv_BKW if conv is conv_BKW else conv_BKW.copy_(conv),
            ssm_BNI if ssm is ssm_BNI else ssm_BNI.copy_(ssm),
        )
    return y, new_conv, new_ssm
