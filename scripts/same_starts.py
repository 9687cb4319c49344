"""Dreams that begin at the first frames of given real episodes, so that real and dreamed returns can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorWrapper

from worldmodel.envs.contexts import Contexts, burn_in
from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.envs.make import make_from_spec
from worldmodel.envs.observations import from_frames, to_frames
from worldmodel.envs.spaces import to_model_action


def first_frames(environment: dict[str, Any], seeds: Sequence[int]) -> np.ndarray:
    """What the real environment shows after a reset with each seed, `(N, *frame shape)`."""
    env = make_from_spec(environment)
    try:
        return np.stack([to_frames(env.observation_space, env.reset(seed=seed)[0]) for seed in seeds])
    finally:
        env.close()


class SameStarts(VectorWrapper):
    """A dream whose `reset(seed=...)` begins where the real environment does with that seed.

    Args:
        dream: with `AutoresetMode.DISABLED`.
        seeds: of the real episodes.
        frames: `(N, *frame shape)` their first frames.
    """

    def __init__(self, dream: DreamVectorEnv, seeds: Sequence[int], frames: np.ndarray) -> None:
        super().__init__(dream)
        self.dream, self.frames = dream, frames
        self.place: dict[int | None, int] = {seed: place for place, seed in enumerate(seeds)}
        count, space = len(seeds), dream.single_action_space
        no_action = to_model_action(space, np.stack([space.sample()])) * 0
        begins = np.ones((count, 1), bool)
        contexts = Contexts(
            frames=frames[:, None],
            actions=np.repeat(no_action[None], count, axis=0),
            first=begins,
            valid=np.ones(count, np.int64),
            initial=begins[:, 0],
            elapsed=np.zeros(count, np.int64),
        )
        self.starts, _ = burn_in(dream.model, contexts)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the dreams of these seeds. Rows whose seed is no real episode's only keep the others company."""
        assert isinstance(seed, Sequence), "rollout names the seed of every row"
        self.dream.reset(seed=seed, options=options)
        here = self.dream.get_state()
        rows = np.ones(len(here), bool) if options is None else options["reset_mask"]
        place = np.array([self.place.get(s, 0) for s in seed])
        # The chance inside each dream is the one that this seed gives any dream.
        fresh = self.starts[torch.from_numpy(place)].reseed(here.state.tensors["key"])
        state = fresh.where(torch.from_numpy(rows).to(here.state.feature.device), here.state)
        frames = here.frames.copy()
        frames[rows] = self.frames[place[rows]]
        self.dream.set_state(replace(here, state=state, frames=frames))
        return from_frames(self.dream.single_observation_space, frames), {}
