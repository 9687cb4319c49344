"""Stacks of layers: what attention may see, and rings of keys that give the same numbers as whole rows."""

import pytest
import torch

from worldmodel.attention import Attention, rotate
from worldmodel.config import MambaConfig
from worldmodel.layers import Stack, parse_layers

MAMBA = MambaConfig(d_state=4, headdim=8, chunk_size=4)


def inputs(rows, length, width=16, seed=0):
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def stack(layers, *, window=4, causal=True):
    torch.manual_seed(0)
    return Stack(layers, 16, heads=2, mamba=MAMBA, causal=causal, window=window)


def test_layer_strings():
    assert parse_layers("T2m1M1t0") == ["T", "T", "m", "M"]
    assert parse_layers("") == []
    for bad in ("T", "2T", "x1", "T1 m1", "T-1"):
        with pytest.raises(ValueError, match="layers must read like"):
            parse_layers(bad)


def test_upper_case_has_a_swiglu_behind_it():
    plain, with_mlp = stack("t1m1"), stack("T1M1")
    assert all(block.mlp is None for block in plain.blocks)
    assert all(block.mlp is not None for block in with_mlp.blocks)


def test_rotary_sees_distances_only():
    q, k = inputs(1, 1, 16)[:, :, None], inputs(1, 1, 16, seed=1)[:, :, None]

    def score(at_q, at_k):
        return (rotate(q, torch.tensor([[at_q]])) * rotate(k, torch.tensor([[at_k]]))).sum()

    for shift in (1, 1000, 10**7):  # a dream may go on for long
        torch.testing.assert_close(score(5, 2), score(5 + shift, 2 + shift), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(5, 2), score(6, 2), rtol=1e-3)
    torch.testing.assert_close(rotate(q, torch.tensor([[77]])).norm(), q.norm())


@pytest.mark.parametrize("window", [1, 3, 50])
def test_attention_sees_exactly_its_window(window):
    torch.manual_seed(0)
    attention = Attention(16, 2, causal=True, window=window)
    x = inputs(1, 9).requires_grad_()
    for t in range(9):
        (gradient,) = torch.autograd.grad(attention(x)[0, t].sum(), x)
        seen = (gradient[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - window + 1), t + 1))


def test_attention_within_a_frame_sees_everything():
    torch.manual_seed(0)
    attention = Attention(16, 2, causal=False)
    x = inputs(2, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x)[0, 2].sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("layers", ["t1", "T1", "m1T1", "M1t1m1"])
@pytest.mark.parametrize("window", [1, 3, 5, 40])
def test_steps_give_the_row_far_beyond_the_window(layers, window):
    s, x = stack(layers, window=window), inputs(3, 14)
    with torch.no_grad():
        expected = s(x)
        memory, count = s.initial_memory(3, "s"), torch.zeros(3, dtype=torch.int64)
        for t in range(14):
            kept = {name: (value, value.clone()) for name, value in memory.items()}
            y = s.step(x[:, t], memory, "s", count + t)
            assert all(torch.equal(value, copy) for value, copy in kept.values())  # replaced, never written into
            torch.testing.assert_close(y, expected[:, t], rtol=1e-4, atol=1e-5)


def test_rows_with_their_own_counts_share_a_batch():
    """Rows that were restarted at different times stand at different places of their rings."""
    s = stack("T1m1", window=3)
    x = inputs(3, 12)
    begins = [0, 4, 7]
    with torch.no_grad():
        memory, count = s.initial_memory(3, "s"), torch.zeros(3, dtype=torch.int64)
        for t in range(12):
            for row, begin in enumerate(begins):
                if t == begin and t > 0:  # what a restart does: zeros, and the count from 0
                    count[row] = 0
                    for name, value in memory.items():
                        memory[name] = value.clone()
                        memory[name][row] = 0
            y = s.step(x[:, t], memory, "s", count.clone())
            count += 1
            for row, begin in enumerate(begins):
                if t >= begin:
                    alone = s(x[row : row + 1, begin : t + 1])[0, -1]
                    torch.testing.assert_close(y[row], alone, rtol=1e-4, atol=1e-5)


def test_an_old_ring_cannot_be_seen_after_a_restart():
    s = stack("t1", window=4)
    x = inputs(1, 2)
    with torch.no_grad():
        clean, dirty = s.initial_memory(1, "s"), s.initial_memory(1, "s")
        dirty = {name: value + 1e3 for name, value in dirty.items()}
        for t in range(2):  # slots behind the count are not read, whatever stands there
            count = torch.tensor([t])
            assert torch.equal(s.step(x[:, t], clean, "s", count), s.step(x[:, t], dirty, "s", count))


@pytest.mark.parametrize("layers", ["T2", "m1T1", "M1m1"])
def test_a_reset_is_a_new_sequence_for_its_row_alone(layers):
    s, x = stack(layers, window=5), inputs(3, 10)
    reset = torch.zeros(3, 10, dtype=torch.bool)
    reset[1, 4] = reset[2, 0] = reset[2, 2] = reset[2, 3] = True
    with torch.no_grad():
        y = s(x, reset)
        for row, pieces in ((0, [(0, 10)]), (1, [(0, 4), (4, 10)]), (2, [(0, 2), (2, 3), (3, 10)])):
            for a, b in pieces:
                alone = s(x[row : row + 1, a:b])[0]
                torch.testing.assert_close(y[row, a:b], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", ["T1", "m1T1"])
def test_causal_stacks_never_look_ahead(layers):
    s, x = stack(layers, window=40), inputs(2, 10)
    later = x.clone()
    later[:, 6:] += 10
    torch.testing.assert_close(s(x)[:, :6], s(later)[:, :6], rtol=0, atol=1e-6)


def test_outputs_are_normed():
    y = stack("T1m1")(100 * inputs(2, 5))
    torch.testing.assert_close(y.square().mean(-1), torch.ones(2, 5), rtol=1e-3, atol=1e-3)


def test_heads_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="does not split into 3 heads"):
        Attention(16, 3, causal=True, window=4)


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_sees_nothing_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        Attention(16, 2, causal=True, window=window)


def test_pads_are_seen_by_nobody_and_a_frame_of_pads_is_finite() -> None:
    torch.manual_seed(0)
    stack = Stack("T1m1t1", 16, heads=2, mamba=MambaConfig(d_state=4, headdim=8), causal=False)
    x = torch.randn(3, 6, 16)
    present = torch.arange(6) < torch.tensor([[6], [4], [0]])
    y = stack(x, present=present)
    assert y.isfinite().all()
    torch.testing.assert_close(y[0], stack(x[:1])[0])
    torch.testing.assert_close(y[1, :4], stack(x[1:2, :4])[0])
