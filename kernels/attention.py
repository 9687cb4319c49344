"""Attention over packed sequences: many short ones one behind the other, none of which sees another.

    positions   0 1 2 3 | 4 5 | 6 7 8         cu_seqlens = [0, 4, 6, 9]

flash-attn and torch's own varlen_attn run this on a GPU in bf16 or fp16. The torch backend runs anywhere: a batch where
all sequences are equally long, else blocks of positions against the band of positions that they can see. No matrix is
larger than T times twice the longest sequence, or twice the window.

Shape suffixes: T positions of all sequences, S sequences, H heads, E head width, Q positions a block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.backend import MissingBackend, asked_for, choose


def varlen_attention(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    *,
    causal: bool,
    window: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Attend within each sequence.

    Args:
        q_THE, k_THE, v_THE: queries, keys and values of all sequences.
        cu_seqlens: `(S + 1,)` int32, where each sequence begins, and T at the end.
        longest: positions of the longest sequence, or more; nothing here asks the GPU for it.
        causal: whether positions see only themselves and those before.
        window: positions that one sees, the present among them; 0 is no limit. Only where `causal`.
        backend: "flash", "varlen" or "torch"; None for what suits device, precision and head width
            (`kernels/backend.py`).

    Returns:
        `(T, H, E)`.

    Raises:
        ValueError: the window is negative, or there is one without `causal`.
        MissingBackend: the backend asked for is not installed or cannot run on these tensors.
    """
    if window < 0 or (window and not causal):
        raise ValueError(f"attention: a window of {window} positions needs causal attention, and cannot be negative")
    if not len(q_THE):
        return v_THE.clone()
    window = window if window < longest else 0
    able = ATTENTION
    if backend is None and asked_for("attention", ATTENTION) is None:
        able = {name: run for name, run in ATTENTION.items() if name == "torch" or unfit(q_THE) is None}
    run = choose("attention", q_THE, backend, able)
    return run(q_THE, k_THE, v_THE, cu_seqlens, longest, causal, window)


def pack(reset_BL: Tensor | None, rows: int, length: int, device: torch.device) -> tuple[Tensor, int]:
    """`cu_seqlens` and `longest` of rows laid one behind the other, where a row's begin and a reset begin a sequence.

    Resets cost one synchronisation with the host.
    """
    if reset_BL is None:
        return torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=device), length
    reset = reset_BL.cpu().clone()
    reset[:, 0] = True
    begins = reset.flatten().nonzero().flatten()
    cu_seqlens = F.pad(begins, (0, 1), value=rows * length).to(torch.int32)
    return cu_seqlens.to(device, non_blocking=True), int(cu_seqlens.diff().max())


def unfit(q_THE: Tensor) -> str | None:
    """Why the flash kernels cannot take these tensors, None if they can."""
    width = q_THE.shape[-1]
    if q_THE.dtype not in (torch.bfloat16, torch.float16):
        return f"bf16 or fp16, not {str(q_THE.dtype).removeprefix('torch.')}"
    if width % 8 or width > 256:
        return f"heads whose width is a multiple of 8 up to 256, not {width}"
    return None


def _check(backend: str, q_THE: Tensor) -> None:
    if reason := unfit(q_THE):
        raise MissingBackend(f"the backend {backend!r} of attention takes {reason}: ask for 'torch', or for none")


def limits(attention: Callable[..., Any], causal: bool, window: int) -> dict[str, Any]:
    """How this version of a flash function wants to be told what is seen: its signature has changed over time."""
    names = inspect.signature(attention).parameters
    said: dict[str, Any] = {}
    if "window_size" in names:  # how many are seen before and after oneself, -1 is no limit
        said["window_size"] = (window - 1, 0) if causal else (-1, -1)
    elif window:
        raise MissingBackend("this torch's varlen_attn has no window: install torch 2.11, or ask for 'torch'")
    for name in ("causal", "is_causal"):
        if name in names:
            said[name] = causal
    return said


def _flash(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, causal: bool, window: int) -> Tensor:
    _check("flash", q)
    from flash_attn import flash_attn_varlen_func

    said = limits(flash_attn_varlen_func, causal, window)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest,
        deterministic=torch.are_deterministic_algorithms_enabled(), **said,
    )  # fmt: skip


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, causal: bool, window: int) -> Tensor:
    _check("varlen", q)
    from torch.nn.attention.varlen import varlen_attn

    attend: Callable[..., Any] = varlen_attn
    return attend(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **limits(attend, causal, window))


def attention_torch(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, causal: bool, window: int
) -> Tensor:
    """The reference."""
    T, S = len(q), len(cu_seqlens) - 1
    if S * longest == T and not window:  # all are as long as the longest
        q, k, v = (t.unflatten(0, (S, longest)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(0, 1)

    # One position sees at most `before` others to its left and `after` to its right, so a block of Q positions sees a
    # band of Q + before + after, of which about half is wasted if Q = before + after.
    before, after = (window or longest) - 1, 0 if causal else longest - 1
    Q = min(max(16, before + after), T)
    band = before + Q + after
    pad = -T % Q
    place = torch.arange(T, dtype=cu_seqlens.dtype, device=q.device)
    piece = torch.searchsorted(cu_seqlens[1:], place, right=True)
    piece = F.pad(piece, (before, after + pad), value=-1)  # pads see one another, so that no softmax is empty
    own = piece[before : before + T + pad].unflatten(0, (-1, Q))
    back = torch.arange(Q, device=q.device)[:, None] + before - torch.arange(band, device=q.device)
    mask = (own[:, :, None] == piece.unfold(0, band, Q)[:, None, :]) & (back <= before) & (back >= -after)

    q = F.pad(q, (0, 0, 0, 0, 0, pad)).unflatten(0, (-1, Q)).transpose(1, 2)
    k, v = (F.pad(t, (0, 0, 0, 0, before, after + pad)).unfold(0, band, Q).transpose(2, 3) for t in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))
    return y.transpose(1, 2).flatten(0, 1)[:T]


ATTENTION: dict[str, Callable[..., Tensor]] = {"flash": _flash, "varlen": _varlen, "torch": attention_torch}
