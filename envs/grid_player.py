"""A breadth-first player for MiniGrid: it sees the whole world, plans the shortest way to a reward and walks it.

The search steps a deep copy of the environment, so the rules and the reward are the environment's own. Only the
observation, which is nine tenths of a step's cost and which nobody looks at, is left out of the copy.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.world_object import Door
from minigrid.minigrid_env import MiniGridEnv

from worldmodel.envs.observations import to_frames
from worldmodel.envs.rollout import Episode
from worldmodel.errors import UserError

# Dropping multiplies the states by every place a thing can lie, and few worlds need it: the search first goes without.
FEW_ACTIONS = (Actions.forward, Actions.left, Actions.right, Actions.pickup, Actions.toggle)
ALL_ACTIONS = (*FEW_ACTIONS, Actions.drop, Actions.done)


def minigrid_of(env: gym.Env) -> MiniGridEnv:
    """The MiniGrid environment inside `env`'s wrappers.

    Raises:
        UserError: there is none.
    """
    inner = env.unwrapped
    if not isinstance(inner, MiniGridEnv):
        raise UserError(f"{inner} is not a MiniGrid environment: only those can be played breadth-first or replayed")
    return inner


def shortest_plan(env: gym.Env, max_states: int = 300_000) -> list[int] | None:
    """The fewest actions from the environment's present state to a positive reward.

    Args:
        env: a MiniGrid environment after `reset`, wrapped or not. It is not stepped.
        max_states: give up after so many distinct states, in each of the two searches (without and with drop and done).

    Returns:
        Actions as ints, or None where no plan was found within `max_states` and the steps left to the episode. A
        world that moves by itself, or whose success depends on more than grid, agent and doors, can make a plan fail.
    """
    inner = minigrid_of(env)
    simulation: Any = copy.deepcopy(inner)
    simulation.render_mode = None
    simulation.gen_obs = dict  # an empty observation
    steps_left = inner.max_steps - inner.step_count
    for actions in (FEW_ACTIONS, ALL_ACTIONS):
        plan = _search(
            simulation, [int(a) for a in actions if inner.action_space.contains(int(a))], steps_left, max_states
        )
        if plan is not None:
            return plan
    return None


def _search(simulation: Any, actions: list[int], max_depth: int, max_states: int) -> list[int] | None:
    """Breadth-first over (agent, direction, what it carries, what lies where, doors); restores `simulation`'s state."""
    grid = simulation.grid
    doors = [cell for cell in grid.grid if isinstance(cell, Door)]
    cells = list(grid.grid)
    lie = tuple(map(id, cells))
    open_locked = tuple((door.is_open, door.is_locked) for door in doors)
    start = (tuple(simulation.agent_pos), simulation.agent_dir, simulation.carrying, cells, lie, open_locked)

    def restore(state: tuple) -> None:
        simulation.agent_pos, simulation.agent_dir, simulation.carrying, parent_cells, _, flags = state
        simulation.step_count = 0  # time must not run out, nor the reward fall, inside the search
        grid.grid = parent_cells.copy()
        for door, (is_open, is_locked) in zip(doors, flags):
            door.is_open, door.is_locked = is_open, is_locked

    nodes: list[tuple[tuple, int, int]] = [(start, -1, -1)]  # state, index of the parent, action from it
    depths = [0]
    seen = {(start[0], start[1], id(start[2]), lie, open_locked)}
    queue = deque([0])
    plan = None
    while queue and plan is None and len(nodes) < max_states:
        index = queue.popleft()
        state = nodes[index][0]
        if depths[index] >= max_depth:
            break
        for action in actions:
            restore(state)
            _, reward, terminated, _, _ = simulation.step(action)
            if reward > 0:
                plan = [action]
                break
            if terminated:
                continue
            # Most actions move nothing but the agent: then the parent's cells, and their long key, serve again.
            cells, lie = (state[3], state[4]) if grid.grid == state[3] else (grid.grid, tuple(map(id, grid.grid)))
            open_locked = tuple((door.is_open, door.is_locked) for door in doors)
            carrying = simulation.carrying
            key = (tuple(simulation.agent_pos), simulation.agent_dir, id(carrying), lie, open_locked)
            if key not in seen:
                seen.add(key)
                queue.append(len(nodes))
                nodes.append(((key[0], key[1], carrying, cells, lie, open_locked), index, action))
                depths.append(depths[index] + 1)
    restore(start)
    if plan is None:
        return None
    while index > 0:
        _, parent, action = nodes[index]
        plan.append(action)
        index = parent
    return plan[::-1]


def play_episode(env: gym.Env, seed: int, detours: int = 0) -> Episode:
    """Play one episode breadth-first.

    Args:
        env: a MiniGrid environment with any wrappers; every step that is recorded goes through them.
        seed: of the episode's reset, and of the detours.
        detours: how often, somewhere along its plan, the player loses its head for 1 to 24 random actions and then
            plans anew. Without detours an episode is as short as can be: often too short to dream 15 steps of it.

    Returns:
        The episode. Where no plan is found it is cut off there (`truncated`), so look at its rewards.
    """
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    choices = [int(action) for action in Actions if minigrid_of(env).action_space.contains(int(action))]
    observations, actions, rewards = [to_frames(env.observation_space, observation)], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        plan = shortest_plan(env)
        if plan is None:
            truncated = True
            break
        if detours > 0:
            detours -= 1
            plan = plan[: rng.integers(len(plan))]
            plan += rng.choice(choices, size=rng.integers(1, 25)).tolist()
        for action in plan:
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(to_frames(env.observation_space, observation))
            actions.append(action)
            rewards.append(float(reward))
            if terminated or truncated:
                break
    return Episode(
        observations=np.stack(observations),
        actions=np.asarray(actions, dtype=np.int64),
        rewards=np.asarray(rewards, dtype=np.float32),
        terminated=bool(terminated),
        truncated=bool(truncated),
        seed=seed,
    )
