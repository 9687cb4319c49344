"""Observations as frames and back, for any space that can be recorded."""

import numpy as np
import pytest
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.observations import count_rows, frame_type, from_frames, modalities_of, row_of, to_frames
from worldmodel.envs.spaces import observation_spec
from worldmodel.errors import UserError

pictures = st.builds(
    lambda h, w, c: Box(0, 255, (h, w, c), np.uint8), st.integers(5, 20), st.integers(5, 20), st.integers(1, 4)
)
vectors = st.builds(lambda n, reach: Box(-reach, reach, (n,), np.float32), st.integers(1, 6), st.floats(0.1, 1e6))
choices = st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 9), st.integers(-3, 3))
single = st.one_of(pictures, vectors, choices)
dicts = st.builds(Dict, st.dictionaries(st.text("abcxyz", min_size=1, max_size=3), single, min_size=1, max_size=4))


def same(space: Space, one, other) -> bool:
    if isinstance(space, Dict):
        return set(one) == set(other) and all(same(part, one[name], other[name]) for name, part in space.spaces.items())
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(space=st.one_of(single, dicts), rows=st.integers(1, 3))
def test_any_observation_and_back(space, rows):
    space.seed(0)
    batched = batch_space(space, rows)
    batched.seed(1)
    one, many = space.sample(), batched.sample()
    (shape, dtype), spec = frame_type(space), observation_spec(space)
    assert (shape, dtype.name) == (spec.shape, spec.dtype)
    frame, frames = to_frames(space, one), to_frames(space, many)
    assert frame.shape == shape and frames.shape == (rows, *shape) and frame.dtype == frames.dtype == dtype
    assert same(space, from_frames(space, frame), one)
    assert same(batched, from_frames(space, frames), many)
    assert count_rows(many) == rows
    assert (to_frames(space, row_of(many, rows - 1)) == frames[-1]).all()
    assert space.contains(from_frames(space, frame))


def test_what_lies_beyond_the_bounds_is_clipped():
    space = Dict({"x": Box(-1, 1, (2,), np.float32), "n": Discrete(3)})
    spec = observation_spec(space)
    frame = np.concatenate([np.array([-7, 0.5], np.float32).view(np.uint8), np.array([0, 1, 0], np.uint8)])
    assert [part.name for part, _ in modalities_of(spec, frame)] == ["x", "n"]
    observation = from_frames(space, frame)
    assert observation["x"].tolist() == [-1, 0.5] and observation["n"] == 1


@pytest.mark.parametrize(
    "observation,words",
    [
        ({"x": np.zeros(2, np.float32)}, r"a dict of n, x, not \['x'\]"),
        (np.zeros(3), "a dict of n, x, not ndarray"),
        ({"x": np.zeros(2, np.float64), "n": 1}, "'x' of an observation is to be float32 of shape .2,., not float64"),
        ({"x": np.zeros(3, np.float32), "n": 1}, r"not float32 of shape \(3,\)"),
        ({"x": np.zeros(2, np.float32), "n": 3}, "3 is not in Discrete"),
        ({"x": np.zeros(2, np.float32), "n": 0.5}, "0.5 is not in Discrete"),
    ],
)
def test_what_is_no_observation_is_named(observation, words):
    with pytest.raises(UserError, match=words):
        to_frames(Dict({"x": Box(-1, 1, (2,), np.float32), "n": Discrete(3)}), observation)
