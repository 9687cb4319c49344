"""The chunked scan against the recurrence itself, one position at a time in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels.ssd import ssd_scan, ssd_step

NAMES = ("x", "dt", "A", "B", "C", "initial")


def naive(x, dt, A, B, C, initial, reset):
    h, ys = initial, []
    for t in range(x.shape[1]):
        h = h * (~reset[:, t]).to(h.dtype)[:, None, None, None]
        h = h * (dt[:, t] * A).exp()[..., None, None]
        h = h + torch.einsum("bhp,bn->bhpn", x[:, t] * dt[:, t, :, None], B[:, t])
        ys.append(torch.einsum("bhpn,bn->bhp", h, C[:, t]))
    return torch.stack(ys, 1), h


def inputs(seed, length, *, rows=2, heads=2, width=3, state=4, resets=0.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, heads, width, generator=g, dtype=dtype)
    dt = torch.nn.functional.softplus(torch.randn(rows, length, heads, generator=g, dtype=dtype))
    A = -torch.rand(heads, generator=g, dtype=dtype) * 3 - 0.01
    B = torch.randn(rows, length, state, generator=g, dtype=dtype)
    C = torch.randn(rows, length, state, generator=g, dtype=dtype)
    initial = torch.randn(rows, heads, width, state, generator=g, dtype=dtype)
    reset = torch.rand(rows, length, generator=g) < resets
    return [x, dt, A, B, C, initial], reset


def chunked(tensors, reset, chunk_size):
    x, dt, A, B, C, initial = tensors
    return ssd_scan(x, dt, A, B, C, reset_BL=reset, initial_BHPN=initial, chunk_size=chunk_size)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    length=st.integers(1, 40),
    chunk=st.integers(1, 17),
    resets=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
def test_any_length_chunk_and_resets_give_the_recurrence(seed, length, chunk, resets):
    tensors, reset = inputs(seed, length, resets=resets)
    y, last = chunked(tensors, reset, chunk)
    expected_y, expected_last = naive(*tensors, reset)
    torch.testing.assert_close(y, expected_y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last, expected_last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length,chunk,resets", [(1, 8, 0.0), (11, 4, 0.0), (11, 4, 0.3), (8, 8, 0.3), (9, 32, 0.3)])
def test_gradients_of_outputs_and_of_the_last_state(length, chunk, resets):
    tensors, reset = inputs(5, length, resets=resets)
    results = []
    for run in (lambda t: chunked(t, reset, chunk), lambda t: naive(*t, reset)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y, last = run(leaves)
        g = torch.Generator().manual_seed(1)
        out = (y * torch.randn(y.shape, generator=g, dtype=y.dtype)).sum()
        out = out + (last * torch.randn(last.shape, generator=g, dtype=y.dtype)).sum()
        results.append(torch.autograd.grad(out, leaves))
    for name, got, expected in zip(NAMES, *results):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_without_resets_or_an_initial_state_it_starts_from_zeros():
    (x, dt, A, B, C, initial), reset = inputs(3, 13)
    y, last = ssd_scan(x, dt, A, B, C, chunk_size=5)
    expected_y, expected_last = naive(x, dt, A, B, C, torch.zeros_like(initial), reset)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("cut", [1, 6, 7, 12])
def test_a_sequence_in_two_calls_is_the_sequence_in_one(cut):
    tensors, reset = inputs(7, 13, resets=0.2)
    whole_y, whole_last = chunked(tensors, reset, 4)
    x, dt, A, B, C, initial = tensors
    y1, middle = chunked([x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], initial], reset[:, :cut], 4)
    y2, last = chunked([x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], middle], reset[:, cut:], 4)
    torch.testing.assert_close(torch.cat([y1, y2], 1), whole_y)
    torch.testing.assert_close(last, whole_last)


def test_steps_give_the_scan_and_leave_their_state_alone():
    (x, dt, A, B, C, state), _ = inputs(9, 10)
    y, last = ssd_scan(x, dt, A, B, C, initial_BHPN=state, chunk_size=4)
    for t in range(10):
        kept = state.clone()
        y_t, new = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        assert torch.equal(state, kept)
        torch.testing.assert_close(y_t, y[:, t])
        state = new
    torch.testing.assert_close(state, last)


def test_what_came_before_a_reset_is_gone_to_the_bit():
    tensors, reset = inputs(11, 12)
    reset[:, 7] = True
    y, last = chunked(tensors, reset, 5)
    other = [t.clone() for t in tensors]
    for t in (other[0], other[3], other[4]):
        t[:, :7] = 1e6
    other[5][:] = -1e6
    other_y, other_last = chunked(other, reset, 5)
    assert torch.equal(y[:, 7:], other_y[:, 7:])
    assert torch.equal(last, other_last)


def test_rows_reset_alone():
    tensors, reset = inputs(13, 9)
    reset[1, 4] = True
    y, _ = chunked(tensors, reset, 4)
    unbroken, _ = chunked(tensors, torch.zeros_like(reset), 4)
    torch.testing.assert_close(y[0], unbroken[0])
    assert not torch.allclose(y[1, 4:], unbroken[1, 4:])


def test_long_fast_and_slow_decays_stay_exact_in_fp32():
    tensors, reset = inputs(2, 500, rows=1, resets=0.01, dtype=torch.float32)
    tensors[2] = torch.tensor([-1e-3, -60.0])  # one head remembers nearly all, exp(-60 * 500) is zero for the other
    y, last = chunked(tensors, reset, 32)
    expected_y, expected_last = naive(*[t.double() for t in tensors], reset)
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), expected_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-4, atol=1e-4)
