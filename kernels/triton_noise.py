"""Counter-based noise in Triton: one launch from words to numbers.

All arithmetic is on uint32, where shifts and products are those of the hash, so the bits are the reference's.

Shape suffixes: B rows, n entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _uniform(word, entry):
    bits = _mix(word.to(tl.uint32) ^ (entry.to(tl.uint32) * 0x9E3779B1))
    return ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23


@triton.jit(do_not_specialize=["stream"])
def _row_hash_kernel(key_ptr, counter_ptr, word_ptr, stream, B, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + row, mask=row < B, other=0)
    counter = tl.load(counter_ptr + row, mask=row < B, other=0)
    h = _mix(key.to(tl.uint32))
    h = _mix(h ^ (key >> 32).to(tl.uint32))
    h = _mix(h + counter.to(tl.uint32))
    h = _mix(h + stream.to(tl.uint32) * 0x9E3779B1)
    tl.store(word_ptr + row, h.to(tl.int64), mask=row < B)


@triton.jit
def _uniform_kernel(word_ptr, out_ptr, count, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(word_ptr + place // n, mask=place < count, other=0)
    tl.store(out_ptr + place, _uniform(word, place % n), mask=place < count)


def row_hash_triton(key: Tensor, counter: Tensor, stream: int) -> Tensor:
    key, counter = (t.contiguous() for t in torch.broadcast_tensors(key, counter))
    word = torch.empty_like(key)
    if word.numel():
        grid = (triton.cdiv(word.numel(), BLOCK),)
        _row_hash_kernel[grid](key, counter, word, stream, word.numel(), BLOCK=BLOCK)
    return word


def uniform_triton(word: Tensor, n: int) -> Tensor:
    out = torch.empty(*word.shape, n, dtype=torch.float32, device=word.device)
    if out.numel():
        grid = (triton.cdiv(out.numel(), BLOCK),)
        _uniform_kernel[grid](word.contiguous(), out, out.numel(), n, BLOCK=BLOCK)
    return out
