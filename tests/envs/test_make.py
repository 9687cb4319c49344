import json

import gymnasium
import last_action_env
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode

from worldmodel.envs.make import (
    environment_spec,
    make_env,
    make_from_spec,
    make_vector_env,
    spec_of,
)
from worldmodel.envs.wrappers import WRAPPERS, single_precision
from worldmodel.errors import UserError

EMPTY = "MiniGrid-Empty-5x5-v0"


@pytest.mark.parametrize(
    ("env_id", "wrappers", "shape", "dtype"),
    [
        (EMPTY, None, (56, 56, 3), "uint8"),
        (EMPTY, ["minigrid_grid"], (7, 7, 3), "uint8"),
        (EMPTY, ["minigrid_rgb16"], (112, 112, 3), "uint8"),
        (EMPTY, ["minigrid_rgb_full"], (40, 40, 3), "uint8"),
        (EMPTY, ["minigrid_rgb", "resize64"], (64, 64, 3), "uint8"),
        (EMPTY, ["minigrid_rgb", "grayscale"], (56, 56, 1), "uint8"),
        ("CartPole-v1", None, (4,), "float32"),
        ("CartPole-v1", ["render", "resize64"], (64, 64, 3), "uint8"),
        ("CartPole-v1", ["render", "resize128"], (128, 128, 3), "uint8"),
        ("FrozenLake-v1", ["flatten"], (16,), "float32"),
        ("MountainCarContinuous-v0", None, (2,), "float32"),
        ("GymV21Environment-v0", None, None, None),
    ],
)
def test_ids_and_wrappers(env_id, wrappers, shape, dtype):
    if shape is None:
        with pytest.raises(UserError, match=r"cannot be made|no environment"):
            make_env(env_id, wrappers=wrappers)
        return
    env = make_env(env_id, wrappers=wrappers)
    first, _ = env.reset(seed=0)
    second, *_ = env.step(env.action_space.sample())
    for observation in (first, second):
        assert observation.shape == shape == env.observation_space.shape
        assert observation.dtype == dtype
        assert env.observation_space.contains(observation)
    env.close()


def test_resize64_averages_every_pixel_by_its_area():
    class Stripes(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (128, 256, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            image = np.zeros((128, 256, 3), np.uint8)
            image[::2, :, 0] = 200  # every other line: half brightness
            image[:, ::4, 1] = 100  # every fourth column: a quarter
            return image, {}

    observation, _ = WRAPPERS["resize64"](Stripes()).reset()
    assert (observation == [100, 25, 0]).all()


def test_a_skipped_step_adds_rewards_and_keeps_what_is_bright():
    class Blinking(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.count = 0
            return np.zeros(2, np.uint8), {}

        def step(self, action):
            self.count += 1
            shown = np.array([self.count, 0] if self.count % 2 else [0, self.count], np.uint8)
            return shown, 1.0, self.count == 6, False, {}

    env = WRAPPERS["skip4"](Blinking())
    env.reset()
    observation, reward, terminated, *_ = env.step(0)
    assert observation.tolist() == [3, 4] and (reward, terminated) == (4.0, False)
    observation, reward, terminated, *_ = env.step(0)
    assert observation.tolist() == [5, 6] and (reward, terminated) == (2.0, True)


def test_sixteen_pixels_a_cell_show_what_eight_do():
    small, large = (make_env(EMPTY, wrappers=[name]).reset(seed=0)[0] for name in ("minigrid_rgb", "minigrid_rgb16"))
    averaged = large.reshape(56, 2, 56, 2, 3).mean((1, 3))
    assert np.abs(averaged - small).mean() < 1  # of 255: lines between cells are drawn a little otherwise
    assert np.abs(averaged - np.roll(small, 8, axis=0)).mean() > 5


def test_the_seed_resets():
    one, two = (make_env("CartPole-v1", seed=3) for _ in range(2))
    assert (one.unwrapped.state == two.unwrapped.state).all()


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(UserError, match="MiniGrid-Empty-5x5-v0"):
        make_env("MiniGrid-Emty-5x5-v0")
    with pytest.raises(UserError, match="minigrid_rgb"):
        make_env(EMPTY, wrappers=["minigrid-rgb"])
    for env_id in ("CartPole-v99", "NoSuch/Env-v0", "no_such_module:Env-v0", "", "-v0", "a b"):
        with pytest.raises(UserError):
            make_env(env_id)


def test_a_bad_keyword_is_one_sentence():
    with pytest.raises(UserError, match="no_such_option"):
        make_env("CartPole-v1", no_such_option=1)


def test_wrappers_name_what_they_need():
    with pytest.raises(UserError, match="resize64"):
        make_env("CartPole-v1", wrappers=["resize64"])
    with pytest.raises(UserError, match="grayscale"):
        make_env("CartPole-v1", wrappers=["grayscale"])


def test_a_spec_rebuilds_the_environment():
    spec = json.loads(json.dumps(spec_of(EMPTY, max_episode_steps=7, size=6)))
    assert spec["wrappers"] == ["minigrid_rgb"] and spec["kwargs"] == {"size": 6} and spec["max_episode_steps"] == 7
    env = make_from_spec(spec)
    assert env.unwrapped.grid.width == 6
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(7)] == [False] * 6 + [True]


def test_mismatched_spaces_are_refused():
    env = make_env(EMPTY)
    spec = environment_spec(EMPTY, None, {}, env) | {"wrappers": ["minigrid_grid"]}
    with pytest.raises(UserError, match=r"mismatched spaces.*observation_space"):
        make_from_spec(spec)
    with pytest.raises(UserError, match="imported"):
        make_from_spec(spec | {"id": None})


def test_spaces_that_cannot_be_recorded_are_refused():
    with pytest.raises(UserError, match="Dict"):
        spec_of(EMPTY, wrappers=[])


def test_a_vector_environment_leaves_resetting_to_the_rollout():
    venv = make_vector_env(last_action_env.ID, 3, max_length=2)
    assert venv.num_envs == 3
    assert venv.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert len({id(env) for env in venv.envs}) == 3
    venv.close()


def test_what_is_rendered_beside_the_observation_and_made_small():
    env = make_env("CartPole-v1", wrappers=["render_beside", "resize64"])
    observation, _ = env.reset(seed=0)
    assert {name: (part.shape, part.dtype.name) for name, part in observation.items()} == {
        "state": ((4,), "float32"),
        "pixels": ((64, 64, 3), "uint8"),
    }
    assert env.observation_space.contains(observation)
    whole, _ = make_env("CartPole-v1", wrappers=["render", "resize64"]).reset(seed=0)
    assert (observation["pixels"] == whole).all()
    numbers, _ = make_env("CartPole-v1").reset(seed=0)
    assert (observation["state"] == numbers).all()


def test_float64_becomes_float32_in_a_dict_too():
    class Wide(gymnasium.Env):
        observation_space = Dict({"x": Box(-1, 1, (2,), np.float64), "n": Discrete(3)})
        action_space = Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"x": np.array([0.1, -0.3]), "n": np.int64(2)}, {}

    env = single_precision(Wide())
    observation, _ = env.reset()
    assert env.observation_space["x"].dtype == observation["x"].dtype == np.float32
    assert env.observation_space["n"] == Discrete(3) and observation["n"] == 2
    assert env.observation_space.contains(observation)
    assert single_precision(plain := make_env("CartPole-v1")) is plain  # nothing to do, nothing done


def test_an_agent_is_told_which_way_it_looks():
    env = make_env(EMPTY, wrappers=["minigrid_rgb_direction"])
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"image", "direction"}
    before = observation["direction"]
    observation, *_ = env.step(1)
    assert (observation["direction"] - before) % 4 == 1
    assert (observation["image"] == make_env(EMPTY).reset(seed=0)[0]).mean() < 1


@pytest.mark.parametrize(
    ("env_id", "wrappers", "words"),
    [
        ("CartPole-v1", ["render_beside", "skip4"], "'skip4' needs brightnesses of uint8, not Dict"),
        ("FrozenLake-v1", ["skip4"], "'skip4' needs brightnesses of uint8, not Discrete"),
        (
            "CartPole-v1",
            ["minigrid_rgb_direction"],
            "'minigrid_rgb_direction' does not fit an environment that shows Box",
        ),
        ("CartPole-v1", ["render_beside", "render_beside"], "'render_beside' does not fit"),
        (EMPTY, ["minigrid_grid", "resize64"], "'resize64' needs images of uint8"),
    ],
)
def test_a_wrapper_that_does_not_fit_is_named(env_id, wrappers, words):
    with pytest.raises(UserError, match=words):
        make_env(env_id, wrappers=wrappers)
