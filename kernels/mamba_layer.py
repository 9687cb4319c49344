"""A Mamba-2 layer between its projections by mamba-ssm's own fused path: convolution, scan and gated norm in one go.

It needs causal-conv1d beside mamba-ssm, and takes half precision and widths in eights only. Its backward pass runs the
convolution again instead of keeping it, and adds up with atomics: gradients differ in the last digits from run to run,
unless `torch.use_deterministic_algorithms` is on (mamba-ssm 2.3 or newer).

Shape suffixes: B rows, L positions, I inner width (= H heads x P), W convolved width (= I + 2 x state width), K filter
length, E projected width (= I + W + H).
"""

from __future__ import annotations

import functools
import importlib
import warnings

import torch
from torch import Tensor

from worldmodel.kernels.mamba_step import StepWeights


@functools.cache
def has_causal_conv1d() -> bool:
    """Whether causal-conv1d can be imported; warns once where mamba-ssm runs without it."""
    try:
        importlib.import_module("causal_conv1d.cpp_functions")
    except Exception as error:  # a library built for another torch fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(f"mamba-ssm's fused layer needs causal-conv1d, which cannot be imported ({reason})", stacklevel=2)
        return False
    return True


def unfit(u_BLE: Tensor, weights: StepWeights) -> str | None:
    """Why the fused path cannot take this layer, None if it can."""
    I, (W, K) = len(weights.norm_I), weights.filters_WK.shape  # noqa: E741
    if u_BLE.dtype not in (torch.bfloat16, torch.float16):
        # Theirs multiply fp32 as tf32 whatever torch is set to, which loses half of fp32's digits.
        return f"it takes bf16 or fp16, not {str(u_BLE.dtype).removeprefix('torch.')}"
    if not 2 <= K <= 4:
        return f"its convolution is 2 to 4 positions long, not {K}"
    if I % 8 or W % 8:
        return f"its widths are multiples of 8, not {I} and {W}"
    if u_BLE[..., 0].numel() < 2:
        return "it takes two positions or more"
    return None if has_causal_conv1d() else "it needs causal-conv1d"


def mamba_layer(u_BLE: Tensor, weights: StepWeights, reset_BL: Tensor | None, chunk_size: int) -> Tensor:
    """What `in_proj` made of whole rows to what `out_proj` takes, `(B, L, I)`, where `unfit` has nothing to say.

    Chunks are 64 to 256 positions: a shorter one would leave their tiles part empty.
    """
    from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

    heads, inner = len(weights.dt_bias_H), len(weights.norm_I)
    return mamba_split_conv1d_scan_combined(
        u_BLE.contiguous(),
        weights.filters_WK.contiguous(),
        weights.filter_bias_W,
        weights.dt_bias_H,
        -weights.A_log_H.float().exp(),
        weights.D_H,
        chunk_size=min(256, max(64, 1 << (chunk_size - 1).bit_length())),
        seq_idx=None if reset_BL is None else reset_BL.bool().cumsum(1, dtype=torch.int32),
        activation="silu",
        rmsnorm_weight=weights.norm_I,
        rmsnorm_eps=1e-5,
        headdim=inner // heads,
        ngroups=1,
        norm_before_gate=False,  # RMSNorm(y * silu(z))
    )
