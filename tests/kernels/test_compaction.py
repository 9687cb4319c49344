"""From masks to packed indices."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels.compaction import compact, take


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=5),
    length=st.none() | st.integers(1, 9),
)
def test_true_slots_come_first_and_in_order(rows, length):
    mask = torch.tensor(rows)
    index, valid = compact(mask, length)
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
