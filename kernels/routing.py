"""The router's question: do two neighbouring vectors point apart, seen from the mean of all?

    p = (1 - cos(W_q norm(before - mean), W_k norm(here - mean))) / 2

Shape suffixes: D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.backend import choose

LOWEST = 1e-5  # p stays this far from 0 and 1


def boundary_logit(
    before: Tensor, here: Tensor, mean_D: Tensor, q_DD: Tensor, k_DD: Tensor, backend: str | None = None
) -> Tensor:
    """logit p of a boundary at `here`.

    Args:
        before, here: `(..., D)` each. For a sequence `x[:, :-1]` and `x[:, 1:]`, which are not copied.
        mean_D: taken away from both.
        q_DD, k_DD: the weights of linear layers without bias, rows are outputs.
        backend: "triton" or "torch"; None for what suits the device (kernels/backend.py). Going back, "triton" computes
            it all again as "torch" does.

    Returns:
        `(...)` in fp32 (fp64 if the vectors are).
    """
    return choose("boundary_logit", here, backend, BOUNDARY_LOGIT)(before, here, mean_D, q_DD, k_DD)


def boundary_logit_torch(before: Tensor, here: Tensor, mean_D: Tensor, q_DD: Tensor, k_DD: Tensor) -> Tensor:
    dtype = torch.float64 if here.dtype == torch.float64 else torch.float32
    with torch.autocast(here.device.type, enabled=False):  # bf16 cannot tell a cosine near 1 from another
        q = F.linear(F.rms_norm(before.to(dtype) - mean_D, before.shape[-1:]), q_DD)
        k = F.linear(F.rms_norm(here.to(dtype) - mean_D, here.shape[-1:]), k_DD)
        p = (0.5 - 0.5 * F.cosine_similarity(q, k, dim=-1)).clamp(LOWEST, 1 - LOWEST)
        return torch.logit(p)


def _triton(before: Tensor, here: Tensor, mean_D: Tensor, q_DD: Tensor, k_DD: Tensor) -> Tensor:
    from worldmodel.kernels.triton_routing import boundary_logit_triton

    return boundary_logit_triton(before, here, mean_D, q_DD, k_DD)


BOUNDARY_LOGIT = {"triton": _triton, "torch": boundary_logit_torch}
