"""The state-space scan of Mamba-2 (Dao & Gu 2024, "SSD"), chunked.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T          y_t = C_t h_t

Inside a chunk of Q positions the scan is a masked matrix product, between chunks a short loop carries the state, so
the work is linear in L and nearly all of it is matmuls.

Shape suffixes: B batch, L positions, H heads, P head width, N state width, Q positions a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.backend import choose
from worldmodel.kernels.ssd_eager import ssd_scan_eager


def ssd_scan(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    reset_BL: Tensor | None = None,
    initial_BHPN: Tensor | None = None,
    chunk_size: int = 32,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a whole sequence.

    Args:
        x_BLHP: inputs.
        dt_BLH: step sizes, positive (after the softplus). A position with `dt = 0` leaves the state untouched.
        A_H: decay rates, negative.
        B_BLN, C_BLN: input and output maps, shared by all heads.
        reset_BL: True where a new sequence begins: nothing is carried over from the position before.
        initial_BHPN: state before the first position, zeros if None.
        chunk_size: Q, the length of the quadratic blocks. It changes the speed only, and a backend may take another.
        backend: "mamba", "triton", "torch" or "reference"; None for what suits the device (`kernels/backend.py`).

    Returns:
        `y_BLHP` and the state after the last position `(B, H, P, N)`. The GPU's backends return y in x's dtype and the
        state in fp32, whatever x is.

    Raises:
        MissingBackend: the backend asked for is not installed or cannot run on this device.
    """
    scan = choose("ssd_scan", x_BLHP, backend, SSD_SCAN)
    return scan(x_BLHP, dt_BLH, A_H, B_BLN, C_BLN, reset_BL=reset_BL, initial_BHPN=initial_BHPN, chunk_size=chunk_size)


def ssd_scan_torch(
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
    """The reference."""
    B, L, H, P = x_BLHP.shape
    N = B_BLN.shape[-1]
    Q = min(chunk_size, L)
    pad = -L % Q
    C = (L + pad) // Q

    # A padded position has dt = 0: it neither decays the state nor adds to it.
    def chunked(t: Tensor) -> Tensor:
        t = F.pad(t, [0, 0] * (t.dim() - 2) + [0, pad]) if pad else t
        return t.reshape(B, C, Q, *t.shape[2:])

    x = chunked(x_BLHP * dt_BLH.unsqueeze(-1)).transpose(2, 3)  # (B, C, H, Q, P)
    b, c = chunked(B_BLN), chunked(C_BLN)  # (B, C, Q, N)
    log_decay = chunked(dt_BLH * A_H).transpose(2, 3).cumsum(-1)  # (B, C, H, Q): from the chunk's start up to q

    # exp(L_q - L_s) for s <= q: how much of what entered at s is left at q. All exponents are <= 0, so none overflows.
    allowed = torch.ones(Q, Q, dtype=torch.bool, device=x.device).tril()
    if reset_BL is not None:
        piece = chunked(reset_BL.long().cumsum(1).unsqueeze(-1)).squeeze(
            -1
        )  # (B, C, Q): which sequence a position is in
        if pad:
            piece[:, -1, Q - pad :] = piece[:, -1, Q - pad - 1, None]
        allowed = allowed & (piece.unsqueeze(-1) == piece.unsqueeze(-2)).unsqueeze(2)  # (B, C, 1, Q, Q)
    left = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).masked_fill(~allowed, -torch.inf).exp()
    y = (left * (c @ b.transpose(-1, -2)).unsqueeze(2)) @ x  # (B, C, H, Q, P)

    # What each chunk adds to the state at its end, and how much of the incoming state survives up to each position.
    to_end = left[..., -1, :]  # (B, C, H, Q)
    added = (x * to_end.unsqueeze(-1)).transpose(-1, -2) @ b.unsqueeze(2)  # (B, C, H, P, N)
    survives = log_decay.exp()  # (B, C, H, Q)
    if reset_BL is not None:
        before = torch.cat([torch.zeros_like(piece[:, :1, -1]), piece[:, :-1, -1]], dim=1)  # (B, C)
        survives = survives * (piece == before.unsqueeze(-1)).unsqueeze(2)
    state = x.new_zeros(B, H, P, N) if initial_BHPN is None else initial_BHPN
    entering = []
    for i in range(C):
        entering.append(state)
        state = state * survives[:, i, :, -1, None, None] + added[:, i]
    y = y + (c.unsqueeze(2) @ torch.stack(entering, 1).transpose(-1, -2)) * survives.unsqueeze(-1)
    return y.transpose(2, 3).reshape(B, C * Q, H, P)[:, :L], state


def _triton(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    from worldmodel.kernels.triton_ssd import ssd_scan_triton  # here, so that nobody needs Triton

    return ssd_scan_triton(*tensors, **options)


def _mamba(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    from worldmodel.kernels.mamba_library import ssd_scan_mamba

    return ssd_scan_mamba(*tensors, **options)


# The fastest first.
SSD_SCAN: dict[str, Callable[..., Any]] = {
    "mamba": _mamba,
    "triton": _triton,
    "torch": ssd_scan_eager,
    "reference": ssd_scan_torch,
}
