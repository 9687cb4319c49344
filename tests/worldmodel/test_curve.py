"""The order of patches: every cell once, and a curve that steps from neighbour to neighbour."""

import itertools

import pytest
import torch

from worldmodel.curve import CURVES, hilbert, raster
from worldmodel.patches import Patches
from worldmodel.specs import ObservationSpec

SIZES = list(itertools.product(range(1, 15), range(1, 15)))


@pytest.mark.parametrize("name", CURVES)
def test_every_cell_comes_once_and_the_upper_left_first(name):
    for rows, columns in SIZES:
        order = CURVES[name](rows, columns)
        assert sorted(order) == list(range(rows * columns))
        assert order[0] == 0


def distance(a, b, columns):
    """Steps to the side and up or down from one cell to another."""
    (ra, ca), (rb, cb) = divmod(a, columns), divmod(b, columns)
    return abs(ra - rb) + abs(ca - cb)


def test_the_curve_goes_from_neighbour_to_neighbour_and_ends_in_a_corner():
    for rows, columns in SIZES:
        order = hilbert(rows, columns)
        assert all(distance(a, b, columns) == 1 for a, b in itertools.pairwise(order)), (rows, columns)
        assert order[-1] in (columns - 1, (rows - 1) * columns), (rows, columns)


def test_a_square_of_a_power_of_two_is_hilberts_own():
    """Any quarter of the curve fills a quadrant."""
    order = hilbert(8, 8)
    for quarter in range(4):
        cells = [divmod(cell, 8) for cell in order[16 * quarter : 16 * (quarter + 1)]]
        assert len({(r // 4, c // 4) for r, c in cells}) == 1


def test_stretches_of_the_curve_are_compact_where_those_of_the_raster_are_long():
    def reach(order):
        stretches = [order[i : i + 9] for i in range(0, 144, 9)]
        return max(distance(a, b, 12) for stretch in stretches for a, b in itertools.combinations(stretch, 2))

    assert reach(hilbert(12, 12)) < reach(raster(12, 12))


@pytest.mark.parametrize("shape,patch", [((12, 16, 3), 4), ((7, 5, 2), 2), ((9, 9, 1), 3), ((4, 31, 3), 4)])
def test_patches_come_in_the_order_and_go_back(shape, patch):
    frames = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    plain = Patches(ObservationSpec(shape=shape), patch)
    curved = Patches(ObservationSpec(shape=shape), patch, "hilbert")
    order = hilbert(plain.rows, plain.columns)
    assert torch.equal(curved(frames), plain(frames)[:, order])
    assert torch.equal(curved.inverse(curved(frames)), frames)
    assert curved.state_dict().keys() == plain.state_dict().keys()  # old weights fit


def test_raster_order_is_untouched():
    frames = torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8)
    cut = Patches(ObservationSpec(shape=(8, 12, 3)), 4)(frames)
    by_hand = [frames[:, r : r + 4, c : c + 4].flatten(1) for r in (0, 4) for c in (0, 4, 8)]
    assert torch.equal(cut, torch.stack(by_hand, 1).float() / 255)


def test_a_vector_has_one_order_only():
    vector = torch.randn(2, 9)
    spec = ObservationSpec(shape=(9,), dtype="float32", kind="vector")
    assert torch.equal(Patches(spec, 2, "hilbert")(vector), Patches(spec, 2)(vector))
