"""A world whose every frame tells how it came about: the last action, the time, and which episode it is.

Whoever shifts actions against frames by one, mixes two episodes or loses a last frame can be caught by reading pixels.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

NUM_ACTIONS = 5
NO_ACTION = NUM_ACTIONS  # what a first frame shows
SIDE = 16


class LastActionEnv(gymnasium.Env):
    """Observation: channel 0 shows the last action, 1 the time, 2 the episode's tag, each as one brightness.

    The episode's length, 2 to `max_length`, its tag and whether it ends in termination or truncation follow from the
    seed. The reward is the number of the action; with `sparse`, it is 1 at a termination and 0 elsewhere.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = Discrete(NUM_ACTIONS)

    def __init__(self, max_length: int = 12, sparse: bool = False) -> None:
        self.max_length = max_length
        self.sparse = sparse

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, self.max_length + 1))
        self.tag = int(self.np_random.integers(256))
        self.terminates = bool(self.np_random.integers(2))
        self.time = 0
        return self._frame(NO_ACTION), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        ended = self.time == self.length
        terminated = ended and self.terminates
        reward = float(terminated) if self.sparse else float(action)
        return self._frame(int(action)), reward, terminated, ended and not self.terminates, {}

    def _frame(self, last_action: int) -> np.ndarray:
        return np.broadcast_to(np.array([last_action * 40, self.time, self.tag], np.uint8), (SIDE, SIDE, 3)).copy()


def shown_action(frames: np.ndarray) -> np.ndarray:
    """The last action in each frame `(..., 16, 16, 3)`; `NO_ACTION` in a first frame."""
    return np.asarray(frames)[..., 0, 0, 0] // 40


def shown_time(frames: np.ndarray) -> np.ndarray:
    """How many actions led to each frame `(..., 16, 16, 3)`."""
    return np.asarray(frames)[..., 0, 0, 1].astype(np.int64)


def shown_tag(frames: np.ndarray) -> np.ndarray:
    """Which episode each frame `(..., 16, 16, 3)` belongs to."""
    return np.asarray(frames)[..., 0, 0, 2].astype(np.int64)


ID = "LastAction-v0"
if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=LastActionEnv)
