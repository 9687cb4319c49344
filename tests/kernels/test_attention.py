"""Packed attention against each sequence alone, in fp64.

flash-attn and torch's varlen_attn run on a GPU only. Of them just this is checked here: who is chosen, what they are
told, and what is said where they cannot run.
"""

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from worldmodel.kernels import attention as attentions
from worldmodel.kernels import backend as backends
from worldmodel.kernels.attention import limits, pack, varlen_attention
from worldmodel.kernels.backend import MissingBackend

LENGTHS = [(1,), (7,), (5, 5, 5), (1, 1, 1, 1), (3, 1, 8, 2), (1, 40, 2, 1), (2, 0, 3), (0, 4), (33, 17, 20)]


def inputs(lengths, heads=2, width=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, sum(lengths), heads, width, generator=g, dtype=torch.float64).to(dtype)
    return [q, k, v], torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def naive(q, k, v, lengths, causal, window):
    """Position by position."""
    out, begin = [], 0
    for length in lengths:
        for t in range(length):
            first = max(0, t - window + 1) if window else 0
            seen = slice(begin + first, begin + (t + 1 if causal else length))
            scores = torch.einsum("he,the->ht", q[begin + t], k[seen]) / q.shape[-1] ** 0.5
            out.append(torch.einsum("ht,the->he", scores.softmax(-1), v[seen]))
        begin += length
    return torch.stack(out)


@pytest.mark.parametrize("causal,window", [(False, 0), (True, 0), (True, 1), (True, 2), (True, 6), (True, 100)])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_values_and_gradients_are_those_of_each_sequence_alone(lengths, causal, window):
    tensors, cu_seqlens = inputs(lengths)
    results = []
    for run in (
        lambda q, k, v: varlen_attention(q, k, v, cu_seqlens, max(lengths), causal=causal, window=window),
        lambda q, k, v: naive(q, k, v, lengths, causal, window),
    ):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = run(*leaves)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        results.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal,window", [(False, 0), (True, 0), (True, 3)])
def test_longest_may_be_more_than_that(causal, window):
    (q, k, v), cu_seqlens = inputs((5, 2, 5))
    expected = naive(q, k, v, (5, 2, 5), causal, window)
    for longest in (5, 6, 12, 50):
        y = varlen_attention(q, k, v, cu_seqlens, longest, causal=causal, window=window)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_slices_of_one_projection(causal):
    x = torch.randn(9, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    y = varlen_attention(*x.unbind(1), cu_seqlens, 5, causal=causal)
    torch.testing.assert_close(y, naive(*x.unbind(1), (4, 5), causal, 0))


@pytest.mark.parametrize("dtype,rtol", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_lower_precision(dtype, rtol):
    tensors, cu_seqlens = inputs((9, 4, 30), width=8, dtype=dtype)
    y = varlen_attention(*tensors, cu_seqlens, 30, causal=True, window=7)
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.double(), naive(*(t.double() for t in tensors), (9, 4, 30), True, 7), rtol=rtol, atol=rtol
    )


def test_no_positions():
    (q, k, v), _ = inputs(())
    y = varlen_attention(q, k, v, torch.zeros(1, dtype=torch.int32), 0, causal=True)
    assert y.shape == (0, 2, 4)


def test_its_memory_does_not_grow_with_the_square_of_all_positions(monkeypatch):
    (q, k, v), cu_seqlens = inputs([3] * 199 + [40])
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attentions.F,
        "scaled_dot_product_attention",
        lambda q, k, v, attn_mask: masks.append(attn_mask.numel()) or attend(q, k, v, attn_mask=attn_mask),
    )
    for causal, window in ((False, 0), (True, 0), (True, 8)):
        varlen_attention(q, k, v, cu_seqlens, 40, causal=causal, window=window)
        assert masks.pop() <= len(q) * 4 * 40 * 1.2


@pytest.mark.parametrize("causal,window", [(True, -1), (False, 3)])
def test_a_window_that_means_nothing_is_refused(causal, window):
    (q, k, v), cu_seqlens = inputs((4,))
    with pytest.raises(ValueError, match="window"):
        varlen_attention(q, k, v, cu_seqlens, 4, causal=causal, window=window)


def test_rows_and_resets_are_packed():
    reset = torch.zeros(3, 5, dtype=torch.bool)
    reset[0, 0] = reset[1, 2] = reset[1, 3] = reset[2, 4] = True
    kept = reset.clone()
    cu_seqlens, longest = pack(reset, 3, 5, reset.device)
    assert torch.equal(reset, kept)
    assert cu_seqlens.tolist() == [0, 5, 7, 8, 10, 14, 15]
    assert cu_seqlens.dtype == torch.int32
    assert longest == 5
    cu_seqlens, longest = pack(None, 3, 5, reset.device)
    assert cu_seqlens.tolist() == [0, 5, 10, 15]
    assert (cu_seqlens.dtype, longest) == (torch.int32, 5)


# ---- what needs a GPU -----------------------------------------------------------------------------------------------


def since_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)): ...


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None): ...


def flash_attn_varlen_func(
    q, k, v, cu_q, cu_k, max_q, max_k, causal=False, window_size=(-1, -1), deterministic=False
): ...


@pytest.mark.parametrize(
    "causal,window,size", [(False, 0, (-1, -1)), (True, 0, (-1, 0)), (True, 1, (0, 0)), (True, 9, (8, 0))]
)
def test_each_signature_is_told_what_is_seen(causal, window, size):
    """Stand-ins for the functions' signatures, and the installed one: the functions themselves need a GPU."""
    assert limits(since_2_11, causal, window) == {"window_size": size}
    assert limits(varlen_attn, causal, window) == {"window_size": size}
    assert limits(flash_attn_varlen_func, causal, window) == {"window_size": size, "causal": causal}
    if window:
        with pytest.raises(MissingBackend, match=r"has no window: install torch 2\.11"):
            limits(of_2_10, causal, window)
    else:
        assert limits(of_2_10, causal, window) == {"is_causal": causal}


class OnGpu(torch.Tensor):
    """Says that it is on a GPU; nothing is computed with it."""

    device = torch.device("cuda")


@pytest.mark.parametrize(
    "dtype,width,installed,expected",
    [
        (torch.bfloat16, 8, {"flash", "varlen"}, "flash"),
        (torch.float16, 256, {"flash", "varlen"}, "flash"),
        (torch.bfloat16, 8, {"varlen"}, "varlen"),
        (torch.bfloat16, 8, set(), "torch"),
        (torch.bfloat16, 12, {"flash", "varlen"}, "torch"),
        (torch.bfloat16, 264, {"flash", "varlen"}, "torch"),
        (torch.float32, 8, {"flash", "varlen"}, "torch"),
    ],
)
def test_a_gpu_takes_the_fastest_that_can(monkeypatch, dtype, width, installed, expected):
    monkeypatch.setattr(backends, "why_missing", lambda name: None if name in installed | {"torch"} else "no")
    for name in ("flash", "varlen", "torch"):
        monkeypatch.setitem(attentions.ATTENTION, name, lambda *_, name=name: name)
    tensors, cu_seqlens = inputs((3, 2), width=width, dtype=dtype)
    q, k, v = (t.as_subclass(OnGpu) for t in tensors)
    assert varlen_attention(q, k, v, cu_seqlens, 3, causal=True) == expected


@pytest.mark.parametrize("name", ["flash", "varlen"])
@pytest.mark.parametrize(
    "dtype,width,words", [(torch.float32, 8, "bf16 or fp16, not float32"), (torch.bfloat16, 12, "not 12")]
)
def test_what_flash_cannot_take_is_said(monkeypatch, name, dtype, width, words):
    monkeypatch.setattr(backends, "why_missing", lambda name: None)
    tensors, cu_seqlens = inputs((3, 2), width=width, dtype=dtype)
    q, k, v = (t.as_subclass(OnGpu) for t in tensors)
    with pytest.raises(MissingBackend, match=f"'{name}' of attention takes .*{words}"):
        varlen_attention(q, k, v, cu_seqlens, 3, causal=True, backend=name)
    monkeypatch.setenv(backends.VARIABLE, f"attention={name}")
    with pytest.raises(MissingBackend, match=f"'{name}' of attention takes .*{words}"):
        varlen_attention(q, k, v, cu_seqlens, 3, causal=True)


def test_on_a_cpu_it_says_that_varlen_needs_a_gpu():
    tensors, cu_seqlens = inputs((3, 2), dtype=torch.float32)
    with pytest.raises(MissingBackend, match="'varlen' of attention runs on a GPU, not on a CPU"):
        varlen_attention(*tensors, cu_seqlens, 3, causal=True, backend="varlen")
