"""The layer between its projections with a gradient by hand, against the formula left to autograd."""

import pytest
import torch

from worldmodel.kernels.mamba_mix import mamba_mix
from worldmodel.kernels.mamba_step import StepWeights

NAMES = ("y", "u", "filters", "filter_bias", "dt_bias", "A_log", "D", "norm")


def inputs(length, *, rows=2, heads=2, width=3, state=4, taps=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(length)
    inner = heads * width

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    convolved = inner + 2 * state
    u = randn(rows, length, inner + convolved + heads)
    weights = (randn(convolved, taps), randn(convolved), randn(heads), randn(heads), randn(heads), randn(inner))
    return [u, *weights]


def run(backend, tensors, reset, **options):
    u, *weights = leaves = [t.clone().requires_grad_() for t in tensors]
    y = mamba_mix(u, StepWeights(*weights), state_width=4, reset_BL=reset, backend=backend, **options)
    seed = torch.Generator().manual_seed(1)
    loss = (y * torch.randn(y.shape, generator=seed, dtype=torch.float64).to(y.dtype)).sum()
    return y, *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("length", [1, 2, 9, 64, 100])
@pytest.mark.parametrize("resets", [None, 0.0, 0.15, 0.7])
@pytest.mark.parametrize("taps", [2, 4])
def test_values_and_gradients_are_the_references(length, resets, taps):
    tensors = inputs(length, taps=taps)
    reset = None
    if resets is not None:
        reset = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < resets
        reset[:, 0] = True
    expected = run("reference", tensors, reset)
    for name, a, b in zip(NAMES, run("torch", tensors, reset, chunk_size=16), expected):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_triton_scans_the_same():
    tensors = inputs(21)
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[1, 8] = True
    expected = run("reference", tensors, reset)
    for name, a, b in zip(NAMES, run("triton", tensors, reset, chunk_size=16), expected):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


def test_fp32_is_near_and_bf16_comes_back_as_bf16():
    tensors = inputs(40, heads=4, width=8)
    expected = run("reference", tensors, None)
    for name, a, b in zip(NAMES, run("torch", [t.float() for t in tensors], None), expected):
        assert (a - b).norm() < 1e-4 * b.norm(), name
    u, *weights = (t.float() for t in tensors)
    y = mamba_mix(u.bfloat16(), StepWeights(*weights), state_width=4)
    assert y.dtype == torch.bfloat16
    assert (y - expected[0]).norm() < 0.05 * expected[0].norm()
