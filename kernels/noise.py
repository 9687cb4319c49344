"""Counter-based noise: the same (seed, step, substep, entry) gives the same number, whatever else is in the batch.

A row of a dream carries its own key and counter, so what it dreams depends neither on its neighbours nor on how many
numbers were drawn before. The hash is the 32-bit finaliser "lowbias32" (Wellons 2018, two multiplications), chained
over the coordinates.

Shape suffixes: B rows, n entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    # int64 holding a 32-bit word: torch has no unsigned shift, and this way none is needed.
    x = (x ^ (x >> 16)) * 0x7FEB352D & _LOW_32
    x = (x ^ (x >> 15)) * 0x846CA68B & _LOW_32
    return x ^ (x >> 16)


def row_hash(key: Tensor, counter: Tensor, stream: int) -> Tensor:
    """A 32-bit word for each row.

    Args:
        key: int64, any shape; all 64 bits count.
        counter: int64, broadcastable to `key`: the step.
        stream: which of the draws within the step.
    """
    h = _mix(key & _LOW_32)
    h = _mix(h ^ (key >> 32 & _LOW_32))
    h = _mix((h + counter) & _LOW_32)
    return _mix((h + stream * 0x9E3779B1) & _LOW_32)


def uniform(word: Tensor, n: int) -> Tensor:
    """`n` numbers in (0, 1) for each word of `row_hash`: shape `(*word.shape, n)`, float32, never exactly 0 or 1."""
    entry = torch.arange(n, device=word.device) * 0x9E3779B1 & _LOW_32
    bits = _mix((word.unsqueeze(-1) ^ entry) & _LOW_32)
    return ((bits >> 9).float() + 0.5) * 2.0**-23


def gumbel(word: Tensor, n: int) -> Tensor:
    """`n` Gumbel numbers for each word: `argmax(logits + gumbel)` is a sample of the categorical."""
    return -torch.log(-torch.log(uniform(word, n)))


def normal(word: Tensor, n: int) -> Tensor:
    """`n` standard normal numbers for each word, by the inverse of the normal's distribution function."""
    return torch.erfinv(2.0 * uniform(word, n) - 1.0) * 2.0**0.5
