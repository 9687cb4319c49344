"""The short causal convolution against a loop over positions and taps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels.conv import causal_conv


def naive(x, weight, bias, reset, initial):
    L, K = x.shape[1], weight.shape[1]
    window, ys = initial, []
    for t in range(L):
        window = window * (~reset[:, t]).to(x.dtype)[:, None, None]
        window = torch.cat([window, x[:, t : t + 1]], 1)
        ys.append(bias + sum(window[:, k] * weight[:, k] for k in range(K)))
        window = window[:, 1:]
    return torch.stack(ys, 1), window


def inputs(seed, length, taps, resets=0.0):
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x, weight, bias, initial = new(2, length, 3), new(3, taps), new(3), new(2, taps - 1, 3)
    return x, weight, bias, torch.rand(2, length, generator=g) < resets, initial


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    length=st.integers(1, 12),
    taps=st.integers(1, 5),
    resets=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
)
def test_any_length_taps_and_resets_give_the_loop(seed, length, taps, resets):
    x, weight, bias, reset, initial = inputs(seed, length, taps, resets)
    y, last = causal_conv(x, weight, bias, reset_BL=reset, initial_BKD=initial)
    expected_y, expected_last = naive(x, weight, bias, reset, initial)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("length", [1, 2, 9])  # shorter than the window, too: the state then keeps older inputs
def test_without_resets(length):
    x, weight, bias, reset, initial = inputs(1, length, 4)
    for given_initial in (None, initial):
        y, last = causal_conv(x, weight, bias, initial_BKD=given_initial)
        expected = naive(x, weight, bias, reset, torch.zeros_like(initial) if given_initial is None else initial)
        torch.testing.assert_close((y, last), expected)


def test_gradients():
    x, weight, bias, reset, initial = inputs(2, 9, 4, 0.3)
    results = []
    for run in (
        lambda x, w, b, i: causal_conv(x, w, b, reset_BL=reset, initial_BKD=i),
        lambda x, w, b, i: naive(x, w, b, reset, i),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias, initial)]
        y, last = run(*leaves)
        results.append(torch.autograd.grad(y.square().sum() + last.pow(3).sum(), leaves, allow_unused=True))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected)


def test_nothing_reaches_back_across_a_reset_nor_into_the_past():
    x, weight, bias, reset, initial = inputs(4, 10, 4)
    reset[:, 6] = True
    y, last = causal_conv(x, weight, bias, reset_BL=reset, initial_BKD=initial)
    earlier, later = x.clone(), x.clone()
    earlier[:, :6], later[:, 6:] = 1e9, 1e9
    y_earlier, last_earlier = causal_conv(earlier, weight, bias, reset_BL=reset, initial_BKD=initial * 1e9)
    assert torch.equal(y[:, 6:], y_earlier[:, 6:])
    assert torch.equal(last, last_earlier)
    assert torch.equal(y[:, :6], causal_conv(later, weight, bias, reset_BL=reset, initial_BKD=initial)[0][:, :6])
