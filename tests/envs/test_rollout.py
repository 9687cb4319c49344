import itertools

import gymnasium
import last_action_env
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from last_action_env import NO_ACTION, shown_action, shown_tag, shown_time

from worldmodel.envs.make import make_env, make_vector_env
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import DEFAULT_HORIZON, episode_seeds, play_limit, rollout


def play(num_envs=3, seed=0, env_id=last_action_env.ID, **kwargs):
    venv = make_vector_env(env_id, num_envs)
    policy = RandomPolicy(venv.single_action_space, episode_seeds(seed))
    yield from rollout(venv, policy, seeds=episode_seeds(seed), **kwargs)
    venv.close()


def by_seed(episodes):
    return {episode.seed: episode for episode in episodes}


def test_actions_lead_to_the_frames_that_show_them():
    for episode in play(episodes=20):
        assert len(episode.observations) == episode.length + 1
        assert shown_action(episode.observations).tolist() == [NO_ACTION, *episode.actions]
        assert shown_time(episode.observations).tolist() == list(range(episode.length + 1))
        assert len(set(shown_tag(episode.observations))) == 1
        assert episode.rewards.tolist() == episode.actions.tolist() and episode.rewards.dtype == np.float32


def test_every_episode_ends_as_its_seed_says():
    episodes = list(play(episodes=30))
    env = last_action_env.LastActionEnv()
    for episode in episodes:
        env.reset(seed=episode.seed)
        assert episode.length == env.length
        assert (episode.terminated, episode.truncated) == (env.terminates, not env.terminates)
    assert {e.terminated for e in episodes} == {True, False}


@settings(deadline=None, max_examples=20)
@given(num_envs=st.integers(1, 6), episodes=st.integers(0, 12), seed=st.integers(0, 100))
def test_episodes_are_those_of_the_first_seeds_and_the_rows_do_not_matter(num_envs, episodes, seed):
    played = by_seed(play(num_envs, seed, episodes=episodes))
    assert set(played) == set(itertools.islice(episode_seeds(seed), episodes))
    alone = by_seed(play(1, seed, episodes=episodes))
    for key, episode in played.items():
        assert (episode.actions == alone[key].actions).all()
        assert (episode.observations == alone[key].observations).all()


@settings(deadline=None, max_examples=20)
@given(num_envs=st.integers(1, 6), steps=st.integers(0, 60))
def test_steps_are_counted_exactly(num_envs, steps):
    counted = []
    episodes = list(play(num_envs, steps=steps, progress=counted.append))
    assert sum(e.length for e in episodes) == steps == sum(counted)
    env = last_action_env.LastActionEnv()
    for episode in episodes:
        env.reset(seed=episode.seed)
        if episode.length < env.length:
            assert episode.truncated and not episode.terminated
        assert shown_time(episode.observations[-1]) == episode.length > 0


def test_an_episode_that_goes_on_is_cut_off_at_the_limit():
    whole, cut = by_seed(play(episodes=20)), by_seed(play(episodes=20, limit=5))
    assert set(whole) == set(cut) and {3, 5} <= {e.length for e in cut.values()} <= {2, 3, 4, 5}
    for seed, episode in cut.items():
        full, length = whole[seed], min(5, whole[seed].length)
        assert episode.actions.tolist() == full.actions[:length].tolist()
        assert (episode.observations == full.observations[: length + 1]).all()
        goes_on = full.length > 5
        flags = (False, True) if goes_on else (full.terminated, full.truncated)
        assert (episode.terminated, episode.truncated) == flags
    assert max(e.length for e in play(steps=60, limit=5)) == 5


def test_whole_episodes_have_a_limit_where_the_environment_has_none():
    assert play_limit({"episode_limit": 300}) is None
    assert play_limit({"id": "ALE/Pong-v5", "episode_limit": None}) is None  # every game ends by itself
    assert play_limit({"episode_limit": None}) == play_limit({}) == DEFAULT_HORIZON == 200


def test_an_episode_can_be_replayed_from_its_seed_and_actions():
    env_id = "MiniGrid-Empty-Random-6x6-v0"
    env = make_env(env_id)
    for episode in play(2, env_id=env_id, episodes=3):
        frame, _ = env.reset(seed=episode.seed)
        frames, rewards = [frame], []
        for action in episode.actions:
            frame, reward, terminated, truncated, _ = env.step(action)
            frames.append(frame)
            rewards.append(reward)
        assert (np.stack(frames) == episode.observations).all()
        assert (np.array(rewards, np.float32) == episode.rewards).all()
        assert (terminated, truncated) == (episode.terminated, episode.truncated)


def test_first_marks_the_rows_that_begin():
    class Watcher(RandomPolicy):
        def act(self, observation, memory, first=None):
            assert first.tolist() == (shown_time(observation) == 0).tolist()
            return super().act(observation, memory, first)

    venv = make_vector_env(last_action_env.ID, 4)
    assert len(list(rollout(venv, Watcher(venv.single_action_space), seeds=episode_seeds(0), episodes=15))) == 15


def test_what_rollout_refuses():
    venv = make_vector_env(last_action_env.ID, 2)
    policy = RandomPolicy(venv.single_action_space)
    for both in ({}, {"episodes": 1, "steps": 1}):
        with pytest.raises(ValueError, match="either"):
            next(rollout(venv, policy, seeds=[1], **both))
    with pytest.raises(ValueError, match="limit must be at least 1 step"):
        next(rollout(venv, policy, seeds=[1], episodes=1, limit=0))
    with pytest.raises(ValueError, match="fewer seeds"):
        list(rollout(venv, policy, seeds=[1], episodes=2))
    resets_itself = SyncVectorEnv([lambda: gymnasium.make(last_action_env.ID)], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="DISABLED"):
        next(rollout(resets_itself, policy, seeds=[1], episodes=1))


def test_seed_streams_share_nothing():
    one, two = (set(itertools.islice(episode_seeds(0, stream), 1000)) for stream in (0, 1))
    assert len(one) == len(two) == 1000 and not one & two
    assert all(0 <= seed < 2**31 for seed in one)
