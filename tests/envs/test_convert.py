"""Pictures on their way out of a dream."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box

from worldmodel.envs.convert import picture
from worldmodel.envs.pictures import to_rgb
from worldmodel.envs.spaces import observation_spec


def noise(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, channels)).astype(np.uint8)


def shown(frame: np.ndarray, low: float = 0, high: float = 255) -> np.ndarray:
    """Its picture, at its own size."""
    factor = 256 // len(frame)
    return picture(frame, observation_spec(Box(low, high, frame.shape, frame.dtype.type)))[::factor, ::factor]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-1, 1), (-20, 44)])
def test_floats_are_black_and_white_at_the_ends_of_their_range(low: float, high: float) -> None:
    ends = np.linspace(low, high, 16, dtype=np.float32)[:, None, None].repeat(16, 1).repeat(3, 2)
    assert shown(ends, low, high)[:, 0, 0].tolist() == list(range(0, 256, 17))
    np.testing.assert_array_equal(
        shown(ends, low, high), to_rgb(ends, observation_spec(Box(low, high, ends.shape, np.float32)))
    )
    assert shown(np.full_like(ends, 2 * high + 1), low, high).min() == 255  # beyond the end as at it


def test_of_four_channels_the_first_three_are_the_colours() -> None:
    rgba = noise(4)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(shown(rgba), rgba[..., :3])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_of_other_stacks_the_newest_is_shown_in_grey(channels: int) -> None:
    stack = noise(channels)
    np.testing.assert_array_equal(shown(stack), stack[..., -1:].repeat(3, -1))
