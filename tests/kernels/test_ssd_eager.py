"""The gradient written by hand against autograd's of the reference."""

import pytest
import torch

from worldmodel.kernels import ssd_eager
from worldmodel.kernels.ssd import ssd_scan

NAMES = ("y", "last", "x", "dt", "A", "B", "C", "initial")


def inputs(length, *, rows=2, heads=2, width=3, state=4, resets=0.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(length)
    x = torch.randn(rows, length, heads, width, generator=g, dtype=dtype)
    dt = torch.nn.functional.softplus(torch.randn(rows, length, heads, generator=g, dtype=dtype))
    A = -torch.rand(heads, generator=g, dtype=dtype) * 3 - 0.01
    B = torch.randn(rows, length, state, generator=g, dtype=dtype)
    C = torch.randn(rows, length, state, generator=g, dtype=dtype)
    initial = torch.randn(rows, heads, width, state, generator=g, dtype=dtype)
    return [x, dt, A, B, C, initial], torch.rand(rows, length, generator=g) < resets


def run(backend, tensors, reset, *, initial=True, use="both", chunk=16):
    """y, the last state, and the gradients of what is used of them."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    options = {"reset_BL": reset, "initial_BHPN": leaves[5] if initial else None, "chunk_size": chunk}
    y, last = ssd_scan(*leaves[:5], **options, backend=backend)
    g = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=y.dtype)
    if use != "last":
        loss = loss + (y * torch.randn(y.shape, generator=g, dtype=y.dtype)).sum()
    if use != "y":
        loss = loss + (last * torch.randn(last.shape, generator=g, dtype=y.dtype)).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return y, last, *(torch.zeros_like(t) if d is None else d for t, d in zip(leaves, grads))


@pytest.mark.parametrize("length", [1, 5, 64, 65, 130])
@pytest.mark.parametrize("resets", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("initial,use", [(True, "both"), (False, "both"), (True, "y"), (False, "y"), (True, "last")])
def test_values_and_gradients_are_the_references(length, resets, initial, use):
    tensors, reset = inputs(length, resets=resets)
    expected = run("reference", tensors, reset, initial=initial, use=use)
    got = run("torch", tensors, reset, initial=initial, use=use)
    for name, a, b in zip(NAMES, got, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("longest", [4, 64])
def test_one_block_or_many_are_the_same(longest, monkeypatch):
    tensors, reset = inputs(30, resets=0.1)
    expected = run("reference", tensors, reset)
    monkeypatch.setattr(ssd_eager, "LONGEST", longest)
    for a, b in zip(run("torch", tensors, reset, chunk=7), expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [-0.01, -16.0])
def test_the_gradient_of_a_step_size_keeps_its_digits_in_fp32(decay):
    """It is a difference of sums over the row, and what they have in common cancels."""
    tensors, reset = inputs(200, rows=3)
    tensors[2] = torch.full_like(tensors[2], decay)
    expected = run("reference", tensors, reset)
    fp32 = [t.float() for t in tensors]
    hand, autograd = run("torch", fp32, reset), run("reference", fp32, reset)
    for i, name in enumerate(NAMES):
        size = expected[i].abs().max()
        error = (hand[i] - expected[i]).abs().max() / size
        assert error < max(2e-5, 8 * (autograd[i] - expected[i]).abs().max() / size), (name, error)
