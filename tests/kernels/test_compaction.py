"""From masks to packed indices, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels.compaction import compact, pack, spread, take

BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=5),
    length=st.none() | st.integers(1, 9),
    backend=st.sampled_from(["torch", "triton"]),
)
def test_true_slots_come_first_and_in_order(rows, length, backend):
    mask = torch.tensor(rows)
    index, valid = compact(mask, length, backend)
    width = int(mask.sum(1).max()) if length is None else length
    assert index.shape == valid.shape == (len(rows), width)
    for b, row in enumerate(rows):
        expected = [s for s, keep in enumerate(row) if keep][:width]
        assert index[b, valid[b]].tolist() == expected
        assert valid[b].tolist() == [True] * len(expected) + [False] * (width - len(expected))
        assert not mask[b, index[b, ~valid[b]]].any()  # what stands in for absent slots is not kept anywhere


def test_take_gathers_vectors_and_passes_gradients_back():
    x = torch.arange(24.0).view(2, 4, 3).requires_grad_()
    index = torch.tensor([[3, 1], [0, 0]])
    taken = take(x, index)
    assert torch.equal(taken, torch.stack([x[0, [3, 1]], x[1, [0, 0]]]))
    taken.sum().backward()
    assert x.grad[:, :, 0].tolist() == [[0, 1, 0, 1], [2, 0, 0, 0]]


def random_mask(seed, *shape, share=0.4):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


@BACKENDS
@pytest.mark.parametrize("shape", [(1, 1), (2, 1500), (3, 0), (0, 3)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_compact_is_a_stable_sort(shape, share, backend):
    mask = random_mask(1, *shape, share=share)
    index, valid = compact(mask, backend=backend)
    longest = int(mask.sum(1).max()) if shape[0] else 0
    assert torch.equal(index, (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest])
    assert torch.equal(valid, torch.arange(longest) < mask.sum(1, keepdim=True))
    turned = mask.t().contiguous().t()
    assert torch.equal(compact(turned, backend=backend)[0], index)


def test_more_slots_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match="4 of 3 slots cannot be kept"):
        compact(torch.ones(2, 3, dtype=torch.bool), 4)


@BACKENDS
@pytest.mark.parametrize("shape", [(1, 1), (4, 13), (3, 1100), (3, 0), (0, 3)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_packed_rows_are_the_rows_without_pads(shape, share, backend):
    mask = random_mask(2, *shape, share=share)
    mask[1:2] = False  # a row that keeps nothing
    x = torch.arange(mask.numel()).view(shape)
    for m in (mask, mask.t().contiguous().t()):
        index, bounds, longest = pack(m, backend=backend)
        assert (index.dtype, bounds.dtype) == (torch.int64, torch.int32)
        assert torch.equal(index, x[mask])
        assert bounds.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
        assert longest == max(mask.sum(1).tolist(), default=0)


@BACKENDS
@pytest.mark.parametrize("rows,length,width", [(1, 1, 1), (2, 37, 3), (3, 9, 150)])
def test_spread_is_take_at_the_chunk_of_each_position(rows, length, width, backend):
    boundary = random_mask(3, rows, length, share=0.2)
    boundary[:, 0] = True
    M = int(boundary.sum(1).max())
    g = torch.Generator().manual_seed(4)
    z = torch.randn(rows, M, width, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(rows, length, width, generator=g, dtype=torch.float64)
    expected = take(z, boundary.cumsum(1) - 1)
    got = spread(z, boundary, backend)
    assert torch.equal(got, expected)
    gradients = [torch.autograd.grad((y * weight).sum(), z, retain_graph=True)[0] for y in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    # A gradient without memory of its own.
    torch.testing.assert_close(*[torch.autograd.grad(y.sum(), z)[0] for y in (got, expected)])


@BACKENDS
def test_nothing_is_spread_before_the_first_chunk(backend):
    z = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [4.0], [5.0]]], requires_grad=True)
    boundary = torch.tensor([[False, True, False, True, False], [False, False, False, False, False]])
    y = spread(z, boundary, backend)
    assert y.squeeze(-1).tolist() == [[0, 1, 1, 2, 2], [0, 0, 0, 0, 0]]
    y.backward(torch.arange(1.0, 11).view(2, 5, 1))
    assert z.grad.squeeze(-1).tolist() == [[5, 9, 0], [0, 0, 0]]


@BACKENDS
def test_chunks_may_be_named_and_left_out(backend):
    z = torch.arange(1.0, 9).view(1, 4, 2).requires_grad_()
    y = spread(z, torch.tensor([[0, 0, 2, 2, 2]]), backend)
    assert y[0, :, 0].tolist() == [1, 1, 5, 5, 5]
    y.sum().backward()
    assert z.grad[0, :, 1].tolist() == [2, 0, 3, 0]


@BACKENDS
def test_spread_takes_narrowed_tensors_and_half_precision(backend):
    z = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(5)).bfloat16()
    boundary = torch.tensor([[False] * 2 + [True] + [False] * 399, [True, True, True] + [False] * 399])
    expected = z[torch.arange(2)[:, None], (boundary.cumsum(1) - 1).clamp(min=0)]
    expected[0, :2] = 0
    for narrow in (z, z.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(spread(narrow[..., 2:], boundary, backend), expected[..., 2:])
    if backend == "triton":  # summed in fp32: in bf16 ones stop counting at 256
        leaf = z.clone().requires_grad_()
        spread(leaf, boundary, backend).sum().backward()
        assert leaf.grad[:, :, 0].tolist() == [[400, 0, 0], [1, 1, 400]]


@BACKENDS
@pytest.mark.parametrize("rows,chunks,length", [(0, 2, 3), (2, 2, 0), (2, 0, 3)])
def test_spread_of_nothing(rows, chunks, length, backend):
    z = torch.zeros(rows, chunks, 4, requires_grad=True)
    y = spread(z, torch.zeros(rows, length, dtype=torch.bool), backend)
    assert y.shape == (rows, length, 4)
    assert not y.any()
    assert torch.autograd.grad(y.sum(), z)[0].shape == z.shape
