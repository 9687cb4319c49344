"""What the GPU check computes with: models, how much they do at once, and a small world to train them on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from worldmodel.batch import Batch
from worldmodel.config import CausalConfig, FrameConfig, LatentConfig, MainConfig, MambaConfig, ModelConfig
from worldmodel.presets import preset
from worldmodel.specs import ActionSpec, ObservationSpec

ACTIONS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])  # stay, up, down, left, right
SHADES = ((230, 60, 60), (60, 230, 60), (60, 60, 230), (230, 230, 60))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one model, and of what it does at once.

    Attributes:
        name, config: the model.
        rows, frames: of a batch.
        distinct: frames of it that the frame stage sees.
        dreams: stepped together.
    """

    name: str
    config: ModelConfig
    rows: int = 16
    frames: int = 64
    distinct: int = 256
    dreams: int = 1024

    @property
    def patches(self) -> int:
        """Of a frame."""
        return (self.config.observation.shape[0] // self.config.frame.patch) ** 2

    @property
    def chunks(self) -> int:
        """Of a frame."""
        return round(self.config.frame.chunks)

    @property
    def tokens(self) -> int:
        """Of a row."""
        return self.frames * (1 + self.chunks)

    def with_boundaries(self, kind: str) -> ModelConfig:
        """The config with "stride" or "learned" boundaries."""
        return replace(self.config, frame=replace(self.config.frame, boundary=kind))


def all_sizes(quick: bool) -> list[Sizes]:
    """Those to check: the presets, or one toy that a CPU steps in no time."""
    action = ActionSpec(sizes=(len(ACTIONS),))
    if not quick:
        observation = ObservationSpec(shape=(64, 64, 3))
        return [Sizes(name=name, config=preset(name, observation, action)) for name in ("small", "tiny")]
    toy = ModelConfig(
        observation=ObservationSpec(shape=(16, 16, 3)),
        action=action,
        frame=FrameConfig(patch=4, width=16, heads=2, chunks=2.0),
        latent=LatentConfig(groups=3, classes=4),
        causal=(CausalConfig(width=32, heads=2),),
        main=MainConfig(width=48, heads=2, window=3),
        mamba=MambaConfig(d_state=8, headdim=8, chunk_size=16),
    )
    return [Sizes(name="toy", config=toy, rows=2, frames=5, distinct=3, dreams=4)]


class BlockWorld:
    """A block of one patch that the action moves, in one of four shades; at the last place it is paid, and it ends."""

    def __init__(self, config: ModelConfig) -> None:
        side, patch = config.observation.shape[0], config.frame.patch
        self.across = side // patch
        places = self.across**2
        frames = np.zeros((len(SHADES), places, side, side, 3), np.uint8)
        for place in range(places):
            y, x = (patch * n for n in divmod(place, self.across))
            frames[:, place, y : y + patch, x : x + patch] = np.array(SHADES)[:, None, None]
        self.frames = torch.from_numpy(frames.reshape(-1, side, side, 3))

    def sample(self, rng: np.random.Generator, rows: int, length: int) -> Batch:
        """Rows of random play, episode after episode."""
        places, shape = self.across**2, (rows, length)
        index, action = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        terminated, first, elapsed = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.int64)
        place, shade, over = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.ones(rows, bool)
        for t in range(length):
            chosen = rng.integers(len(ACTIONS), size=rows)
            cell = np.stack(divmod(place, self.across), 1) + ACTIONS[chosen]
            y, x = np.clip(cell, 0, self.across - 1).T
            place = np.where(over, rng.integers(places - 1, size=rows), y * self.across + x)
            shade = np.where(over, rng.integers(len(SHADES), size=rows), shade)
            first[:, t], action[:, t] = over, np.where(over, 0, chosen)
            elapsed[:, t] = np.where(over, 0, elapsed[:, t - 1] + 1)
            over = place == places - 1
            index[:, t], terminated[:, t] = shade * places + place, over
        return Batch(
            frames=self.frames,
            index=torch.from_numpy(index),
            action=torch.from_numpy(action),
            reward=torch.from_numpy(terminated.astype(np.float32)),
            terminated=torch.from_numpy(terminated),
            first=torch.from_numpy(first),
            start=torch.from_numpy(first.copy()),
            elapsed=torch.from_numpy(elapsed),
        )
