"""Small worlds on a line, for what happens where episodes are unusually short, unusually long or well paid."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

PATIENCE = 400  # steps after which whoever plays an episode that never ends should have given up


class LineEnv(gymnasium.Env):
    """Shows how many steps were taken and which action was the last.

    Args:
        length: steps of an episode, which then terminates; None never ends it.
        picture: show it as an image, and not as a vector.
        reward: paid each step.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    action_space = Discrete(2)

    def __init__(self, length: int | None = None, picture: bool = False, reward: float = 1.0) -> None:
        self.length, self.picture, self.reward = length, picture, reward
        self.observation_space = Box(0, 255, (16, 16, 3), np.uint8) if picture else Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._shown(0), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        assert self.time <= PATIENCE, "nobody cuts this episode off"
        return self._shown(int(action)), self.reward, self.time == self.length, False, {}

    def _shown(self, action: int) -> np.ndarray:
        if self.picture:
            return np.full((16, 16, 3), (40 * (self.time % 6), 200 * action, 90), np.uint8)
        return np.array([self.time / PATIENCE, action], np.float32)


def register(env_id: str, **kwargs: Any) -> str:
    """Make a `LineEnv` known under an id, and return that."""
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=LineEnv, kwargs=kwargs)
    return env_id


ENDLESS = register("EndlessLine-v0")
SHORT = register("ShortLine-v0", length=5, picture=True)
COSTLY = register("CostlyLine-v0", length=30, reward=-20.0)
