"""From a mask to the indices of its True entries, packed to the left: how chunks become a shorter sequence, and back.

Shape suffixes: B rows, S slots, M kept slots of the fullest row, N kept slots of all rows, L positions, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.backend import choose


def compact(mask_BS: Tensor, length: int | None = None, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the True slots of each row, in order.

    Args:
        mask_BS: which slots to keep.
        length: M, at most S; None takes the fullest row's count, which costs one host synchronisation on a GPU.
        backend: "triton" or "torch"; None for what suits the device (kernels/backend.py).

    Returns:
        `index_BM` int64 and `valid_BM` bool; where not valid the index points at some slot that is not kept. No index
        comes twice in a row.

    Raises:
        ValueError: the length is more than S.
    """
    if length is not None and length > mask_BS.shape[1]:
        raise ValueError(f"{length} of {mask_BS.shape[1]} slots cannot be kept")
    return choose("compact", mask_BS, backend, COMPACT)(mask_BS, length)


def pack(mask_BS: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor, int]:
    """The True slots of all rows one after the other, without pads, as attention over ragged rows wants them.

    Args:
        mask_BS: which slots to keep.
        backend: "triton" or "torch"; None for what suits the device (kernels/backend.py).

    Returns:
        `index_N` int64 into the flattened rows (`x.flatten(0, 1)[index]`), where each row begins and ends among the N,
        `(B + 1,)` int32, and how many the fullest row keeps. Costs one host synchronisation on a GPU.
    """
    return choose("pack", mask_BS, backend, PACK)(mask_BS)


def take(x_BSD: Tensor, index_BM: Tensor) -> Tensor:
    """`x[b, index[b, m]]`: shape `(B, M, D)`.

    On a GPU the gradient is summed in any order where an index comes twice; never so with the indices of `compact`. For
    positions that take what stands for their chunk there is `spread`.
    """
    return x_BSD.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, x_BSD.shape[-1]))


def spread(z_BMD: Tensor, chunk_BL: Tensor, backend: str | None = None) -> Tensor:
    """Give every position what stands for its chunk; the gradient of a chunk is the sum over its positions, in order.

    Args:
        z_BMD: a vector for each chunk.
        chunk_BL: as bool, where chunks begin (not more than M in a row). As int64, the chunk that each position belongs
            to, never smaller than at the position before. Positions before the first chunk, -1, get zeros.
        backend: "triton" or "torch"; None for what suits the device (kernels/backend.py).

    Returns:
        `(B, L, D)`.
    """
    if chunk_BL.dtype == torch.bool:
        chunk_BL = chunk_BL.cumsum(1) - 1
    return choose("spread", z_BMD, backend, SPREAD)(z_BMD, chunk_BL)


def compact_torch(mask_BS: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
    so_far = mask_BS.cumsum(1)
    count = so_far[:, -1:]
    M = _fullest(count) if length is None else length
    slot = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    # Kept slots move to the front, the others behind them, each in their order. On a CPU about as fast as a stable sort
    # for small masks, and three times as fast for (64, 512).
    to = torch.where(mask_BS, so_far - 1, count + slot - so_far)
    index = torch.empty_like(to).scatter_(1, to, slot.expand_as(to))
    return index[:, :M], slot[:M] < count


def _fullest(count: Tensor) -> int:
    return int(count.max()) if count.numel() else 0


def pack_torch(mask_BS: Tensor) -> tuple[Tensor, Tensor, int]:
    count = mask_BS.sum(1)
    bounds = F.pad(count.cumsum(0), (1, 0))
    N, longest = totals(count, bounds)
    mask = mask_BS.flatten()
    # What is not kept lands behind the N and is cut off.
    to = torch.where(mask, mask.cumsum(0) - 1, N)
    index = to.new_empty(N + 1).scatter_(0, to, torch.arange(len(mask), device=mask.device))
    return index[:N], bounds.int(), longest


def totals(count_B: Tensor, bounds: Tensor) -> tuple[int, int]:
    """How many slots are kept, and how many of the fullest row, in one synchronisation."""
    if not len(count_B):
        return 0, 0
    N, longest = torch.stack([bounds[-1], count_B.max()]).tolist()
    return N, longest


def spread_torch(z_BMD: Tensor, chunk_BL: Tensor) -> Tensor:
    if chunk_BL.device.type == "cpu" and bool((chunk_BL[:, :1] >= 0).all()):
        return take(z_BMD, chunk_BL)
    return take(F.pad(z_BMD, (0, 0, 1, 0)), chunk_BL + 1)  # -1 finds the zeros in front


def _compact_triton(mask_BS: Tensor, length: int | None) -> tuple[Tensor, Tensor]:
    from worldmodel.kernels.triton_compaction import compact_triton

    return compact_triton(mask_BS, length)


def _pack_triton(mask_BS: Tensor) -> tuple[Tensor, Tensor, int]:
    from worldmodel.kernels.triton_compaction import pack_triton

    return pack_triton(mask_BS)


def _spread_triton(z_BMD: Tensor, chunk_BL: Tensor) -> Tensor:
    from worldmodel.kernels.triton_compaction import spread_triton

    return spread_triton(z_BMD, chunk_BL)


COMPACT = {"triton": _compact_triton, "torch": compact_torch}
PACK = {"triton": _pack_triton, "torch": pack_torch}
SPREAD = {"triton": _spread_triton, "torch": spread_torch}
