"""A dream held still: everything its future depends on, to go back to or to branch from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium.utils import seeding

from worldmodel.state import DreamState


def draw_key(generator: np.random.Generator) -> int:
    """A key for the random numbers inside one dream."""
    return int(generator.integers(2**63 - 1))


def row_shapes(state: DreamState, frames: np.ndarray) -> dict[str, str]:
    """The shape of all that one row shows and remembers, by name: the same for all rows of a model."""
    shapes = {name: str(tuple(tensor.shape[1:])) for name, tensor in state.tensors.items()}
    return {"frame": f"{frames.dtype} {frames.shape[1:]}"} | shapes


@dataclass(frozen=True)
class Snapshot:
    """Everything that a dream's future depends on, taken by `get_state` and put back by `set_state`.

    Indexing picks rows, also one row many times: `venv.set_state(snapshot[[3] * venv.num_envs])` continues row 3 in all
    rows, to compare what different actions lead to under the same chance. `reseeded` gives every row chance of its own.

    Attributes:
        state: the model's state, with `state.feature` `(B, F)`, what an agent sees.
        frames: `(B, *frame shape)` what the rows show now, see `worldmodel.envs.observations`.
        elapsed: `(B,)` steps since the dream began.
        ended: `(B,)` whether the row waits to be reset.
        generators: one a row; they draw starts and dream seeds at the resets to come.
    """

    state: DreamState
    frames: np.ndarray
    elapsed: np.ndarray
    ended: np.ndarray
    generators: tuple[np.random.Generator, ...]

    def __len__(self) -> int:
        return len(self.elapsed)

    def __getitem__(self, rows: Sequence[int] | np.ndarray | slice) -> Snapshot:
        # Numpy would take a tuple for one index an axis.
        index = np.arange(len(self))[list(rows) if isinstance(rows, tuple) else rows].copy()
        if index.ndim != 1:
            raise TypeError("index a snapshot with a list, an array or a slice of rows, not with one number")
        return Snapshot(
            state=self.state[torch.from_numpy(index)],
            frames=self.frames[index],
            elapsed=self.elapsed[index],
            ended=self.ended[index],
            generators=tuple(copy.deepcopy(self.generators[i]) for i in index),
        )

    def reseeded(self, seeds: Sequence[int]) -> Snapshot:
        """The same situations with other chance ahead of them.

        Args:
            seeds: one a row.
        """
        if len(seeds) != len(self):
            raise ValueError(f"the snapshot has {len(self)} rows, but {len(seeds)} seeds were given")
        generators = tuple(seeding.np_random(int(seed))[0] for seed in seeds)
        keys = torch.tensor([draw_key(g) for g in generators], device=self.state.feature.device)
        return replace(self, state=self.state.reseed(keys), generators=generators)
