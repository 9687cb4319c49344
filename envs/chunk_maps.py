"""Where the chunks of a frame lie in the plane, whatever the order in which the model goes through its patches.

Shape suffixes: R rows and C columns of patches, K chunks.
"""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.patches import Patches


def patch_order(patches: Patches) -> np.ndarray:
    """Which place each patch has in the model's sequence: `(R, C)` int64.

    The model's own cutting up is asked, by a frame each of whose patches is filled with its number: however it orders
    them, the answer is right.
    """
    rows, columns = patches.rows, patches.columns
    number = np.arange(rows * columns).reshape(rows, columns)
    pixels = number.repeat(patches.ph, axis=0).repeat(patches.pw, axis=1)[: patches.H, : patches.W]
    frame = torch.from_numpy(pixels).view(1, patches.H, patches.W, 1).expand(-1, -1, -1, patches.C)
    cut = patches(frame.to(patches.offset.device).contiguous())[0, :, 0]
    found = (cut * patches.scale.flatten()[0] + patches.offset.flatten()[0]).round().long().cpu().numpy()
    return np.argsort(found).reshape(rows, columns)


def chunk_map(starts: np.ndarray, order_RC: np.ndarray) -> np.ndarray:
    """The number of the chunk, from 0, that each patch belongs to: `(..., R, C)`.

    Args:
        starts: `(..., K)` first patches of the chunks by their place in the sequence, rising; -1 where absent.
        order_RC: from `patch_order`.
    """
    starts = starts[..., None, None]
    return ((starts <= order_RC) & (starts >= 0)).sum(axis=-3) - 1


def chunk_edges(chunks_RC: np.ndarray, height: int, width: int, patch: int) -> np.ndarray:
    """Where the chunks of a frame meet.

    Args:
        chunks_RC: from `chunk_map`.
        height, width: of the frame, in pixels.
        patch: side of a patch.

    Returns:
        `(n, 2, 2)` line segments from (x, y) to (x, y), in pixels from the upper left corner.
    """
    y, x = np.nonzero(chunks_RC[1:] != chunks_RC[:-1])  # the patch below belongs to another chunk
    across = np.stack([x, y + 1, x + 1, y + 1], axis=1)
    y, x = np.nonzero(chunks_RC[:, 1:] != chunks_RC[:, :-1])  # the patch to the right does
    down = np.stack([x + 1, y, x + 1, y + 1], axis=1)
    return np.minimum(np.concatenate([across, down]).reshape(-1, 2, 2) * patch, np.array([width, height]))
