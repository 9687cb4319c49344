"""The breadth-first player wins, fast, and by the shortest way."""

import itertools
import time

import numpy as np
import pytest

from worldmodel.envs.grid_player import play_episode, shortest_plan
from worldmodel.envs.make import make_env
from worldmodel.errors import UserError


@pytest.mark.parametrize(
    "env_id",
    [
        "MiniGrid-Empty-Random-6x6-v0",
        "MiniGrid-DoorKey-5x5-v0",
        "MiniGrid-DoorKey-6x6-v0",
        "MiniGrid-DoorKey-8x8-v0",
        "MiniGrid-Unlock-v0",
        "MiniGrid-KeyCorridorS3R1-v0",  # the key must be dropped before the ball can be taken
        "MiniGrid-FourRooms-v0",
        "MiniGrid-LavaCrossingS9N2-v0",
    ],
)
def test_every_episode_succeeds_fast(env_id):
    env = make_env(env_id)
    before = time.process_time()
    episodes = [play_episode(env, seed) for seed in range(6)]
    assert (time.process_time() - before) / len(episodes) < 0.2
    for seed, episode in enumerate(episodes):
        assert episode.seed == seed
        assert episode.terminated and not episode.truncated
        assert episode.rewards[-1] > 0 and not episode.rewards[:-1].any()
        assert len(episode.observations) == episode.length + 1


def test_no_shorter_way_exists():
    env = make_env("MiniGrid-Empty-5x5-v0")
    env.reset(seed=0)
    length = len(shortest_plan(env))
    rewards = []
    for actions in itertools.product((0, 1, 2), repeat=length - 1):  # turns and steps are all that moves here
        env.reset(seed=0)
        rewards.append(sum(env.unwrapped.step(a)[1] for a in actions))
    assert max(rewards) == 0
    env.reset(seed=0)
    assert env.unwrapped.agent_pos == (1, 1)
    assert length == 5  # two steps, a turn, two steps


def test_planning_leaves_the_environment_alone():
    env = make_env("MiniGrid-DoorKey-6x6-v0")
    env.reset(seed=3)
    inner = env.unwrapped
    before = (inner.agent_pos, inner.agent_dir, inner.step_count, inner.carrying, inner.grid.encode().tolist())
    assert shortest_plan(env)
    assert before == (inner.agent_pos, inner.agent_dir, inner.step_count, inner.carrying, inner.grid.encode().tolist())
    assert env.step(2)[0].shape == (56, 56, 3)


def test_no_plan_where_there_is_no_way_or_no_time():
    env = make_env("MiniGrid-DoorKey-5x5-v0")
    env.reset(seed=0)
    env.unwrapped.max_steps = len(shortest_plan(env)) - 1
    assert shortest_plan(env) is None
    env = make_env("MiniGrid-DoorKey-5x5-v0")
    env.reset(seed=0)
    grid = env.unwrapped.grid
    grid.grid = [None if cell is not None and cell.type == "key" else cell for cell in grid.grid]
    assert shortest_plan(env) is None
    episode = play_episode(env, 0)
    assert episode.terminated  # a reset brings the key back


def test_detours_make_long_episodes_that_still_succeed():
    env = make_env("MiniGrid-DoorKey-5x5-v0")
    straight = [play_episode(env, seed).length for seed in range(8)]
    episodes = [play_episode(env, seed, detours=5) for seed in range(8)]
    assert np.mean([episode.length for episode in episodes]) > np.mean(straight) + 20
    assert sum(episode.total_reward > 0 for episode in episodes) >= 7
    again = play_episode(env, 2, detours=5)
    assert np.array_equal(again.actions, episodes[2].actions)
    assert np.array_equal(again.observations, episodes[2].observations)


def test_another_environment_is_refused():
    with pytest.raises(UserError, match="MiniGrid"):
        shortest_plan(make_env("CartPole-v1"))
