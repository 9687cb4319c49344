"""A tiny world with everything in it: a dot on a ring of four places, moved by three actions, paid and ended at a goal.

The dot's brightness says in which of two episodes' colours it is, so a first frame has something to remember.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from worldmodel.batch import Batch
from worldmodel.config import (
    CausalConfig,
    FrameConfig,
    LatentConfig,
    MainConfig,
    MambaConfig,
    ModelConfig,
    OutcomeConfig,
)
from worldmodel.frames import FrameStage
from worldmodel.specs import ActionSpec, ObservationSpec

PLACES, COLOURS, SIDE, GOAL = 4, 2, 8, 3
CONFIG = ModelConfig(
    observation=ObservationSpec(shape=(SIDE, SIDE, 1)),
    action=ActionSpec(sizes=(3,)),  # back, stay, forward
    frame=FrameConfig(patch=4, width=16, heads=2, encoder_layers="t1m1", decoder_layers="m1t1", chunks=2.0, readers=2),
    latent=LatentConfig(groups=4, classes=4),
    causal=(CausalConfig(width=32, heads=2),),
    main=MainConfig(width=48, heads=2, layers="m1t1", window=8),
    mamba=MambaConfig(d_state=8, headdim=16, chunk_size=16),
    outcome=OutcomeConfig(clock=True),
)
SHADES = (120, 250)
CORNERS = ((0, 0), (0, 4), (4, 4), (4, 0))


def picture(place: int, colour: int) -> np.ndarray:
    frame = np.zeros((SIDE, SIDE, 1), np.uint8)
    y, x = CORNERS[place]
    frame[y + 1 : y + 3, x + 1 : x + 3] = SHADES[colour]
    return frame


FRAMES = torch.from_numpy(np.stack([picture(p, c) for c in range(COLOURS) for p in range(PLACES)]))


class Ring:
    """Endless batches of random play; an episode ends at the goal, wherever it was reached from."""

    frames = FRAMES

    def __init__(self, rows: int = 4, length: int = 12, seed: int = 0, shuffle_actions: bool = False) -> None:
        self.rows, self.length, self.shuffle = rows, length, shuffle_actions
        self.rng = np.random.default_rng(seed)

    def step(self, place: int, colour: int, action: int) -> tuple[int, int]:
        """Where the dot is next, and in which colour."""
        return (place + action - 1) % PLACES, colour

    def settle(self, stage: FrameStage) -> None:
        pass  # they are encoded as quickly

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.sample()

    def sample(self) -> Batch:
        shape = (self.rows, self.length)
        index, action = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        reward, terminated, first = np.zeros(shape, np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
        elapsed = np.zeros(shape, np.int64)
        for b in range(self.rows):
            over = True
            for t in range(self.length):
                if over:
                    place, colour, over = int(self.rng.integers(GOAL)), int(self.rng.integers(COLOURS)), False
                    first[b, t] = True
                else:
                    action[b, t] = self.rng.integers(3)
                    place, colour = self.step(place, colour, int(action[b, t]))
                    over = place == GOAL
                    reward[b, t], terminated[b, t] = 2.0 * over, over
                    elapsed[b, t] = elapsed[b, t - 1] + 1
                index[b, t] = colour * PLACES + place
        if self.shuffle:
            action = self.rng.permutation(action.ravel()).reshape(shape) * ~first
        arrays = (index, action, reward, terminated, first, first.copy(), elapsed)
        return Batch(self.frames, *(torch.from_numpy(a) for a in arrays))
