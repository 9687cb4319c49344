"""An exact world in the world model's own interface: a corridor with a box at its end.

Action 0 goes left, 1 goes right, 2 opens. Opening at the last cell pays 1; opening anywhere ends the episode. So the
last action must be credited exactly, and the others through the critic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LENGTH = 9
LEFT, RIGHT, OPEN = range(3)


@dataclass(frozen=True)
class CorridorState:
    cell: Tensor  # (B,) int64
    ended: Tensor  # (B,) bool
    pending: Tensor  # (B,) a reward still to be paid, in a corridor that pays late
    seeds: Tensor  # (B,)

    @property
    def batch_size(self) -> int:
        return len(self.cell)

    @property
    def feature(self) -> Tensor:
        return torch.nn.functional.one_hot(self.cell, LENGTH).float()

    def __getitem__(self, rows: Tensor) -> CorridorState:
        return CorridorState(self.cell[rows], self.ended[rows], self.pending[rows], self.seeds[rows])

    def reseed(self, seeds: Tensor) -> CorridorState:
        return replace(self, seeds=seeds)


@dataclass(frozen=True)
class CorridorOutput:
    feature: Tensor
    reward_mean: Tensor
    terminated_probability: Tensor


class Corridor:
    """Args: delay: pay each reward one step late, as a model trained with an off-by-one would."""

    feature_width = LENGTH

    def __init__(self, delay: bool = False) -> None:
        self.delay = delay

    def start(self, cells: Tensor) -> CorridorState:
        zeros = torch.zeros_like(cells)
        return CorridorState(cells, zeros.bool(), zeros.float(), zeros)

    def imagine(self, state: CorridorState, action: Tensor) -> tuple[CorridorState, CorridorOutput]:
        opened = (action == OPEN) & ~state.ended
        paid = (opened & (state.cell == LENGTH - 1)).float()
        cell = (state.cell + (action == RIGHT).long() - (action == LEFT).long()).clamp(0, LENGTH - 1)
        reward = state.pending if self.delay else paid
        new = replace(state, cell=cell, ended=state.ended | opened, pending=paid)
        return new, CorridorOutput(new.feature, reward, opened.float())
