"""From a mask to the indices of its True entries, packed to the left: how chunks become a shorter sequence.

Shape suffixes: B rows, S slots, M kept slots of the fullest row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compact(mask_BS: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the True slots of each row, in order.

    Args:
        mask_BS: which slots to keep.
        length: M; None takes the fullest row's count, which costs one host synchronisation on a GPU.

    Returns:
        `index_BM` int64 and `valid_BM` bool; where not valid the index points at some slot that is not kept.
    """
    count = mask_BS.sum(1)
    M = int(count.max()) if length is None else length
    # A stable sort of the mask keeps the order inside both halves.
    index_BM = torch.argsort((~mask_BS).to(torch.uint8), dim=1, stable=True)[:, :M]
    return index_BM, torch.arange(M, device=mask_BS.device) < count.unsqueeze(1)


def take(x_BSD: Tensor, index_BM: Tensor) -> Tensor:
    """`x[b, index[b, m]]`: shape `(B, M, D)`."""
    return x_BSD.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, x_BSD.shape[-1]))
