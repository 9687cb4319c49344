"""Atari games as world models see them. Skipped where the emulator is not installed."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.envs.collect import collect
from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.make import make_env, make_from_spec, spec_of
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.test_set import load_test_set
from worldmodel.model import WorldModel
from worldmodel.presets import preset

pytest.importorskip("ale_py")
PONG = "ALE/Pong-v5"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return collect(spec_of(PONG, max_episode_steps=40), tmp_path_factory.mktemp("pong"), 90, num_envs=2, progress=False)


def test_every_fourth_frame_at_64_pixels():
    env = make_env(PONG)
    env.reset(seed=0)
    before = env.unwrapped.ale.getEpisodeFrameNumber()
    frame, *_ = env.step(0)
    assert frame.shape == (64, 64, 3) and env.unwrapped.ale.getEpisodeFrameNumber() == before + 4
    assert make_env(PONG, wrappers=[]).observation_space.shape == (210, 160, 3)


def test_the_spec_rebuilds_the_game():
    env = make_from_spec(spec_of(PONG))
    first, _ = env.reset(seed=3)
    assert spec_of(PONG, max_episode_steps=40)["episode_limit"] == 40  # actions, not frames of the emulator
    again, _ = make_from_spec(spec_of(PONG)).reset(seed=3)
    assert (first == again).all()


def test_what_is_collected_comes_back_to_the_bit(store):
    episode = max(store.episodes(), key=lambda episode: episode.length)
    env = make_from_spec(store.environment)
    frame, _ = env.reset(seed=episode.seed)
    assert (frame == episode.observations[0]).all()
    for action, expected in zip(episode.actions, episode.observations[1:]):
        frame, *_ = env.step(action)
        assert (frame == expected).all()
    assert episode.length == 40 and store.steps == 90


def test_fidelity_of_a_game_is_given_in_decibels(store, tmp_path):
    spec = observation_spec(store.observation_space), action_spec(store.action_space)
    model = WorldModel(preset("tiny", *spec)).eval()
    test_set = load_test_set(store.environment, tmp_path / "test", episodes=2, progress=False)
    assert test_set.shown is None and not test_set.succeeding.any()
    report = measure_fidelity(model, test_set, FrameTable.from_store(store).frames, horizons=(1, 5), windows=8)
    scores = report["horizons"]["5"]["frames"]
    dream = scores["dream"]["all"]
    assert dream["frames"] == 8 and np.isfinite(dream["psnr"]) and "exact" not in dream
