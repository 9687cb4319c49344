"""The one rollout loop, for real and dreamed environments alike.

Rows of the vector environment are never reset behind our back: a row whose episode ended is restarted here, with the
next seed. So an episode's last observation is the true one, and each can be replayed from its seed and actions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from worldmodel.envs.observations import to_frames

DEFAULT_HORIZON = 200  # steps of an episode, dreamed or real, where the real environment has no limit of its own


class Policy(Protocol):
    """Whatever chooses actions for a batch of rows."""

    def act(self, observation: Any, memory: Any, first: np.ndarray | None = None) -> tuple[np.ndarray, Any]:
        """Choose one action a row.

        Args:
            observation: a batch of B, as the environment shows it.
            memory: what the last call returned; `None` at the start.
            first: `(B,)` bool, rows that begin a new episode and forget the old one.

        Returns:
            actions: `(B, *action shape)`, as the environment takes them.
            memory: for the next call.
        """


@dataclass
class Episode:
    """One episode of `T` actions. `observations[t + 1]` and `rewards[t]` follow from `actions[t]`.

    Attributes:
        observations: `(T + 1, *frame shape)` as `worldmodel.envs.observations.to_frames` makes them, the last one is
            where the episode ended.
        actions: `(T, ...)` as the environment took them.
        rewards: `(T,)` float32.
        terminated: the last observation is terminal.
        truncated: it was cut off there.
        seed: the environment was reset with it.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int | None = None

    @property
    def length(self) -> int:
        """The number of actions."""
        return len(self.actions)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


@dataclass
class _Running:
    """An episode that has not ended. `counted` is false for rows that only keep the others company."""

    seed: int
    counted: bool
    observations: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def finish(self, terminated: bool, truncated: bool) -> Episode:
        return Episode(
            observations=np.stack(self.observations),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
            seed=self.seed,
        )


def episode_seeds(seed: int, stream: int = 0) -> Iterator[int]:
    """Endless episode seeds. Different streams share none: collecting takes 0, so evaluation can take another."""
    for k in itertools.count():
        yield int(np.random.SeedSequence((seed, stream, k)).generate_state(1)[0] >> 1)


def play_limit(environment: dict[str, Any]) -> int | None:
    """Steps after which whoever plays whole episodes of an environment cuts them off: it may never end them itself.

    Args:
        environment: the environment spec.

    Returns:
        `DEFAULT_HORIZON`, as in the dream, or None where the environment has a limit of its own. An Atari emulator has
        one that Gymnasium does not know of: it ends every game after half an hour at the latest.
    """
    own = environment.get("episode_limit") or str(environment.get("id")).startswith("ALE/")
    return None if own else DEFAULT_HORIZON


def rollout(
    venv: VectorEnv,
    policy: Policy,
    *,
    seeds: Iterable[int],
    episodes: int | None = None,
    steps: int | None = None,
    limit: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Episode]:
    """Play episodes, each from its own seed, and yield them as they end.

    With `episodes` these are exactly the episodes of the first so many seeds, all played to their end: short ones are
    not favoured. With `steps`, episodes still running at the last step are cut off there, as truncated.

    Args:
        venv: with `AutoresetMode.DISABLED`.
        policy: chooses the actions.
        seeds: one an episode, in order of start.
        episodes: stop after so many episodes, or
        steps: stop after exactly so many environment steps, summed over rows.
        limit: steps after which an episode that goes on is cut off, as truncated; None plays it to its own end, however
            far that is (see `play_limit`).
        progress: called with the number of new steps (`tqdm.update` fits).

    Yields:
        Finished episodes.

    Raises:
        ValueError: neither or both of `episodes` and `steps` are given, `limit` is no number of steps, the environment
            resets itself, or there are too few seeds.
    """
    if (episodes is None) == (steps is None):
        raise ValueError("give either episodes or steps")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 step, or None for no limit, not {limit}")
    if venv.metadata.get("autoreset_mode") != AutoresetMode.DISABLED:
        raise ValueError("rollout resets rows itself: make the vector environment with AutoresetMode.DISABLED")
    remaining = float("inf") if episodes is None else episodes  # episodes to start
    budget = float("inf") if steps is None else steps  # steps to take
    seeds = iter(seeds)

    first = np.ones(venv.num_envs, bool)
    running: list[_Running] = [_Running(0, False, [])] * venv.num_envs
    memory = None
    while True:
        if first.any():
            for row in np.flatnonzero(first).tolist():
                running[row] = _Running(_next_seed(seeds) if remaining > 0 else 0, remaining > 0, [])
                remaining -= 1
            if budget <= 0 or not any(episode.counted for episode in running):
                return
            reset = {"reset_mask": first.copy()}
            observation, _ = venv.reset(seed=[e.seed for e in running], options=reset)  # type: ignore[arg-type]
            frames = to_frames(venv.single_observation_space, observation)
            for row in np.flatnonzero(first).tolist():
                running[row].observations.append(frames[row].copy())

        actions, memory = policy.act(observation, memory, first)
        observation, rewards, terminated, truncated, _ = venv.step(actions)
        frames = to_frames(venv.single_observation_space, observation)
        first = terminated | truncated
        taken = 0
        for row, episode in enumerate(running):
            if not episode.counted or budget <= 0:  # the budget may end in the middle of a step of all rows
                continue
            budget -= 1
            taken += 1
            episode.actions.append(np.array(actions[row]))
            episode.rewards.append(float(rewards[row]))
            episode.observations.append(frames[row].copy())
            cut = len(episode.actions) == limit and not first[row]
            if first[row] or cut:
                yield episode.finish(bool(terminated[row]), bool(truncated[row]) or cut)
                episode.counted = False
                first[row] = True
        if progress is not None:
            progress(taken)
        if budget <= 0:
            for episode in running:
                if episode.counted and episode.actions:
                    yield episode.finish(terminated=False, truncated=True)
            return


def _next_seed(seeds: Iterator[int]) -> int:
    try:
        return next(seeds)
    except StopIteration:
        raise ValueError("there are fewer seeds than episodes to play") from None
