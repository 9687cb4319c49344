"""Observations as frames and back, for any space that can be recorded."""

from collections import OrderedDict

import numpy as np
import pytest
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.observations import count_rows, frame_type, from_frames, modalities_of, row_of, to_frames
from worldmodel.envs.spaces import observation_spec, space_from_json, space_to_json
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


def test_the_order_of_a_dict_means_nothing():
    low, high = Box(-1, 0, (2,), np.float32), Box(10, 11, (2,), np.float32)
    one, other = Dict({"a": low, "b": high}), Dict(OrderedDict(b=high, a=low))
    assert list(one.spaces) != list(other.spaces) and one == other
    assert observation_spec(one) == observation_spec(other)
    assert observation_spec(space_from_json(space_to_json(other))) == observation_spec(other)
    observation = {"b": np.array([10, 11], np.float32), "a": np.array([-1, 0], np.float32)}
    back = from_frames(one, to_frames(other, observation))
    assert all((back[name] == observation[name]).all() for name in back)


@pytest.mark.parametrize(
    "observation,words",
    [
        ({"x": np.zeros((4, 2), np.float32), "n": np.zeros(3, int)}, r"as many of each, not \[\(3,\), \(4,\)\]"),
        ({"x": np.zeros((4, 2), np.float32), "n": [[1], [1, 2]]}, "cannot be read as an array"),
    ],
)
def test_parts_that_do_not_go_together_are_named(observation, words):
    with pytest.raises(UserError, match=words):
        to_frames(Dict({"x": Box(-1, 1, (2,), np.float32), "n": Discrete(3)}), observation)


def test_choices_of_any_type_and_number():
    assert to_frames(Discrete(3), np.array([2, 0], np.uint64)).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert to_frames(Discrete(10_000), np.int64(9_999)).argmax() == 9_999
    with pytest.raises(UserError, match="1000000 choices are too many"):
        observation_spec(Discrete(10**6))
    with pytest.raises(UserError, match="names of text, not 0"):
        observation_spec(Dict({0: Discrete(2)}))
