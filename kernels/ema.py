"""The smoothing scan of H-Net's dechunk layer: `s_j = p_j z_j + (1 - p_j) s_{j-1}`, in fp32.

The reference works in log space. A product of many `1 - p` underflows, and dividing by it (the textbook parallel scan)
overflows. So blocks of positions are mixed by a matrix of `exp(L_t - L_s)`, whose exponents are never positive, and a
short loop joins the blocks. On a GPU one program walks along a row, and needs no logarithms.

Shape suffixes: B batch, M positions, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.backend import choose


def ema_scan(
    z_BMD: Tensor,
    p_BM: Tensor,
    *,
    initial_BD: Tensor | None = None,
    block: int = 64,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a whole sequence.

    Args:
        z_BMD: what comes in.
        p_BM: how much of it is taken, in [0, 1]. At exactly 1 everything before is forgotten: that is how sequences and
            forced boundaries begin anew, so no clamp (the reference's .9999) leaks the past into them. At 0 nothing
            changes, so a pad is a position with `p = 0`.
        initial_BD: value before the first position, zeros if None.
        block: positions mixed by one matrix; "torch" alone looks at it.
        backend: "triton" or "torch"; None for what suits the device (kernels/backend.py).

    Returns:
        The smoothed values `(B, M, D)` in fp32 (fp64 if z is) and the last of them `(B, D)`.

    Gradients are those of the recurrence, but for p where it is exactly 1: what it forgets counts as zero there, so
    that no gradient reaches across. Such a p is a constant, or a sigmoid so flat that nothing passes it.
    """
    return choose("ema_scan", z_BMD, backend, EMA_SCAN)(z_BMD, p_BM, initial_BD, block)


def ema_scan_torch(
    z_BMD: Tensor, p_BM: Tensor, initial_BD: Tensor | None = None, block: int = 64
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if z_BMD.dtype == torch.float64 else torch.float32
    z, p = z_BMD.to(dtype), p_BM.to(dtype)
    value = z.new_zeros(z.shape[0], z.shape[2]) if initial_BD is None else initial_BD.to(dtype)
    if not z.shape[1]:
        return z, value
    forgets = p >= 1.0
    piece = forgets.long().cumsum(1)
    log_keep = torch.log1p(-p.masked_fill(forgets, 0.0))
    out = []
    for lo in range(0, z.shape[1], block):
        hi = min(lo + block, z.shape[1])
        total = log_keep[:, lo:hi].cumsum(1)
        before = piece[:, lo - 1] if lo else torch.zeros_like(piece[:, 0])
        allowed = (piece[:, lo:hi, None] == piece[:, None, lo:hi]).tril()
        mix = (total[:, :, None] - total[:, None, :]).masked_fill(~allowed, -torch.inf).exp()
        carried = total.exp() * (piece[:, lo:hi] == before[:, None])
        with torch.autocast(z.device.type, enabled=False):  # it would take the product in bf16
            out.append(mix @ (p[:, lo:hi, None] * z[:, lo:hi]) + carried[:, :, None] * value[:, None])
        value = out[-1][:, -1]
    return torch.cat(out, dim=1), value


def _triton(z_BMD: Tensor, p_BM: Tensor, initial_BD: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    from worldmodel.kernels.triton_ema import ema_scan_triton

    return ema_scan_triton(z_BMD, p_BM, initial_BD)


EMA_SCAN = {"triton": _triton, "torch": ema_scan_torch}
