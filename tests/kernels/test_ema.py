"""The smoothing scan against `s_j = p_j z_j + (1 - p_j) s_{j-1}` in fp64."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels.ema import ema_scan

TORCH, TRITON = partial(ema_scan, backend="torch"), partial(ema_scan, backend="triton")


def naive(z, p, initial):
    s, out = initial, []
    for j in range(z.shape[1]):
        s = p[:, j, None] * z[:, j] + (1 - p[:, j, None]) * s
        out.append(s)
    return torch.stack(out, 1), s


def inputs(seed, length, kind="mixed", rows=2, width=3):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, length, width, generator=g)
    p = torch.rand(rows, length, generator=g)
    if kind == "mixed":  # forced boundaries, pads, and all that lies close to them
        special = torch.tensor([0.0, 1.0, 1e-6, 1 - 1e-6, 1 - 2**-24])
        pick = torch.randint(0, 10, (rows, length), generator=g)
        p = torch.where(pick < 5, special[pick.clamp(max=4)], p)
    elif kind == "low":
        p = p * 1e-3
    elif kind == "high":
        p = 1 - p * 1e-5
    return z, p, torch.randn(rows, width, generator=g)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    length=st.integers(1, 50),
    block=st.sampled_from([1, 3, 8, 64]),
    kind=st.sampled_from(["mixed", "plain", "low", "high"]),
    carried=st.booleans(),
)
def test_any_length_block_and_p_give_the_recurrence(seed, length, block, kind, carried):
    z, p, initial = inputs(seed, length, kind)
    initial = initial if carried else torch.zeros_like(initial)
    y, last = ema_scan(z, p, initial_BD=initial if carried else None, block=block)
    expected_y, expected_last = naive(z.double(), p.double(), initial.double())
    torch.testing.assert_close(y.double(), expected_y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [4, 64])
def test_p_of_one_forgets_everything_to_the_bit(block):
    z, p, initial = inputs(1, 20, "plain")
    p[:, 9] = 1.0
    y, _ = ema_scan(z, p, initial_BD=initial, block=block)
    z_other = z.clone()
    z_other[:, :9] = 1e8
    other, _ = ema_scan(z_other, p, initial_BD=initial * 1e8, block=block)
    assert torch.equal(y[:, 9], z[:, 9])
    assert torch.equal(y[:, 9:], other[:, 9:])


@pytest.mark.parametrize("block", [4, 64])
def test_p_of_zero_is_a_pad(block):
    z, p, initial = inputs(2, 15, "plain")
    z[:, 10:], p[:, 10:] = 1e8, 0.0
    y, last = ema_scan(z, p, initial_BD=initial, block=block)
    shorter, _ = ema_scan(z[:, :10], p[:, :10], initial_BD=initial, block=block)
    torch.testing.assert_close(y[:, :10], shorter)
    torch.testing.assert_close(last, shorter[:, -1])
    torch.testing.assert_close(y[:, 10:], shorter[:, -1:].expand(-1, 5, -1))


@pytest.mark.parametrize("p_value", [1e-5, 0.5, 1 - 1e-6])
def test_long_sequences_neither_overflow_nor_underflow(p_value):
    z, _, initial = inputs(3, 5000, rows=1)
    p = torch.full((1, 5000), p_value, requires_grad=True)
    z.requires_grad_()
    y, last = ema_scan(z, p, initial_BD=initial)
    expected, _ = naive(z.detach().double(), p.detach().double(), initial.double())
    torch.testing.assert_close(y.detach().double(), expected, rtol=1e-4, atol=1e-4)
    (y.sum() + last.sum()).backward()
    assert z.grad.isfinite().all()
    assert p.grad.isfinite().all()


def test_gradients():
    z, p, initial = inputs(4, 30, "plain")
    p[0, 7], p[1, 20:] = 1.0, 0.0
    results = []
    for run, dtype in (
        (lambda *t: ema_scan(t[0], t[1], initial_BD=t[2], block=8), torch.float32),
        (naive, torch.float64),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in (z, p, initial)]
        y, last = run(*leaves)
        g = torch.Generator().manual_seed(0)
        out = (y * torch.randn(y.shape, generator=g).to(dtype)).sum() + last.pow(2).sum()
        results.append([x.double() for x in torch.autograd.grad(out, leaves)])
    # A p of exactly 1 is forced, never learned, so its gradient is left out here.
    results[0][1][0, 7] = results[1][1][0, 7] = 0.0
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def exact(z, p, initial_BD):
    """The recurrence, where a p of 1 is said to hide the past from its own gradient, too."""
    s, out = z.new_zeros(z.shape[0], z.shape[2]) if initial_BD is None else initial_BD, []
    for j in range(z.shape[1]):
        keep = (1 - p[:, j, None]).masked_fill(p[:, j, None] == 1, 0.0)
        s = p[:, j, None] * z[:, j] + keep * s
        out.append(s)
    return torch.stack(out, 1), s


def gradients(run, z, p, initial, width=None):
    """Values, and gradients of every input through both outputs; only the first `width` channels of z are given."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (z, p, initial)]
    y, last = run(leaves[0][..., :width], leaves[1], initial_BD=leaves[2])
    g = torch.Generator().manual_seed(0)
    out = (y * torch.randn(y.shape, generator=g).to(y.dtype)).sum() + last.pow(2).sum()
    return [y, last, *torch.autograd.grad(out, [t for t in leaves if t is not None])]


@pytest.mark.parametrize("rows,length,width", [(1, 1, 1), (2, 7, 3), (3, 19, 64), (1, 5, 130)])
@pytest.mark.parametrize("kind", ["mixed", "plain", "low", "high"])
@pytest.mark.parametrize("carried", [False, True])
def test_triton_gives_the_values_and_gradients_of_the_recurrence(rows, length, width, kind, carried):
    z, p, initial = (t.double() for t in inputs(6, length, kind, rows, width))
    initial = initial if carried else None
    got = gradients(TRITON, z, p, initial)
    torch.testing.assert_close(got, gradients(exact, z, p, initial), rtol=1e-9, atol=1e-9)
    # Next to p = 1 the reference divides the small differences of its logarithms by 1 - p.
    torch.testing.assert_close(got, gradients(TORCH, z, p, initial), rtol=1e-5, atol=1e-5)


def test_triton_and_the_reference_agree_on_a_p_of_one():
    z, p, initial = inputs(7, 12, "plain")
    p[:, 0], p[0, 5], p[1, 11] = 1.0, 1.0, 1.0
    for run in (TORCH, TRITON):
        _, _, dz, dp, dinitial = gradients(run, z, p, initial)
        z_other = z.clone()
        z_other[0, :5] = 100.0
        assert torch.equal(dp[:, 0], gradients(run, z, p, -initial)[3][:, 0])
        assert torch.equal(dp[0, 5], gradients(run, z_other, p, initial)[3][0, 5])
        torch.testing.assert_close(dp[0, 5], (z[0, 5] * dz[0, 5]).sum())  # p is 1, so dz is g
        assert not dinitial.any()


def test_triton_forgets_even_infinities():
    z, p, initial = inputs(8, 6, "plain")
    z[:, 2], p[:, 3] = torch.inf, 1.0
    y, _, dz, dp, dinitial = gradients(TRITON, z, p, initial * torch.nan)
    assert y[:, :3].isfinite().logical_not().any()
    assert y[:, 3:].isfinite().all()
    torch.testing.assert_close(y[:, 3:], ema_scan(z[:, 3:], p[:, 3:])[0])
    assert dz.isfinite().all()
    assert dp[:, 3:].isfinite().all()
    assert dinitial.isfinite().all()


def test_triton_takes_narrowed_and_turned_tensors():
    z, p, initial = inputs(9, 9, "plain", width=8)
    expected = gradients(TORCH, z, p, initial[:, :5], width=5)
    torch.testing.assert_close(gradients(TRITON, z, p, initial[:, :5], width=5), expected, rtol=1e-4, atol=1e-4)
    turned = z[..., :5].transpose(1, 2).contiguous().transpose(1, 2)
    y, last = ema_scan(turned, p.t().contiguous().t(), initial_BD=initial.t().contiguous().t()[:, :5], backend="triton")
    torch.testing.assert_close([y, last], expected[:2], rtol=1e-5, atol=1e-5)


def test_triton_takes_a_gradient_that_is_one_number_expanded():
    z, p, _ = inputs(11, 7, "plain")
    got, expected = (torch.autograd.grad(run(z.requires_grad_(), p)[0].sum(), z) for run in (TRITON, TORCH))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("rows,length", [(0, 4), (2, 0)])
def test_no_rows_or_no_positions(backend, rows, length):
    z, p, initial = torch.zeros(rows, length, 3), torch.zeros(rows, length), torch.ones(rows, 3)
    y, last = ema_scan(z, p, initial_BD=initial, backend=backend)
    assert y.shape == z.shape
    assert torch.equal(last, initial)


def test_triton_smooths_half_precision_in_fp32():
    z, p, initial = inputs(10, 33, "low")
    got = gradients(TRITON, z.bfloat16(), p, initial)
    assert [t.dtype for t in got] == [torch.float32] * 2 + [torch.bfloat16] + [torch.float32] * 2
    expected = gradients(exact, z.bfloat16().double(), p.double(), initial.double())
    for t, e in zip(got, expected):
        rtol = 1e-2 if t.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(t.double(), e, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision_is_smoothed_in_fp32(backend):
    z, p, _ = inputs(5, 200, "low")
    y, last = ema_scan(z.bfloat16(), p, backend=backend)
    assert y.dtype == last.dtype == torch.float32
    expected, _ = naive(z.bfloat16().double(), p.double(), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


def test_autocast_leaves_it_in_fp32():
    z, p, initial = inputs(12, 20, "plain")
    with torch.autocast("cpu", torch.bfloat16):
        y, last = ema_scan(z, p, initial_BD=initial)
    expected = ema_scan(z, p, initial_BD=initial)
    assert torch.equal(y, expected[0])
    assert torch.equal(last, expected[1])
