"""What the learner eats: segments of episodes, their frames stored once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Batch:
    """`B` rows of `T` frames. A row may hold several pieces of episodes, one behind the other.

    Everything at index `t` belongs to *arriving at* frame `t`: `action[t]` led there, `reward[t]` was paid on arrival.

    Attributes:
        frames: `(U, *observation shape)` the distinct observations of the batch. Some may be loose, pointed to by no
            row: they are coded and painted, and nothing else.
        index: `(B, T)` int64, which of them each frame is.
        action: `(B, T, *action shape)` the action before the frame; zeros where `first`.
        reward: `(B, T)` float32, 0 where `first`.
        terminated: `(B, T)` bool, the frame is terminal (a truncation is not).
        first: `(B, T)` bool, the frame begins an episode (no action led here).
        start: `(B, T)` bool, a piece begins here and the state restarts; `first` implies it. Where `start & ~first` the
            piece begins in mid-episode: what came before is unknown, so that frame's prediction losses are masked.
        elapsed: `(B, T)` int64, actions since the episode began; 0 where `first`.
    """

    frames: Tensor
    index: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    first: Tensor
    start: Tensor
    elapsed: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """A copy on `device`."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})
