"""Which cells of the world each frame of a MiniGrid episode shows, found by replaying its seed and actions.

Nobody can dream ground that was never shown, so a frame that shows some is scored apart from the others.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv

from worldmodel.envs.grid_player import minigrid_of
from worldmodel.envs.rollout import Episode
from worldmodel.errors import UserError


def visible_cells(inner: MiniGridEnv, image: np.ndarray) -> np.ndarray:
    """World cells that the agent's view shows now.

    Args:
        inner: the unwrapped environment.
        image: `(view, view, 3)` its own symbolic observation; what its visibility code hides is "unseen" there.

    Returns:
        `(width + 2 * margin, height + 2 * margin)` bool with margin = view size - 1: the view reaches over the grid's
        edge, where walls are drawn, and these count as ground like any other. The agent's own cell is drawn as the
        agent and what it carries: it is shown if nothing lies under the agent, which a viewer may then take for
        granted, but a door that the agent stands in is hidden.
    """
    view = inner.agent_view_size
    margin = view - 1
    cells = np.zeros((inner.width + 2 * margin, inner.height + 2 * margin), dtype=bool)
    ahead, right = np.asarray(inner.dir_vec), np.asarray(inner.right_vec)
    i, j = np.nonzero(image[..., 0] != OBJECT_TO_IDX["unseen"])
    # The view's column i runs to the agent's right, its row j backwards; the agent is in the middle of the last row.
    offset = (i - view // 2)[:, None] * right + (view - 1 - j)[:, None] * ahead
    x, y = (np.asarray(inner.agent_pos) + offset + margin).T
    cells[x, y] = True
    here_x, here_y = (int(p) for p in inner.agent_pos)
    if inner.grid.get(here_x, here_y) is not None:
        cells[here_x + margin, here_y + margin] = False
    return cells


def shown_cells(env: gym.Env, episode: Episode) -> np.ndarray:
    """Replay an episode and tell what each of its frames shows.

    Args:
        env: the MiniGrid environment that the episode comes from, with any wrappers (only the inside is stepped). Its
            observation must be the agent's own view.
        episode: with the seed of its reset; actions as recorded.

    Returns:
        `(T+1, X, Y)` bool, see `visible_cells`.

    Raises:
        UserError: the episode has no seed, or the replay's rewards or end differ from the recorded ones.
    """
    if episode.seed is None:
        raise UserError("an episode without a seed cannot be replayed: record the seed of its reset with it")
    inner = minigrid_of(env)
    observation, _ = inner.reset(seed=int(episode.seed))
    masks = [visible_cells(inner, observation["image"])]
    for t, action in enumerate(episode.actions):
        observation, reward, terminated, _, _ = inner.step(int(action))
        masks.append(visible_cells(inner, observation["image"]))
        ends = bool(episode.terminated) and t == len(episode.actions) - 1
        if abs(float(reward) - float(episode.rewards[t])) > 1e-5 or bool(terminated) != ends:
            raise UserError(
                f"replaying seed {episode.seed} gives another reward or end at step {t} than was recorded: "
                "the episode comes from another environment, version or set of keyword arguments"
            )
    return np.stack(masks)


def on_seen_ground(shown: np.ndarray, context: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Which frames show nothing but what the frames of a context have shown.

    A cell counts as seen by its position, whatever has since been put there, taken away or opened.

    Args:
        shown: `(N, X, Y)` bool, what `shown_cells` found of N frames.
        context: `(n, C)` which of them are the context of each frame.
        frame: `(n,)` which of them are asked about.

    Returns:
        `(n,)` bool.
    """
    seen = np.zeros((len(frame), *shown.shape[1:]), dtype=bool)
    for column in context.T:
        seen |= shown[column]
    return ~(shown[frame] & ~seen).any(axis=(1, 2))
