"""Counter-based noise: reproducible by row, and random enough."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.kernels import noise


def words(n, stream=0, seed=0):
    return noise.row_hash((torch.arange(n) << 32) + seed, torch.zeros(n, dtype=torch.int64), stream)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
    step=st.integers(0, 2**31),
    stream=st.integers(0, 3000),
    n=st.integers(1, 64),
)
def test_a_row_gets_the_same_bits_whatever_its_neighbours(keys, step, stream, n):
    key = torch.tensor(keys)
    together = noise.uniform(noise.row_hash(key, torch.full_like(key, step), stream), n)
    for i in range(len(keys)):
        alone = noise.uniform(noise.row_hash(key[i : i + 1], torch.tensor([step]), stream), n)
        assert torch.equal(together[i], alone[0])
    reversed_rows = noise.uniform(noise.row_hash(key.flip(0), torch.full_like(key, step), stream), n)
    assert torch.equal(together, reversed_rows.flip(0))
    more = noise.uniform(noise.row_hash(key, torch.full_like(key, step), stream), n + 5)
    assert torch.equal(together, more[:, :n])


def test_a_grid_of_rows_and_steps_is_its_rows_and_steps():
    key = torch.tensor([3, 2**40 + 1, -7])
    grid = noise.row_hash(key[:, None], torch.arange(5), 2)
    for t in range(5):
        assert torch.equal(grid[:, t], noise.row_hash(key, torch.full_like(key, t), 2))


def test_words_are_32_bits_and_all_64_bits_of_a_key_count():
    base = torch.tensor([123456789])
    bits = torch.cat([base ^ (1 << torch.arange(63)), base ^ torch.tensor([-(2**63)])])
    hashed = noise.row_hash(torch.cat([base, bits]), torch.zeros(65, dtype=torch.int64), 0)
    assert len(hashed.unique()) == 65
    assert (hashed >= 0).all()
    assert (hashed < 2**32).all()


def test_one_flipped_bit_anywhere_flips_half_of_the_word():
    key = torch.arange(500) * 7919
    zero = torch.zeros_like(key)
    h = noise.row_hash(key, zero, 0)
    changes = [noise.row_hash(key ^ (1 << b), zero, 0) for b in (0, 5, 31, 32, 50, 62)]
    changes += [noise.row_hash(key, zero + 1, 0), noise.row_hash(key, zero, 1)]
    for other in changes:
        flipped = sum(((h ^ other) >> b & 1).float().mean().item() for b in range(32))
        assert 15 < flipped < 17


def test_uniform_fills_the_open_interval_evenly():
    u = noise.uniform(words(2000), 256).flatten()
    assert u.min() > 0
    assert u.max() < 1
    count = torch.histc(u, 64, 0, 1)
    expected = len(u) / 64
    chi2 = ((count - expected) ** 2 / expected).sum().item()
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)


def word_of_bits(bits):
    """The word whose first entry hashes to `bits`: the hash run backwards."""
    x = bits ^ bits >> 16
    x = x * pow(0x846CA68B, -1, 2**32) % 2**32
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
    return torch.tensor([x ^ x >> 16])


def test_the_extreme_bits_give_neither_zero_nor_one():
    lowest, highest = word_of_bits(0), word_of_bits(2**32 - 1)
    assert noise.uniform(lowest, 1).item() == 2**-24
    assert noise.uniform(highest, 1).item() == 1 - 2**-24
    extremes = torch.cat([lowest, highest])
    assert noise.to_normal(noise.uniform(extremes, 1)).isfinite().all()


def test_normal_has_the_normal_moments():
    x = noise.to_normal(noise.uniform(words(2000, seed=9), 100)).double()
    assert abs(x.mean()) < 0.01
    assert abs(x.var() - 1) < 0.015
    assert abs(x.pow(4).mean() - 3) < 0.1


def test_the_bits_never_change():
    word = noise.row_hash(torch.tensor([0, 1, -7, 2**40 + 1]), torch.tensor([0, 5, 12, 2**31]), 3)
    assert word.tolist() == [593034902, 214149003, 2446054543, 517941618]
    bits = [
        [374453, 11890089, 9862913],
        [6983521, 15766825, 2887413],
        [232845, 9138511, 16258481],
        [4740207, 9440923, 648257],
    ]
    assert noise.uniform(word, 3).mul(2**24).tolist() == bits
    # -2.0080471, 0.5496041, 0.2220832
    normal = noise.to_normal(noise.uniform(word[:1], 3))
    assert normal.view(torch.int32).tolist() == [[-1073708072, 1057796827, 1046702532]]


def test_parts_are_the_whole(monkeypatch):
    whole = noise.uniform(words(30).view(5, 6), 7)
    monkeypatch.setattr(noise, "PART", 40)
    assert torch.equal(whole, noise.uniform(words(30).view(5, 6), 7))


def test_any_library_rounds_a_normal_to_the_same_bits():
    """All 2^23 of them: in units of one ulp of fp64, how far it is from the middle between two floats."""
    u = (torch.arange(2**23).double() + 0.5) * 2.0**-23
    exact = torch.special.ndtri(u)  # not by erfinv, but by another formula
    error = 20 * 2.0**-52 * exact.abs()
    rounded = exact.float()
    assert torch.equal(rounded, noise.to_normal(u.float()))
    inf = torch.tensor(torch.inf)
    for side in (-inf, inf):
        middle = (rounded.double() + torch.nextafter(rounded, side).double()) / 2
        assert ((middle - exact).abs() > 2 * error).all()


@pytest.mark.parametrize("stream", [0, 1, 16, 2001, 2**31 - 1])
def test_triton_hashes_to_the_same_words(stream):
    key = torch.tensor([0, 1, -7, 2**40 + 1, -(2**63), 2**63 - 1])
    step = torch.tensor([0, 5, 2**31, 2**33 + 1])
    for k, s in ((key, key), (key[:, None], step), (key[3], step), (key[:0], step[:0])):
        expected = noise.row_hash(k, s, stream)
        assert torch.equal(noise.row_hash(k, s, stream, backend="triton"), expected)


@pytest.mark.parametrize("shape,n", [((), 1), ((7,), 1), ((0,), 5), ((2, 3), 350), ((2, 0, 3), 4)])
def test_triton_draws_the_same_bits(shape, n):
    word = words(max(1, math.prod(shape)))[: math.prod(shape)].view(shape)
    assert torch.equal(noise.uniform(word, n, backend="triton"), noise.uniform(word, n))
    turned = word.movedim(0, -1) if shape else word  # not contiguous
    assert torch.equal(noise.uniform(turned, n, backend="triton"), noise.uniform(turned, n))


@pytest.mark.parametrize("axis", ["rows", "steps", "streams", "entries", "seeds"])
def test_neighbouring_coordinates_are_independent(axis):
    n = 20000
    i = torch.arange(n)
    one = torch.zeros_like(i)
    if axis == "rows":
        u = noise.uniform(noise.row_hash(i << 32, one, 0), 1)[:, 0]
    elif axis == "seeds":
        u = noise.uniform(noise.row_hash(i, one, 0), 1)[:, 0]
    elif axis == "steps":
        u = noise.uniform(noise.row_hash(one, i, 0), 1)[:, 0]
    elif axis == "streams":
        u = torch.cat([noise.uniform(noise.row_hash(one[:1], one[:1], s), 1)[:, 0] for s in range(4000)])
    else:
        u = noise.uniform(words(1, seed=3), n)[0]
    for lag in (1, 2, 8):
        x, y = u[:-lag].double() - 0.5, u[lag:].double() - 0.5
        correlation = (x * y).mean() * 12
        assert abs(correlation) < 4.5 / math.sqrt(len(x))
    # Pairs fill the unit square, so their dependence is not hidden from the correlation.
    cell = (u[:-1] * 8).long() * 8 + (u[1:] * 8).long()
    count = torch.bincount(cell, minlength=64).double()
    expected = (len(u) - 1) / 64
    chi2 = ((count - expected) ** 2 / expected).sum().item()
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)
