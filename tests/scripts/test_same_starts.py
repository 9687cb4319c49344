"""Dreams begin exactly where the real episodes of the same seeds do."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from worldmodel.checkpoint import load_environment
from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.envs.make import make_from_spec
from worldmodel.scripts.evaluate import dream_like
from worldmodel.scripts.same_starts import SameStarts, first_frames

SEEDS = [11, 12, 13, 14, 15]


@pytest.fixture
def dream(made):
    venv = DreamVectorEnv(2, made / "run", autoreset_mode=AutoresetMode.DISABLED, greedy=True)
    # Frames that differ, as they would where the layout is drawn by chance; in Empty-5x5 all beginnings are alike.
    frames = np.random.default_rng(0).integers(0, 256, (len(SEEDS), 56, 56, 3), np.uint8)
    return SameStarts(venv, SEEDS, frames), frames


def test_first_frames_are_those_of_the_real_environment(made):
    environment = load_environment(made / "run")
    env = make_from_spec(environment)
    frames = first_frames(environment, SEEDS)
    for seed, frame in zip(SEEDS, frames):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], frame)
    env.close()
    assert dream_like(made / "run", environment, SEEDS, "cpu", num_envs=2).dream.horizon == 100


def test_rows_show_and_remember_their_own_start(dream):
    venv, frames = dream
    observation, _ = venv.reset(seed=[13, 11])
    np.testing.assert_array_equal(observation, frames[[2, 0]])
    action = np.array([2, 2])
    swapped = venv.step(action)[0][::-1]
    venv.reset(seed=[11, 13])
    np.testing.assert_array_equal(venv.step(action)[0], swapped)
    venv.reset(seed=[12, 12])
    assert (venv.step(action)[0] != swapped).any()


def test_a_row_restarts_alone(dream):
    venv, frames = dream
    action = np.array([2, 1])
    venv.reset(seed=[11, 12])
    venv.step(action)
    expected = venv.step(action)[0][1]

    venv.reset(seed=[11, 12])
    stepped = venv.step(action)[0]
    observation, _ = venv.reset(seed=[15, 0], options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(observation[0], frames[4])
    np.testing.assert_array_equal(observation[1], stepped[1])
    np.testing.assert_array_equal(venv.step(action)[0][1], expected)
