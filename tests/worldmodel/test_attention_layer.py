"""Attention by pieces is attention with a mask."""

from itertools import pairwise

import pytest
import torch

from worldmodel import attention
from worldmodel.attention import LONG, Attention, pieces_of
from worldmodel.config import MambaConfig
from worldmodel.kernels.attention import pack
from worldmodel.layers import Stack


@pytest.mark.parametrize("window", [1, 5, 300])
def test_a_long_packed_row_is_its_pieces(window):
    torch.manual_seed(0)
    layer = Attention(8, 2, causal=True, window=window).double()
    x = torch.randn(1, 300, 8, dtype=torch.float64)
    reset = torch.rand(1, 300) < 0.05
    begins = [0, *(reset[0, 1:].nonzero().flatten() + 1).tolist(), 300]
    assert len(begins) > 5
    pieces = [layer(x[:, a:b]) for a, b in pairwise(begins)]  # short enough for the dense mask
    packed = layer(x, reset, pieces_of(x, reset, causal=True))
    torch.testing.assert_close(packed, torch.cat(pieces, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal,window", [(True, 3), (True, 40), (False, 0)])
def test_packing_rows_changes_nothing(causal, window):
    """What a GPU runs for rows of any length, against what a CPU runs for short ones."""
    torch.manual_seed(0)
    layer = Attention(8, 2, causal=causal, window=window).double()
    x = torch.randn(4, 11, 8, dtype=torch.float64)
    reset = torch.rand(4, 11) < 0.2
    for resets in (None, reset):
        pieces = pack(resets if causal else None, 4, 11, x.device)
        torch.testing.assert_close(layer(x, resets, pieces), layer(x, resets), rtol=1e-9, atol=1e-9)


def test_only_long_single_rows_go_by_pieces_on_a_cpu():
    assert pieces_of(torch.zeros(1, LONG, 8), None, causal=True) is None
    assert pieces_of(torch.zeros(2, LONG + 1, 8), None, causal=True) is None
    assert pieces_of(torch.zeros(1, LONG + 1, 8), None, causal=False) is None
    cu_seqlens, longest = pieces_of(torch.zeros(1, LONG + 1, 8), None, causal=True)
    assert (cu_seqlens.tolist(), longest) == ([0, LONG + 1], LONG + 1)


def test_a_stack_counts_its_pieces_once(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "pack", lambda *args: calls.append(args) or pack(*args))
    torch.manual_seed(0)
    stack = Stack("t3m1", 8, heads=2, mamba=MambaConfig(d_state=4, headdim=8), causal=True, window=4)
    stack(torch.randn(1, LONG + 1, 8))
    assert len(calls) == 1
    Stack("m1", 8, heads=2, mamba=MambaConfig(d_state=4, headdim=8), causal=True, window=4)(torch.randn(1, LONG + 1, 8))
    assert len(calls) == 1


def test_every_entry_that_values_are_embedded_from_moves_them_and_nothing_else():
    torch.manual_seed(0)
    layer = Attention(8, 2, causal=True, window=5, value_width=6)
    torch.nn.init.normal_(layer.embed_value.weight)
    x, values = torch.randn(2, 3, 8), torch.randn(2, 3, 6)
    q, k, v = layer.project(x, None, values)
    for entry in range(6):
        other = values.clone()
        other[:, 1, entry] += 1
        after = layer.project(x, None, other)
        assert torch.equal(after[0], q) and torch.equal(after[1], k)
        assert torch.equal((after[2] != v).any(-1).any(1), torch.tensor([[False, True, False]] * 2))
