"""The smoothing scan of H-Net's dechunk layer: `s_j = p_j z_j + (1 - p_j) s_{j-1}`, in log space and fp32.

A product of many `1 - p` underflows, and dividing by it (the textbook parallel scan) overflows. So blocks of positions
are mixed by a matrix of `exp(L_t - L_s)`, whose exponents are never positive, and a short loop joins the blocks.

Shape suffixes: B batch, M positions, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ema_scan(
    z_BMD: Tensor, p_BM: Tensor, *, initial_BD: Tensor | None = None, block: int = 64
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a whole sequence.

    Args:
        z_BMD: what comes in.
        p_BM: how much of it is taken, in [0, 1]. At exactly 1 everything before is forgotten: that is how sequences and
            forced boundaries begin anew, so no clamp (the reference's .9999) leaks the past into them. At 0 nothing
            changes, so a pad is a position with `p = 0`.
        initial_BD: value before the first position, zeros if None.
        block: positions mixed by one matrix.

    Returns:
        The smoothed values `(B, M, D)` in fp32 and the last of them `(B, D)`.
    """
    z, p = z_BMD.float(), p_BM.float()
    forgets = p >= 1.0
    piece = forgets.long().cumsum(1)
    log_keep = torch.log1p(-p.masked_fill(forgets, 0.0))
    value = z.new_zeros(z.shape[0], z.shape[2]) if initial_BD is None else initial_BD.float()
    out = []
    for lo in range(0, z.shape[1], block):
        hi = min(lo + block, z.shape[1])
        total = log_keep[:, lo:hi].cumsum(1)
        before = piece[:, lo - 1] if lo else torch.zeros_like(piece[:, 0])
        allowed = (piece[:, lo:hi, None] == piece[:, None, lo:hi]).tril()
        mix = (total[:, :, None] - total[:, None, :]).masked_fill(~allowed, -torch.inf).exp()
        carried = total.exp() * (piece[:, lo:hi] == before[:, None])
        out.append(mix @ (p[:, lo:hi, None] * z[:, lo:hi]) + carried[:, :, None] * value[:, None])
        value = out[-1][:, -1]
    return torch.cat(out, dim=1), value
