"""Chunks lie in the plane where the model has them, in whatever order it goes through the patches."""

import numpy as np
import pytest
import torch

from worldmodel.envs.chunk_maps import chunk_edges, chunk_map, patch_order
from worldmodel.patches import Patches
from worldmodel.specs import ObservationSpec

RASTER = np.arange(49).reshape(7, 7)


def edges_of(starts, height, width, patch):
    """The lines between chunks as pairs of patches' corners, found by looking at every patch."""
    rows, columns = -(-height // patch), -(-width // patch)
    chunk = np.searchsorted(sorted(s for s in starts if s >= 0), np.arange(rows * columns), side="right")
    chunk = chunk.reshape(rows, columns)
    lines = set()
    for y in range(rows):
        for x in range(columns):
            if y and chunk[y, x] != chunk[y - 1, x]:
                lines.add((x, y, x + 1, y))
            if x and chunk[y, x] != chunk[y, x - 1]:
                lines.add((x, y, x, y + 1))
    return lines


class Shuffled(Patches):
    """Patches that go through the frame in an order of their own."""

    def __init__(self, spec: ObservationSpec, patch: int) -> None:
        super().__init__(spec, patch)
        self.shuffle = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return super().forward(frames)[:, self.shuffle]


@pytest.mark.parametrize(
    "spec, patch",
    [
        (ObservationSpec(shape=(12, 16, 3)), 4),
        (ObservationSpec(shape=(210, 160, 3)), 10),  # more patches than a byte counts
        (ObservationSpec(shape=(7, 9, 1)), 4),  # cut off at the edges
        (ObservationSpec(shape=(5, 7, 2), kind="grid", scale=10.0), 1),
        (ObservationSpec(shape=(8, 8, 3), dtype="float32", offset=0.5, scale=0.25), 4),
    ],
)
def test_the_order_is_the_models_own(spec, patch):
    plain, shuffled = Patches(spec, patch), Shuffled(spec, patch)
    np.testing.assert_array_equal(patch_order(plain).ravel(), np.arange(plain.count))
    order = patch_order(shuffled)
    assert order.shape == (plain.rows, plain.columns)
    np.testing.assert_array_equal(order.ravel()[shuffled.shuffle.numpy()], np.arange(plain.count))


def test_chunks_follow_the_order():
    raster = np.arange(6).reshape(2, 3)
    snake = np.array([[0, 1, 2], [5, 4, 3]])
    starts = np.array([0, 2, 4, -1])
    assert chunk_map(starts, raster).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert chunk_map(starts, snake).tolist() == [[0, 0, 1], [2, 2, 1]]
    many = chunk_map(np.array([[[0, -1], [0, 3]]]), raster)
    assert many.tolist() == [[[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]]]


def test_chunks_meet_where_their_patches_do():
    order = np.arange(4).reshape(2, 2)
    one = chunk_edges(chunk_map(np.array([0, -1, -1]), order), 16, 16, 8)
    assert one.shape == (0, 2, 2)
    # The lower row is a chunk of its own.
    halves = chunk_edges(chunk_map(np.array([0, 2, -1]), order), 16, 16, 8)
    assert sorted(map(tuple, halves.reshape(-1, 4).tolist())) == [(0, 8, 8, 8), (8, 8, 16, 8)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts = np.array([0, *sorted(rng.choice(np.arange(1, 49), 4, replace=False)), -1])
        found = chunk_edges(chunk_map(starts, RASTER), 56, 56, 8).reshape(-1, 4) // 8
        assert set(map(tuple, found.tolist())) == edges_of(starts, 56, 56, 8)


def test_lines_end_with_the_frame():
    edges = chunk_edges(chunk_map(np.array([0, 1, 2, 3]), np.arange(4).reshape(2, 2)), 12, 10, 8)
    assert edges[..., 0].max() == 10 and edges[..., 1].max() == 12
