"""Counter-based noise: the same (seed, step, substep, entry) gives the same number, whatever else is in the batch.

A row of a dream carries its own key and counter, so what it dreams depends neither on its neighbours nor on how many
numbers were drawn before. The hash is the 32-bit finaliser "lowbias32" (Wellons 2018, two multiplications), chained
over the coordinates.

Nor does it depend on the machine. Words and uniforms are integers and exact floats. Libraries differ in the last bits
of an inverse error function, so normal numbers are computed in fp64 and rounded to fp32 once: there are only 2^23
uniforms, and for each of them the fp64 value is so far from the middle between two floats that two libraries with an
error of ten ulps round to the same.

Shape suffixes: B rows, n entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.kernels.backend import choose

_LOW_32 = 0xFFFFFFFF
PART = 1 << 16  # numbers drawn at a time


def row_hash(key: Tensor, counter: Tensor, stream: int, backend: str | None = None) -> Tensor:
    """A 32-bit word for each row, int64.

    Args:
        key: int64, any shape; all 64 bits count.
        counter: int64, broadcastable to `key`: the step.
        stream: which of the draws within the step.
        backend: see kernels/backend.py; all give the same bits, here and below.
    """
    return choose("row_hash", key, backend, ROW_HASH)(key, counter, stream)


def uniform(word: Tensor, n: int, backend: str | None = None) -> Tensor:
    """`n` numbers in (0, 1) for each word of `row_hash`: shape `(*word.shape, n)`, float32, never exactly 0 or 1."""
    return choose("uniform", word, backend, UNIFORM)(word, n)


def _int32(number: int) -> Tensor:
    """The number with the same low 32 bits. As a tensor: a Python number would be converted in every operation."""
    return torch.tensor((number & _LOW_32 ^ 0x80000000) - 0x80000000, dtype=torch.int32, device="cpu")


_9, _15, _16, _LOW_16, _LOW_17, _LOW_23 = map(_int32, (9, 15, 16, 0xFFFF, 0x1FFFF, 0x7FFFFF))
_FIRST, _SECOND, _GOLDEN = map(_int32, (0x7FEB352D, 0x846CA68B, 0x9E3779B1))
_ONE = _int32(0x3F800000)  # the bits of 1.0


def _mix_(x: Tensor) -> Tensor:
    # In place, on int32: half the traffic of int64. Its shift drags the sign along, which the mask takes away again.
    x ^= (x >> _16).bitwise_and_(_LOW_16)
    x *= _FIRST
    x ^= (x >> _15).bitwise_and_(_LOW_17)
    x *= _SECOND
    x ^= (x >> _16).bitwise_and_(_LOW_16)
    return x


def row_hash_torch(key: Tensor, counter: Tensor, stream: int) -> Tensor:
    h = _mix_(key.to(torch.int32, copy=True))  # its low half
    h = _mix_(h ^ (key >> 32).to(torch.int32))
    h = _mix_(h + counter.to(torch.int32))
    return _mix_(h + _int32(stream * 0x9E3779B1)).long() & _LOW_32


def _uniform(word: Tensor, n: int) -> Tensor:
    entry = torch.arange(n, dtype=torch.int32, device=word.device) * _GOLDEN
    bits = _mix_(word.to(torch.int32).unsqueeze(-1) ^ entry)
    # 23 bits under the exponent of 1.0 are a float in [1, 2); what is taken away leaves (bits + 1/2) 2^-23, exactly.
    bits >>= _9
    bits &= _LOW_23
    bits |= _ONE
    return bits.view(torch.float32).sub_(1 - 2.0**-24)


def to_normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers, by the inverse of the normal's distribution function: the same bits everywhere, too."""
    return uniform.double().mul_(2.0).sub_(1.0).erfinv_().mul_(2.0**0.5).float()


def uniform_torch(word: Tensor, n: int) -> Tensor:
    # Part by part, each small enough for the cache and for memory that malloc keeps instead of giving it back.
    rows = max(1, PART // max(1, n))
    if word.numel() <= rows:
        return _uniform(word, n)
    out = torch.empty(*word.shape, n, device=word.device)
    for part, drawn in zip(word.flatten().split(rows), out.view(-1, n).split(rows)):
        drawn.copy_(_uniform(part, n))
    return out


def _row_hash_triton(key: Tensor, counter: Tensor, stream: int) -> Tensor:
    from worldmodel.kernels.triton_noise import row_hash_triton

    return row_hash_triton(key, counter, stream)


def _uniform_triton(word: Tensor, n: int) -> Tensor:
    from worldmodel.kernels.triton_noise import uniform_triton

    return uniform_triton(word, n)


ROW_HASH = {"triton": _row_hash_triton, "torch": row_hash_torch}
UNIFORM = {"triton": _uniform_triton, "torch": uniform_torch}
