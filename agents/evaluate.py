"""How well a policy does: exactly the episodes of the given seeds, in a real or a dreamed environment."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import VectorEnv
from tqdm import tqdm

from worldmodel.envs.rollout import Policy, rollout


@dataclass(frozen=True)
class Evaluation:
    """What came out; the lists hold one entry an episode, in the order of the seeds.

    Attributes:
        success: share of episodes whose return is above 0.
        mean_return: undiscounted.
        mean_length: actions an episode.
        returns, lengths, terminated, seeds: of each episode.
    """

    success: float
    mean_return: float
    mean_length: float
    returns: list[float]
    lengths: list[int]
    terminated: list[bool]
    seeds: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return dataclasses.asdict(self)


def evaluate_policy(
    venv: VectorEnv,
    policy: Policy,
    episodes: int,
    seeds: Iterable[int],
    *,
    limit: int | None = None,
    progress: str | None = None,
) -> Evaluation:
    """Plays the episodes of the first `episodes` seeds, each to its end, and counts.

    Args:
        venv: with `AutoresetMode.DISABLED`, see `rollout`.
        policy: what to evaluate; it starts without a memory.
        episodes: how many.
        seeds: of the environment, one an episode.
        limit: steps after which an episode is cut off, see `rollout`; None plays each to its own end.
        progress: what a progress bar is called; None shows none.
    """
    if episodes < 1:
        raise ValueError(f"an evaluation needs at least one episode, not {episodes}")
    seeds = list(itertools.islice(seeds, episodes))
    order = {seed: place for place, seed in enumerate(seeds)}
    played = []
    with tqdm(total=episodes, desc=progress, unit="episode", disable=None if progress else True) as bar:
        for episode in rollout(venv, policy, episodes=episodes, seeds=seeds, limit=limit):
            assert episode.seed is not None
            played.append((order[episode.seed], episode.total_reward, episode.length, episode.terminated))
            bar.update()
    places, returns, lengths, terminated = (list(column) for column in zip(*sorted(played)))
    return Evaluation(
        success=sum(r > 0 for r in returns) / episodes,
        mean_return=sum(returns) / episodes,
        mean_length=sum(lengths) / episodes,
        returns=returns,
        lengths=lengths,
        terminated=terminated,
        seeds=[seeds[place] for place in places],
    )
