"""How cost grows with the frames a row, the steps of a dream, the chunks a frame, the dreams at once, and the threads.

Everything but the threads is CPU time of one thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rates import all_distinct, dream_state, dreaming, random_actions, training
from timing import cpu_seconds, wall_seconds

from worldmodel.envs.segments import FrameTable
from worldmodel.model import WorldModel
from worldmodel.training import TrainConfig

FRAMES = 192  # an update, however they are cut into rows
LENGTHS = (12, 24, 48, 96)
DREAMED = (8, 64, 256)
CHUNKS = (2, 4, 8, 12)
BATCHES = (16, 64, 256, 1024, 4096)


def measure(model: WorldModel, table: FrameTable, repeats: int) -> dict[str, dict[str, Any]]:
    """All that grows, by what it grows with; JSON turns the numbers it grows with into strings anyway."""
    distinct = all_distinct(table)  # or rows of other lengths would hold more or fewer repeated frames
    return {
        "length": {str(n): trained_seconds(model, distinct, n, repeats) for n in LENGTHS},
        "dreamed": {str(n): step_seconds(model, table, n, repeats) for n in DREAMED},
        "chunks": {str(n): with_chunks(model, distinct, n, repeats) for n in CHUNKS},
        "batch": {str(n): latent_seconds(model, table, n, repeats) for n in BATCHES},
    }


def trained_seconds(model: WorldModel, table: FrameTable, length: int, repeats: int) -> float:
    """Of training on one frame, in rows of so many."""
    config = TrainConfig(batch_size=FRAMES // length, length=length)
    return cpu_seconds(training(model, table, config), repeats) / FRAMES


def step_seconds(model: WorldModel, table: FrameTable, dreamed: int, repeats: int, rows: int = 16) -> float:
    """Of one dreamed step with its pictures, after so many."""
    state = dream_state(model, table, rows)
    for action in random_actions(model, dreamed, rows):
        state, _ = model.imagine(state, action)
    return cpu_seconds(dreaming(model, state, 15, pixels=True), repeats) / (15 * rows)


def latent_seconds(model: WorldModel, table: FrameTable, rows: int, repeats: int) -> float:
    """Of one dreamed step without pictures, so many at once."""
    return cpu_seconds(dreaming(model, dream_state(model, table, rows), 5, pixels=False), repeats) / (5 * rows)


def with_chunks(model: WorldModel, table: FrameTable, chunks: int, repeats: int) -> dict[str, float]:
    """Of one frame of the same model with so many chunks a frame, its weights random."""
    frame = replace(model.config.frame, boundary="stride", chunks=float(chunks))
    torch.manual_seed(0)
    other = WorldModel(replace(model.config, frame=frame)).eval()
    return {
        "trained": trained_seconds(other, table, 24, repeats),
        "dreamed with pixels": step_seconds(other, table, 8, repeats),
        "latent dream steps": latent_seconds(other, table, 256, repeats),
    }


def threads(model: WorldModel, table: FrameTable, repeats: int) -> dict[str, dict[str, float]]:
    """Frames or steps by second on the wall with one thread and with two: CPU time would hide what the second gains."""
    config = TrainConfig()
    pixels = dreaming(model, dream_state(model, table, 16), 15, pixels=True)
    latent = dreaming(model, dream_state(model, table, 1024), 5, pixels=False)
    works = {
        "trained": (training(model, table, config), config.batch_size * config.length),
        "dreamed with pixels": (pixels, 16 * 15),
        "latent dream steps": (latent, 1024 * 5),
    }
    rates = {}
    for name, (work, count) in works.items():
        rates[name] = {str(n): count / seconds for n, seconds in wall_seconds(work, repeats, (1, 2)).items()}
    return rates
