"""One position of Mamba-2: the reference against its formulas, and Triton against the reference."""

import pytest
import torch
import torch.nn.functional as F

from worldmodel.kernels.backend import why_missing
from worldmodel.kernels.mamba_step import StepWeights, mamba_step

needs_compiler = pytest.mark.skipif(why_missing("native") is not None, reason="there is no C compiler")

# Rows, heads, head width, state width, filter length.
SHAPES = [(1, 1, 8, 4, 4), (3, 3, 5, 5, 3), (2, 4, 16, 3, 2), (2, 2, 3, 1, 1), (1, 5, 32, 17, 4)]


def inputs(rows, heads, width, state, taps, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    I = heads * width  # noqa: E741
    W = I + 2 * state
    weights = StepWeights(randn(W, taps), randn(W), randn(heads), randn(heads), randn(heads), 1 + 0.2 * randn(I))
    return randn(rows, I + W + heads), randn(rows, taps - 1, W), randn(rows, state, I), weights


def formulas(u, window, state, weights):
    """The docstring, head by head."""
    filters, filter_bias, dt_bias, A_log, D, norm = weights
    B, N, I = state.shape  # noqa: E741
    H = len(dt_bias)
    z, xbc, dt = u[:, :I], u[:, I : 2 * I + 2 * N], u[:, 2 * I + 2 * N :]
    window = torch.cat([window, xbc[:, None]], 1)
    xbc = F.silu((window * filters.t()).sum(1) + filter_bias)
    x, b, c = xbc[:, :I].view(B, H, -1), xbc[:, I : I + N], xbc[:, I + N :]
    dt = (dt + dt_bias).exp().log1p()
    h = state.view(B, N, H, -1)
    h = h * (-dt * A_log.exp()).exp()[:, None, :, None] + torch.einsum("bn,bhp,bh->bnhp", b, x, dt)
    y = torch.einsum("bn,bnhp->bhp", c, h) + D[:, None] * x
    y = y.flatten(1) * z * torch.sigmoid(z)
    return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm, window[:, 1:], h.flatten(2)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_the_formulas(backend, shape):
    u, window, state, weights = inputs(*shape)
    kept = window.clone(), state.clone()
    got = mamba_step(u, window, state, weights, backend=backend)
    torch.testing.assert_close(got, formulas(u, window, state, weights), rtol=1e-9, atol=1e-9)
    assert torch.equal(window, kept[0])
    assert torch.equal(state, kept[1])


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_place_it_writes_the_same_into_the_given_state(backend, shape):
    u, window, state, weights = inputs(*shape)
    expected = formulas(u, window, state, weights)
    given = state.clone()
    y, window, new = mamba_step(u, window.clone(), given, weights, in_place=True, backend=backend)
    assert new is given
    torch.testing.assert_close((y, window, new), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "triton", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_that_sit_out_keep_their_memory_to_the_bit(backend, in_place):
    u, window, state, weights = inputs(4, 3, 5, 5, 4, torch.float32)
    active = torch.tensor([True, False, True, False])
    old = window.clone(), state.clone()
    whole = mamba_step(u, *old, weights, backend=backend)
    y, *memory = mamba_step(u, window, state, weights, active_B=active, in_place=in_place, backend=backend)
    assert torch.equal(y[active], whole[0][active])
    for new, before, stepped in zip(memory, old, whole[1:]):
        assert torch.equal(new[~active], before[~active])
        assert torch.equal(new[active], stepped[active])
        assert not torch.equal(new[active], before[active])
    if not in_place:
        assert torch.equal(window, old[0])
        assert torch.equal(state, old[1])


@pytest.mark.parametrize("in_place", [False, True])
def test_triton_keeps_what_sits_out_whatever_comes_in(in_place):
    u, window, state, weights = inputs(2, 2, 4, 3, 3, torch.float32)
    u[1], state[1, 0, 0] = torch.inf, -0.0
    old = window.clone(), state.clone()
    active = torch.tensor([True, False])
    _, *memory = mamba_step(u, window, state, weights, active_B=active, in_place=in_place, backend="triton")
    for new, before in zip(memory, old):
        assert torch.equal(new[1].view(torch.int32), before[1].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_computes_in_fp32(dtype):
    u, window, state, weights = inputs(2, 3, 8, 6, 4, torch.float32)
    u, weights = u.to(dtype), StepWeights(*(w.to(dtype) for w in weights))
    exact = formulas(u.double(), window.double(), state.double(), StepWeights(*(w.double() for w in weights)))
    y, *memory = mamba_step(u, window, state, weights, backend="triton")
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact[0], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    for new, expected in zip(memory, exact[1:]):
        assert new.dtype == torch.float32
        torch.testing.assert_close(new.double(), expected, rtol=1e-5, atol=1e-5)


def test_triton_keeps_the_digits_of_small_steps_and_survives_large_ones():
    u, window, state, weights = inputs(1, 7, 2, 3, 2, torch.float32)
    u[:, -7:] = torch.tensor([-90.0, -30.0, -12.0, -7.0, 0.0, 19.9, 80.0])
    weights = weights._replace(dt_bias_H=torch.zeros(7), A_log_H=torch.zeros(7))
    state.zero_()  # so that what comes out is dt times something
    exact = formulas(u.double(), window.double(), state.double(), StepWeights(*(w.double() for w in weights)))
    _, _, new = mamba_step(u, window, state, weights, backend="triton")
    torch.testing.assert_close(new.double(), exact[2], rtol=2e-6, atol=1e-38)


@pytest.mark.parametrize("in_place", [False, True])
def test_triton_takes_turned_and_sliced_tensors(in_place):
    u, window, state, weights = inputs(3, 2, 4, 3, 4)
    expected = formulas(u, window, state, weights)
    turned = state.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.stack([window, window], 1)[:, 1]
    wide = torch.cat([u, u], 1)[:, : u.shape[1]]
    weights = weights._replace(filters_WK=weights.filters_WK.t().contiguous().t())
    got = mamba_step(wide, sliced, turned, weights, in_place=in_place, backend="triton")
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert (got[1] is sliced, got[2] is turned) == (in_place, in_place)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_rows(backend):
    u, window, state, weights = inputs(0, 2, 4, 3, 4)
    got = mamba_step(u, window, state, weights, backend=backend)
    assert [t.shape for t in got] == [(0, 8), (0, 3, 14), (0, 3, 8)]


def test_where_a_gradient_is_wanted_the_reference_runs():
    u, window, state, weights = inputs(2, 2, 4, 3, 4)
    weights = StepWeights(*(w.requires_grad_() for w in weights))
    y, _, _ = mamba_step(u, window, state, weights, backend="triton")
    gradients = torch.autograd.grad(y.square().sum(), list(weights))
    assert all(g.abs().sum() > 0 for g in gradients)
    with torch.no_grad():
        assert not mamba_step(u, window, state, weights, backend="triton")[0].requires_grad


# ---- in C -----------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("shape", [*SHAPES, (37, 2, 32, 16, 4), (3, 3, 50, 9, 4)])
@pytest.mark.parametrize("in_place", [False, True])
def test_c_is_the_formulas(shape, in_place):
    u, window, state, weights = inputs(*shape)
    expected = formulas(u, window, state, weights)
    u, window, state = u.float(), window.float(), state.float()
    kept = window.clone(), state.clone()
    single = StepWeights(*(w.float() for w in weights))
    got = mamba_step(u, window, state, single, in_place=in_place, backend="native")
    for a, b in zip(got, expected):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    if in_place:
        assert got[2] is state
    else:
        assert torch.equal(window, kept[0])
        assert torch.equal(state, kept[1])


@needs_compiler
def test_c_takes_slices_writes_into_them_and_runs_where_a_compiler_is():
    u, window, state, weights = inputs(4, 2, 8, 4, 4, torch.float32)
    expected = mamba_step(u, window, state, weights, backend="torch")
    wide = torch.zeros(8, *state.shape[1:])
    sliced = wide[::2].copy_(state)
    given = torch.stack([u, u], -1)[..., 0], window.flip(0).contiguous().flip(0), sliced
    y, new_window, new_state = mamba_step(*given, weights, in_place=True)  # left alone, a CPU takes C
    torch.testing.assert_close((y, new_window, new_state), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(wide[::2], expected[2], rtol=1e-5, atol=1e-6)
    assert (wide[1::2] == 0).all()


@needs_compiler
def test_threads_change_no_bit_in_c():
    u, window, state, weights = inputs(64, 4, 32, 16, 4, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(mamba_step(u, window, state, weights, backend="native"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


@needs_compiler
def test_what_has_decayed_to_nothing_is_not_slow_and_the_mode_of_the_processor_is_restored():
    u, window, state, weights = inputs(2, 2, 8, 4, 4, torch.float32)
    tiny = torch.full((1000,), 1e-40)
    _, _, new = mamba_step(u, window, torch.full_like(state, 1e-38), weights, backend="native")
    assert new.isfinite().all()
    assert (tiny * 0.5 > 0).all()  # denormal numbers still count everywhere else


@needs_compiler
def test_c_leaves_gradients_and_other_numbers_to_torch():
    u, window, state, weights = inputs(2, 2, 8, 4, 4, torch.float32)
    y, _, _ = mamba_step(u.requires_grad_(), window, state, weights, backend="native")
    y.sum().backward()
    assert u.grad.abs().sum() > 0
    u, window, state, weights = inputs(2, 2, 8, 4, 4)
    assert mamba_step(u, window, state, weights, backend="native")[0].dtype == torch.float64
