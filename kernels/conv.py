"""The short causal convolution in front of Mamba-2's scan: one filter a channel, a few positions long.

Shape suffixes: B batch, L positions, D channels, K filter length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor,
    *,
    reset_BL: Tensor | None = None,
    initial_BKD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`y_t = bias + sum_k weight_k x_{t-K+1+k}`, looking back only.

    Args:
        x_BLD: inputs.
        weight_DK: filters, the last tap meets the present.
        bias_D: added to every position.
        reset_BL: True where a new sequence begins; taps never reach across.
        initial_BKD: the `K - 1` inputs before the first position, `(B, K - 1, D)`, zeros if None.

    Returns:
        `y_BLD` and the last `K - 1` inputs `(B, K - 1, D)`, with those before the last reset set to zero.
    """
    B, L, D = x_BLD.shape
    K = weight_DK.shape[1]
    past = x_BLD.new_zeros(B, K - 1, D) if initial_BKD is None else initial_BKD
    x = torch.cat([past, x_BLD], dim=1)
    y = torch.addcmul(bias_D, x[:, K - 1 :], weight_DK[:, K - 1])
    if reset_BL is None:
        for back in range(1, K):
            y = torch.addcmul(y, x[:, K - 1 - back : K - 1 - back + L], weight_DK[:, K - 1 - back])
        return y, x[:, L:]
    piece = torch.cat([reset_BL.new_zeros(B, K - 1), reset_BL], dim=1).long().cumsum(1)
    for back in range(1, K):
        seen = slice(K - 1 - back, K - 1 - back + L)
        same = (piece[:, seen] == piece[:, K - 1 :]).unsqueeze(-1)
        y = torch.addcmul(y, x[:, seen] * same, weight_DK[:, K - 1 - back])
    return y, x[:, L:] * (piece[:, L:] == piece[:, -1:]).unsqueeze(-1)
