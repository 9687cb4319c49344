"""The layer between its projections in C against the formula left to autograd, in fp64."""

import math

import pytest
import torch

from worldmodel.kernels.backend import why_missing
from worldmodel.kernels.mamba_mix import mamba_mix, mamba_mix_eager
from worldmodel.kernels.mamba_step import StepWeights

if why_missing("native") is not None:
    pytest.skip("there is no C compiler", allow_module_level=True)

from worldmodel.kernels import native, native_mix
from worldmodel.kernels.native_mix import mamba_mix_native

NAMES = ("y", "u", "filters", "filter_bias", "dt_bias", "A_log", "D", "norm")


def inputs(length, *, rows=2, heads=3, width=5, state=7, taps=4, resets=None):
    g = torch.Generator().manual_seed(length)
    inner = heads * width
    convolved = inner + 2 * state

    def randn(*shape):
        return torch.randn(*shape, generator=g)

    u = randn(rows, length, inner + convolved + heads)
    A_log = torch.rand(heads, generator=g) * 3 - 1
    weights = (randn(convolved, taps), randn(convolved), randn(heads), A_log, randn(heads), 1 + 0.2 * randn(inner))
    reset = None if resets is None else torch.rand(rows, length, generator=g) < resets
    return [u, *weights], reset, state


def gradients(run, tensors):
    """The outputs, and the gradients of a random weighting of them."""
    u, *weights = leaves = [t.clone().requires_grad_() for t in tensors]
    y = run(u, StepWeights(*weights))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def in_c(tensors, reset, state):
    return gradients(lambda u, weights: mamba_mix_native(u, weights, state, reset, 32), tensors)


def reference(tensors, reset, state):
    def run(u, weights):
        return mamba_mix(u, weights, state_width=state, reset_BL=reset, backend="reference")

    return gradients(run, [t.double() for t in tensors])


def assert_near(got, expected, tolerance):
    for name, a, b in zip(NAMES, got, expected):
        assert a.dtype == torch.float32 and a.shape == b.shape and a.is_contiguous()
        # Where nothing can be left of anything, the gradient of the decay is an exact zero, and the reference's is not.
        assert (a - b).norm() <= tolerance * b.norm() + 1e-12, (name, float((a - b).norm() / b.norm()))


@pytest.mark.parametrize("length", [1, 2, 9, 64, 100])
@pytest.mark.parametrize("resets", [None, 0.0, 0.15, 0.7])
@pytest.mark.parametrize("taps", [2, 4])
def test_values_and_gradients_are_the_references(length, resets, taps):
    given = inputs(length, taps=taps, resets=resets)
    assert_near(in_c(*given), reference(*given), 5e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 4, "width": 32, "state": 16},
        {"heads": 2, "width": 64, "state": 64},
        {"heads": 1, "width": 64, "state": 128},
        {"heads": 2, "width": 24, "state": 33},  # blocks of another length, and rows of the state left over
        {"heads": 1, "width": 1, "state": 1, "taps": 1},
        {"heads": 5, "width": 40, "state": 3, "taps": 20},  # filters as long as a block
    ],
)
def test_any_sizes(sizes):
    given = inputs(70, resets=0.05, **sizes)
    assert_near(in_c(*given), reference(*given), 5e-5)


@pytest.mark.parametrize("A", [16.0, 0.01])
@pytest.mark.parametrize("dt_bias", [0.0, -6.0])
def test_fast_and_slow_decays_keep_their_digits(A, dt_bias):
    tensors, reset, state = inputs(120, heads=4, width=32, state=16)
    tensors[3].fill_(dt_bias)
    tensors[4].fill_(math.log(A))
    assert_near(in_c(tensors, reset, state), reference(tensors, reset, state), 1e-5)


def test_steps_far_from_zero():
    tensors, reset, state = inputs(40)
    tensors[0][..., -3:] *= 60  # a softplus that is zero, or as large as what went in
    assert_near(in_c(tensors, reset, state), reference(tensors, reset, state), 5e-5)


def test_a_reset_hides_all_that_was_before():
    tensors, _, state = inputs(50, rows=1)
    reset = torch.zeros(1, 50, dtype=torch.bool)
    reset[0, 21] = True
    u, *weights = tensors
    other = torch.cat([torch.randn(1, 21, u.shape[2]), u[:, 21:]], 1).requires_grad_()
    y = mamba_mix_native(u, StepWeights(*weights), state, reset, 32)
    again = mamba_mix_native(other, StepWeights(*weights), state, reset, 32)
    assert torch.equal(y[:, 21:], again[:, 21:]) and not torch.equal(y[:, :21], again[:, :21])
    again[:, 21:].sum().backward()
    assert not other.grad[:, :21].any() and other.grad[:, 21:].any()


def test_threads_change_no_bit(monkeypatch):
    given = inputs(40, rows=5, heads=4, width=32, state=16, resets=0.1)
    before, results, parts = torch.get_num_threads(), [], []
    monkeypatch.setattr(native, "SMALL", 0)
    over_rows = native.over_rows
    monkeypatch.setattr(
        native_mix, "over_rows", lambda call, *a: over_rows(lambda *rows: (parts.append(rows), call(*rows)), *a)
    )
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(in_c(*given))
    finally:
        torch.set_num_threads(before)
    assert len(parts) == 2 * (1 + 2 + 3)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


def test_inputs_and_gradients_may_lie_anyhow():
    (u, filters, *others), reset, state = inputs(30, resets=0.1)
    expected = in_c([u, filters, *others], reset, state)
    wide = torch.stack([u, u], -1).requires_grad_()
    y = mamba_mix_native(
        wide[..., 0], StepWeights(filters.t().contiguous().t(), *others), state, reset.t().contiguous().t(), 32
    )
    assert torch.equal(y, expected[0])
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    y.backward(dy.transpose(0, 1).contiguous().transpose(0, 1))
    assert torch.equal(wide.grad[..., 0], expected[1]) and not wide.grad[..., 1].any()
    mamba_mix_native(
        wide[..., 0], StepWeights(filters, *others), state, reset, 32
    ).sum().backward()  # one number, widened


@pytest.mark.parametrize("wanted", range(7))
def test_gradients_flow_only_where_they_are_wanted(wanted):
    tensors, reset, state = inputs(20, resets=0.1)
    expected = in_c(tensors, reset, state)
    u, *weights = leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    y = mamba_mix_native(u, StepWeights(*weights), state, reset, 32)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float())
    assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(7)]
    assert torch.equal(leaves[wanted].grad, expected[wanted + 1])


def test_without_gradients_nothing_is_kept():
    (u, *weights), reset, state = inputs(40)
    u.requires_grad_()
    y = mamba_mix_native(u, StepWeights(*weights), state, reset, 32)
    with torch.no_grad():
        free = mamba_mix_native(u, StepWeights(*weights), state, reset, 32)
    assert torch.equal(y, free) and y.requires_grad and not free.requires_grad


@pytest.mark.parametrize("rows,length", [(0, 5), (2, 0)])
def test_nothing_in_nothing_out(rows, length):
    (u, *weights), reset, state = inputs(5, resets=0.1)
    u = u[:1, :1].expand(rows, length, -1).clone().requires_grad_()
    weights = [w.requires_grad_() for w in weights]
    y = mamba_mix_native(u, StepWeights(*weights), state, reset[:1, :1].expand(rows, length), 32)
    assert y.shape == (rows, length, 15)
    y.sum().backward()
    assert u.grad.shape == u.shape and not any(w.grad.any() for w in weights)


def test_a_cpu_left_alone_takes_it(monkeypatch):
    monkeypatch.delenv("WORLDMODEL_BACKEND", raising=False)
    (u, *weights), reset, state = inputs(20, resets=0.1)
    expected = mamba_mix_native(u, StepWeights(*weights), state, reset, 32)
    assert not torch.equal(mamba_mix_eager(u, StepWeights(*weights), state, reset, 32), expected)
    for backend in (None, "native"):
        y = mamba_mix(u, StepWeights(*weights), state_width=state, reset_BL=reset, backend=backend)
        assert torch.equal(y, expected)


def test_other_numbers_are_left_to_torch():
    (u, *weights), reset, state = inputs(20, resets=0.1)
    for dtype in (torch.float64, torch.bfloat16):
        y = mamba_mix_native(u.to(dtype), StepWeights(*weights), state, reset, 32)
        assert y.dtype == dtype
        assert torch.equal(y, mamba_mix_eager(u.to(dtype), StepWeights(*weights), state, reset, 32))


def test_a_position_without_numbers_shows_in_its_own_row_only():
    (u, *weights), _, state = inputs(20)
    u[0, 9] = torch.nan
    u.requires_grad_()
    y = mamba_mix_native(u, StepWeights(*weights), state, None, 32)
    assert y[0, 9].isnan().all() and y[1].isfinite().all() and y[0, :9].isfinite().all()
    y.sum().backward()
    assert u.grad[0, 9].isnan().all() and u.grad[1].isfinite().all()


def test_without_memory_there_is_an_error(monkeypatch):
    (u, *weights), _, state = inputs(5)
    monkeypatch.setattr(native_mix, "FORWARD", lambda mix, first, last: 1)
    with pytest.raises(MemoryError):
        mamba_mix_native(u, StepWeights(*weights), state, None, 32)


def test_denormal_numbers_still_count_everywhere_else():
    (u, *weights), _, state = inputs(100)
    weights[3].fill_(3.0)  # exp(A_log): the states decay far below the normal numbers
    u[:, 1:, :30] = 0
    in_c([u, *weights], None, state)
    assert (torch.full((1000,), 1e-40) * 0.5 > 0).all()
