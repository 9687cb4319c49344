"""What a frame shows is told by the environment's own visibility code."""

import numpy as np
import pytest
from minigrid.core.world_object import Ball

from worldmodel.envs.grid_player import play_episode
from worldmodel.envs.make import make_env
from worldmodel.envs.rollout import Episode
from worldmodel.envs.seen_ground import on_seen_ground, shown_cells
from worldmodel.errors import UserError

LEFT, RIGHT, FORWARD, TOGGLE = 0, 1, 2, 5


def record(env, seed, actions):
    """An episode of given actions."""
    observations = [env.reset(seed=seed)[0]]
    rewards, terminated = [], False
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return Episode(np.stack(observations), np.array(actions), np.array(rewards, np.float32), terminated, False, seed)


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-8x8-v0", "MiniGrid-FourRooms-v0"])
def test_agrees_with_the_cells_that_minigrid_highlights(env_id):
    env = make_env(env_id)
    actions = np.random.default_rng(0).integers(6, size=40)
    episode = record(env, 1, actions)
    shown = shown_cells(env, episode)
    inner = env.unwrapped
    margin = inner.agent_view_size - 1
    inner.reset(seed=1)
    for t in range(len(actions) + 1):
        # A highlighted cell is brighter in the full render than the same cell without highlights.
        lit = inner.get_full_render(highlight=True, tile_size=4).astype(int) - inner.get_full_render(False, 4)
        lit = lit.sum(-1).reshape(inner.height, 4, inner.width, 4).sum((1, 3)).T > 0
        inside = shown[t, margin:-margin, margin:-margin].copy()
        inside[inner.agent_pos] |= inner.grid.get(*inner.agent_pos) is not None
        assert np.array_equal(inside, lit)
        if t < len(actions):
            inner.step(int(actions[t]))


def test_turning_round_returns_to_seen_ground_and_a_new_direction_does_not():
    env = make_env("MiniGrid-FourRooms-v0")
    shown = shown_cells(env, record(env, 0, [LEFT, RIGHT, LEFT, LEFT]))
    frames = np.arange(5)

    def seen_after(*context):
        return on_seen_ground(shown, np.tile(context, (5, 1)), frames).tolist()

    assert seen_after(0) == [True, False, True, False, False]
    assert seen_after(0, 1) == [True, True, True, True, False]
    assert seen_after(1) == [False, True, False, True, False]


def test_a_frame_is_a_function_of_the_seen_cells_contents():
    """Two worlds that agree on what the mask calls shown give the same frame."""
    env = make_env("MiniGrid-DoorKey-8x8-v0")
    episode = record(env, 5, [RIGHT, FORWARD, LEFT])
    shown = shown_cells(env, episode)
    env.reset(seed=5)
    inner = env.unwrapped
    margin = inner.agent_view_size - 1
    changed = 0
    for x in range(inner.width):
        for y in range(inner.height):
            if not shown[0, x + margin, y + margin] and inner.grid.get(x, y) is None:
                inner.grid.set(x, y, Ball("red"))
                changed += 1
    assert changed
    assert np.array_equal(inner.get_frame(tile_size=8, agent_pov=True), episode.observations[0])


def test_behind_the_edge_there_are_walls_to_be_seen():
    env = make_env("MiniGrid-Empty-5x5-v0")  # this one sees through walls
    shown = shown_cells(env, record(env, 0, [LEFT]))
    margin = 6
    assert shown[0].sum() == 49  # facing right from (1, 1): columns 1 to 7, rows -2 to 4
    assert shown[0, margin + 1 : margin + 8, margin - 2 : margin + 5].all()
    assert shown[1, margin - 2 : margin + 5, margin - 5 : margin + 2].all()


def test_a_door_hides_under_the_agent():
    env = make_env("MiniGrid-DoorKey-5x5-v0")
    episode = play_episode(env, 0)
    shown = shown_cells(env, episode)
    inner = env.unwrapped
    inner.reset(seed=0)
    stood = []
    for t, action in enumerate(episode.actions):
        x, y = inner.agent_pos
        if inner.grid.get(x, y) is not None:
            stood.append(t)
            assert not shown[t, x + 6, y + 6]
        else:
            assert shown[t, x + 6, y + 6]
        inner.step(int(action))
    assert stood


def test_a_replay_that_differs_is_refused():
    env = make_env("MiniGrid-DoorKey-5x5-v0")
    episode = play_episode(env, 0)
    episode.seed = 1
    with pytest.raises(UserError, match="replaying seed 1"):
        shown_cells(env, episode)
    episode.seed = None
    with pytest.raises(UserError, match="without a seed"):
        shown_cells(env, episode)
