"""A world model stepped as a Gymnasium environment: `gymnasium.make("worldmodel/Dream-v0", checkpoint=run)`.

`DreamVectorEnv` is the real one and lives in dream_vector.py; `DreamEnv` here is one row of it.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.envs.observations import row_of
from worldmodel.envs.snapshot import Snapshot

__all__ = ["DreamEnv", "DreamVectorEnv"]


class DreamEnv(gymnasium.Env):
    """One dream behind Gymnasium's interface for single environments: row 0 of a `DreamVectorEnv`, seed for seed.

    Args:
        checkpoint, horizon, starts, render_mode, device, greedy, realign, loops: as in `DreamVectorEnv`.

    Raises:
        UserError, ValueError: as there.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        horizon: int | None = None,
        starts: str = "initial",
        render_mode: str | None = None,
        device: str = "cpu",
        greedy: bool = False,
        realign: int = 0,
        loops: float | None = None,
    ) -> None:
        self.row = DreamVectorEnv(
            1,
            checkpoint,
            horizon=horizon,
            starts=starts,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
            device=device,
            greedy=greedy,
            realign=realign,
            loops=loops,
        )
        self.observation_space = self.row.single_observation_space
        self.action_space = self.row.single_action_space
        self.render_mode = render_mode
        self.metadata = dict(self.metadata, render_modes=self.row.metadata["render_modes"])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new dream.

        Args:
            seed: of all its random numbers; None to go on with those that the environment already has.
            options: not used.

        Returns:
            The observation, and an empty info.
        """
        super().reset(seed=seed)
        self.row.set_generators([self.np_random])
        observations, info = self.row.reset()
        return row_of(observations, 0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Dream one step.

        Args:
            action: from `action_space`.

        Returns:
            Observation, reward, terminated, truncated and an empty info.

        Raises:
            gymnasium.error.InvalidAction: the action is not in the action space.
            gymnasium.error.ResetNeeded: the episode is over or has not begun.
        """
        observations, rewards, terminated, truncated, info = self.row.step(np.asarray(action)[None])
        return row_of(observations, 0), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """The current observation as an RGB picture, scaled up by a whole factor if it is small."""
        pictures = self.row.render()
        return None if pictures is None else pictures[0]

    def get_state(self) -> Snapshot:
        """The dream as it is, as a snapshot of one row; see `DreamVectorEnv.get_state`."""
        return self.row.get_state()

    def set_state(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of one row, which stays as it is."""
        self.row.set_state(snapshot)
        self.np_random = self.row.np_random[0]

    def close(self) -> None:
        """Nothing to release; the model stays loaded for the next environment."""
        self.row.close()
