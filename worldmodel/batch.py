"""What the learner eats: segments of episodes, their frames stored once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Codes:
    """What some frames are cut into and coded as, with K chunks in the fullest of them.

    Attributes:
        start: `(n, K)` int64, first patch of each chunk; 0 where absent.
        valid: `(n, K)` bool, which of the K exist.
        posterior: `(n, K, latent parameters)`.
    """

    start: Tensor
    valid: Tensor
    posterior: Tensor

    def and_of(self, others: Codes) -> Codes:
        """With those of other frames behind them."""
        K = max(self.valid.shape[1], others.valid.shape[1])
        return Codes(*(torch.cat([_padded(mine, K), _padded(theirs, K)]) for mine, theirs in zip(self, others)))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Codes:
        """A copy on `device`."""
        return Codes(*(part.to(device, non_blocking=non_blocking) for part in self))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.start, self.valid, self.posterior))


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
        codes: of the first n frames, those that are not loose, where the model codes frames the same forever and this
            is known; None where it is not.
    """

    frames: Tensor
    index: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    first: Tensor
    start: Tensor
    elapsed: Tensor
    codes: Codes | None = None

    def to(self, device: torch.device | str) -> Batch:
        """A copy on `device`."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: x if x is None else x.to(device, non_blocking=True) for n, x in parts.items()}
        return Batch(**moved)


def _padded(of_chunks: Tensor, K: int) -> Tensor:
    """With zeros for the chunks that are lacking to K, `(n, K, ...)`."""
    lacking = of_chunks.new_zeros(len(of_chunks), K - of_chunks.shape[1], *of_chunks.shape[2:])
    return torch.cat([of_chunks, lacking], dim=1)
