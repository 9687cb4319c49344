import json

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.spaces import (
    action_spec,
    from_model_action,
    observation_spec,
    space_from_json,
    space_to_json,
    to_model_action,
)
from worldmodel.errors import UserError
from worldmodel.specs import ActionSpec

SPACES = [
    Discrete(7),
    Discrete(3, start=-1),
    MultiDiscrete([3, 4], start=[1, 0]),
    Box(0, 255, (56, 56, 3), np.uint8),
    Box(np.array([-4.8, -np.inf], np.float32), np.array([4.8, np.inf], np.float32)),
    Box(-1, 1, (2, 3), np.float32),
    Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)),
    Dict({"b": Discrete(4), "a": Box(0, 255, (8, 8, 3), np.uint8), "c": Dict({"d": Discrete(2)})}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_survives_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    again = space_from_json(json.loads(text))
    assert again == space
    assert again.dtype == space.dtype


@pytest.mark.parametrize("space", [Text(5), Dict({"a": Text(5)}), MultiBinary(3)], ids=str)
def test_other_spaces_are_refused_by_name(space):
    for function in (space_to_json, observation_spec, action_spec):
        with pytest.raises(UserError, match=type(space).__name__):
            function(space)


@pytest.mark.parametrize("data", [{}, {"type": "Box"}, {"type": "Tuple"}, {"type": "Discrete", "n": 0, "start": 0}])
def test_a_broken_description_is_one_sentence(data):
    with pytest.raises(UserError, match="space description"):
        space_from_json(data)


def test_observation_kinds():
    image = observation_spec(Box(0, 255, (56, 56, 3), np.uint8))
    assert (image.kind, image.shape, image.offset, image.scale) == ("image", (56, 56, 3), 0, 255)
    grid = observation_spec(Box(0, 255, (7, 7, 3), np.uint8))
    assert (grid.kind, grid.dtype, grid.scale) == ("grid", "uint8", 10)
    vector = observation_spec(Box(-np.inf, np.inf, (4,), np.float32))
    assert (vector.kind, vector.dtype, vector.offset, vector.scale) == ("vector", "float32", 0, 1)
    assert observation_spec(Box(0, 1, (64, 64, 3), np.float32)).scale == 1


def test_a_dict_is_a_record_of_what_it_holds_pictures_first():
    spec = observation_spec(
        Dict({"at": Box(-1, 1, (2,), np.float32), "way": Discrete(4), "view": Box(0, 255, (32, 32, 3), np.uint8)})
    )
    assert [(part.name, part.kind) for part in spec.parts] == [("view", "image"), ("at", "vector"), ("way", "choice")]
    assert (spec.kind, spec.shape, spec.dtype) == ("record", (32 * 32 * 3 + 2 * 4 + 4,), "uint8")


@pytest.mark.parametrize(
    "part,words",
    [(Text(5), "'left'.*Text"), (Dict({"in": Discrete(2)}), "'left'.*Dict itself"), (MultiBinary(2), "'left'")],
)
def test_what_a_dict_must_not_hold_is_named(part, words):
    with pytest.raises(UserError, match=words):
        observation_spec(Dict({"left": part, "right": Discrete(2)}))


@pytest.mark.parametrize(
    "space", [Box(0, 1, (4,), np.float64), Box(0, 255, (64, 64), np.uint8), Box(0, 9, (3,), np.int64)], ids=str
)
def test_observations_the_model_cannot_take(space):
    with pytest.raises(UserError, match="observations must"):
        observation_spec(space)


def test_action_specs():
    assert action_spec(Discrete(7)) == ActionSpec(kind="discrete", sizes=(7,))
    assert action_spec(MultiDiscrete([3, 4])) == ActionSpec(kind="multi_discrete", sizes=(3, 4))
    assert action_spec(Box(-2, 2, (2, 3), np.float32)) == ActionSpec(kind="box", sizes=(6,), low=-1, high=1)
    with pytest.raises(UserError, match="floats"):
        action_spec(Box(0, 255, (3,), np.uint8))


def test_discrete_actions_count_from_zero():
    assert to_model_action(Discrete(3, start=5), np.array([5, 7])).tolist() == [0, 2]
    multi = MultiDiscrete([3, 4], start=[1, 0])
    assert to_model_action(multi, np.array([[1, 0], [3, 3]])).tolist() == [[0, 0], [2, 3]]


def test_boxes_become_minus_one_to_one_and_are_clipped():
    space = Box(np.array([-1, 0, -np.inf], np.float32), np.array([1, 4, np.inf], np.float32))
    assert to_model_action(space, np.array([0.5, 3.0, 7.0])).tolist() == [0.5, 0.5, 0.875]  # all within what it sees
    assert to_model_action(space, np.array([-9.0, 9.0, -3.0])).tolist() == [-1, 1, -0.75]
    assert from_model_action(space, np.array([[-3.0, 0.0, 0.875]])).tolist() == [[-1, 2, 7]]
    assert np.isfinite(from_model_action(space, np.ones(3))).all()


@settings(deadline=None, max_examples=50)
@given(
    space=st.sampled_from([s for s in SPACES if not isinstance(s, Dict) and s.dtype != np.uint8]),
    seed=st.integers(0, 2**31),
    lead=st.sampled_from([(), (3,), (2, 4)]),
)
def test_actions_return_from_the_model_unchanged(space, seed, lead):
    space.seed(seed)
    actions = np.array([space.sample() for _ in range(int(np.prod(lead)))]).reshape((*lead, *space.shape))
    seen = to_model_action(space, actions)
    assert seen.shape == (*lead, *action_spec(space).shape)
    back = from_model_action(space, seen)
    assert back.shape == actions.shape and back.dtype == space.dtype
    np.testing.assert_allclose(back, actions, rtol=1e-5, atol=1e-5)
    assert all(space.contains(one) for one in back.reshape(-1, *space.shape))
