"""Uniformly random actions, each episode from a seed of its own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import Space

from worldmodel.envs.observations import count_rows


class RandomPolicy:
    """Draws every action from the action space.

    The `k`-th episode started, whichever row plays it, draws from the `k`-th seed. Given the seeds that `rollout` gets,
    an episode follows from its seed alone, whatever ran beside it.

    Args:
        action_space: of a single environment.
        seed: the first episode's seed, counted up from there, or one seed an episode.
    """

    def __init__(self, action_space: Space, seed: int | Iterable[int] = 0) -> None:
        self.action_space = action_space
        self.seeds = itertools.count(seed) if isinstance(seed, int) else iter(seed)

    def act(
        self, observation: Any, memory: list[Space] | None, first: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[Space]]:
        """One random action a row. See `worldmodel.envs.rollout.Policy`; the memory is one seeded space a row."""
        if memory is None:
            first = np.ones(count_rows(observation), bool)
            memory = [self.action_space] * len(first)
        if first is not None and first.any():
            memory = list(memory)
            for row in np.flatnonzero(first).tolist():
                memory[row] = copy.deepcopy(self.action_space)
                memory[row].seed(next(self.seeds, 0))
        return np.stack([space.sample() for space in memory]), memory
