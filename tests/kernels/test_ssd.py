"""The chunked scans against the recurrence itself, one position at a time in fp64."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels.ssd import ssd_scan

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


def chunked(tensors, reset, chunk_size, backend=None):
    x, dt, A, B, C, initial = tensors
    return ssd_scan(x, dt, A, B, C, reset_BL=reset, initial_BHPN=initial, chunk_size=chunk_size, backend=backend)


def outputs_and_gradients(run, tensors, *, of=("y", "last")):
    """Both outputs, and the gradients of a random weighting of those named."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    y, last = run(leaves)
    g = torch.Generator().manual_seed(1)
    weights = {"y": torch.randn(y.shape, generator=g, dtype=torch.float64)}
    weights["last"] = torch.randn(last.shape, generator=g, dtype=torch.float64)
    out = sum((value * weights[name].to(value.dtype)).sum() for name, value in (("y", y), ("last", last)) if name in of)
    gradients = torch.autograd.grad(out, leaves, materialize_grads=True)
    return {"y": y.detach(), "last": last.detach(), **{f"d{name}": d for name, d in zip(NAMES, gradients)}}


def assert_all_close(got, expected, **tolerance):
    for name, value in got.items():
        torch.testing.assert_close(
            value.to(expected[name].dtype), expected[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


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
    got = outputs_and_gradients(lambda t: chunked(t, reset, chunk), tensors)
    assert_all_close(got, outputs_and_gradients(lambda t: naive(*t, reset), tensors), rtol=1e-8, atol=1e-9)


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


@pytest.mark.parametrize(
    "length,chunk,resets,sizes",
    [
        (1, 8, 0.0, {}),
        (1, 8, 1.0, {"rows": 1}),
        (11, 4, 0.3, {"heads": 1}),
        (16, 16, 0.1, {}),
        (33, 16, 0.0, {}),
        (47, 16, 0.1, {"rows": 1, "heads": 3}),
        (70, 64, 0.03, {"rows": 1, "heads": 1, "width": 17, "state": 20}),
    ],
)
def test_triton_gives_the_recurrence_and_its_gradients(length, chunk, resets, sizes):
    tensors, reset = inputs(5, length, resets=resets, **sizes)
    got = outputs_and_gradients(lambda t: chunked(t, reset, chunk, "triton"), tensors)
    assert_all_close(got, outputs_and_gradients(lambda t: naive(*t, reset), tensors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("of", ["y", "last"])
def test_triton_differentiates_either_output_alone(of):
    tensors, reset = inputs(6, 20, rows=1, resets=0.1)
    got = outputs_and_gradients(lambda t: chunked(t, reset, 16, "triton"), tensors, of=of)
    assert_all_close(got, outputs_and_gradients(lambda t: naive(*t, reset), tensors, of=of), rtol=1e-9, atol=1e-9)


def test_triton_without_resets_or_an_initial_state_starts_from_zeros():
    (*tensors, initial), reset = inputs(3, 21, rows=1)
    tensors = [t.requires_grad_() for t in tensors]
    got = ssd_scan(*tensors, chunk_size=16, backend="triton")
    expected = naive(*tensors, torch.zeros_like(initial), reset)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(y.sum() + last.sum(), tensors) for y, last in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_triton_takes_slices_and_other_layouts():
    (x, dt, A, B, C, initial), reset = inputs(4, 20, resets=0.1)
    R, L, H, P = x.shape
    N = B.shape[-1]
    projection = torch.cat([x.flatten(2), B, C], dim=-1).requires_grad_()

    def run(layout):
        x, B, C = projection.split([H * P, N, N], dim=-1)
        tensors = [x.reshape(R, L, H, P), dt, A, B, C, initial]
        y, last = chunked([layout(t) for t in tensors], layout(reset), 16, "triton")
        # A broadcast gradient for y, one with another layout for the state.
        out = y.sum() + (last.transpose(1, 3) * torch.arange(1.0, 1 + P).view(P, 1)).sum()
        return y, last, torch.autograd.grad(out, projection)[0]

    def reversed_layout(t):
        return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))

    plain = run(lambda t: t.contiguous())
    for layout in (lambda t: t, reversed_layout):
        for got, expected in zip(run(layout), plain):
            assert torch.equal(got, expected)


def test_triton_forgets_what_came_before_a_reset_to_the_bit():
    tensors, reset = inputs(11, 40, rows=1)
    reset[:, 21] = True
    results = []
    for changed in (False, True):
        if changed:
            for t in (tensors[0], tensors[3], tensors[4]):
                t[:, :21] = 1e6
            tensors[5][:] = -1e6
        leaves = [t.clone().requires_grad_() for t in tensors]
        y, last = chunked(leaves, reset, 16, "triton")
        gradients = torch.autograd.grad(y[:, 21:].sum() + last.sum(), leaves)
        results.append([y[:, 21:], last, gradients[5], *(gradients[i][:, 21:] for i in (0, 1, 3, 4))])
        assert not any(gradients[i][:, :21].any() for i in (0, 1, 3, 4)) and not gradients[5].any()
    for got, expected in zip(*results):
        assert torch.equal(got, expected)


def test_triton_scans_of_nothing():
    (x, dt, A, B, C, initial), reset = inputs(1, 5)
    y, last = chunked([x[:, :0], dt[:, :0], A, B[:, :0], C[:, :0], initial], reset[:, :0], 16, "triton")
    assert y.shape == (2, 0, 2, 3) and torch.equal(last, initial)
    y, last = ssd_scan(x[:0], dt[:0], A, B[:0], C[:0], backend="triton")
    assert y.shape == (0, 5, 2, 3) and last.shape == (0, 2, 3, 4)


@pytest.mark.parametrize("A", [-16.0, -0.01])
def test_triton_keeps_the_gradients_of_fast_and_slow_decays_in_fp32(A):
    tensors, reset = inputs(2, 200, rows=1, width=16, state=16, resets=0.01, dtype=torch.float32)
    tensors[2][:] = A
    got = outputs_and_gradients(lambda t: chunked(t, reset, 32, "triton"), tensors)
    doubles = [t.double() for t in tensors]
    expected = outputs_and_gradients(lambda t: chunked(t, reset, 32), doubles)
    for name, value in got.items():
        error = (value - expected[name]).pow(2).mean().sqrt() / expected[name].pow(2).mean().sqrt()
        assert error < (2e-5 if name in ("ddt", "dA") else 2e-6), (name, float(error))


def test_triton_multiplies_bf16_and_keeps_the_state_in_fp32():
    tensors, reset = inputs(8, 70, rows=1, resets=0.03, dtype=torch.float32)
    tensors = [t.bfloat16() if name in "xBC" else t for name, t in zip(NAMES, tensors)]
    got = outputs_and_gradients(lambda t: chunked(t, reset, 64, "triton"), tensors)
    assert [got[name].dtype for name in ("y", "last", "dx", "ddt", "dA", "dB", "dC", "dinitial")] == [
        torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, torch.bfloat16,
        torch.float32,
    ]  # fmt: skip
    expected = outputs_and_gradients(lambda t: naive(*t, reset), [t.double() for t in tensors])
    assert_all_close(got, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(got["last"].double(), expected["last"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_mamba_library_gets_the_resets_as_ids_and_one_group(given, monkeypatch):
    calls = []

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, initial_states, seq_idx, return_final_states):
        calls.append(x.dtype)
        assert B.dtype == C.dtype == x.dtype == torch.bfloat16 and B.shape == (2, 20, 1, 4) and return_final_states
        h, sequence = initial_states, torch.zeros(2, dtype=torch.int32)
        reset = None
        if seq_idx is not None:
            assert seq_idx.dtype == torch.int32
            reset = seq_idx != torch.cat([sequence[:, None], seq_idx[:, :-1]], dim=1)
        y, last = ssd_scan(
            *(t.float() for t in (x, dt, A, B[:, :, 0], C[:, :, 0])),
            reset_BL=reset,
            initial_BHPN=h,
            chunk_size=chunk_size,
        )
        return y.to(x.dtype), last

    fake = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    fake.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.delitem(sys.modules, "worldmodel.kernels.mamba_library", raising=False)
    from worldmodel.kernels.mamba_library import ssd_scan_mamba

    (x, dt, A, B, C, initial), reset = inputs(8, 20, resets=0.2, dtype=torch.float32)
    reset[0, 0] = True
    options = {"reset_BL": reset, "initial_BHPN": initial} if given else {}
    y, last = ssd_scan_mamba(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), **options)
    rounded = [t.bfloat16().float() for t in (x, B, C)]
    expected_y, expected_last = ssd_scan(rounded[0], dt, A, *rounded[1:], **options)
    torch.testing.assert_close(y.float(), expected_y, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(last, expected_last)
    ssd_scan_mamba(x, dt, A, B, C, **options)  # fp32 goes to Triton, which does not round it to tf32
    assert calls == [torch.bfloat16]
    monkeypatch.delitem(sys.modules, "worldmodel.kernels.mamba_library")
