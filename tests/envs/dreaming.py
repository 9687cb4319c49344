"""Short hands of the tests that dream."""

from __future__ import annotations

import gymnasium
import numpy as np

from worldmodel.envs.dream import DreamVectorEnv


def make_vec(run: str, num_envs: int, **kwargs) -> DreamVectorEnv:
    return gymnasium.make_vec("worldmodel/Dream-v0", num_envs=num_envs, checkpoint=run, **kwargs)


def actions_of(venv: DreamVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    n = venv.single_action_space.n
    return np.random.default_rng(seed).integers(0, n, (steps, venv.num_envs))


def play(venv: DreamVectorEnv, actions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    return [venv.step(a)[:4] for a in actions]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for the rounding of a pixel: matrix products of another batch size differ in the last float bit."""
    return int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def steps_with_an_end(venv, steps: int = 12) -> list[tuple]:
    venv.reset(seed=0)
    return [venv.step(np.zeros(venv.num_envs, dtype=np.int64)) for _ in range(steps)]
