"""`ssd_scan` by mamba-ssm's kernels, which the package of Mamba's authors brings along.

Their sequence ids count the resets: a row starts at 0 with its initial state, which a reset at the first position (id 1
at once) drops, and the final state is the last sequence's. So resets and an initial state go together there as here.

Their backward pass adds up with atomics: gradients differ in the last digits from run to run, unless
`torch.use_deterministic_algorithms` is on (mamba-ssm 2.3 or newer).
"""

from __future__ import annotations

import torch
import triton
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

from worldmodel.kernels.triton_ssd import ssd_scan_triton


def ssd_scan_mamba(
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
    """`ssd_scan`, in chunks of 64 to 256 positions: a shorter one would leave their tiles part empty."""
    # Theirs multiply fp32 as tf32 whatever torch is set to, which loses half of fp32's digits, and do not take fp64.
    if x_BLHP.dtype.itemsize != 2 or 0 in x_BLHP.shape:
        return ssd_scan_triton(
            x_BLHP, dt_BLH, A_H, B_BLN, C_BLN, reset_BL=reset_BL, initial_BHPN=initial_BHPN, chunk_size=chunk_size
        )
    return mamba_chunk_scan_combined(
        x_BLHP,
        dt_BLH,
        A_H,
        B_BLN.to(x_BLHP.dtype).unsqueeze(2),  # one group: all heads share B and C
        C_BLN.to(x_BLHP.dtype).unsqueeze(2),
        chunk_size=min(256, max(64, triton.next_power_of_2(chunk_size))),
        initial_states=initial_BHPN,
        seq_idx=None if reset_BL is None else reset_BL.bool().cumsum(1, dtype=torch.int32),
        return_final_states=True,
    )
