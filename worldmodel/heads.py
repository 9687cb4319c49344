"""What y says: the next chunk's start and latent, and, at a frame's last token, reward and termination.

All of it comes in y's precision, under autocast too: it goes into losses, and samples are drawn by it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.clock import Clock
from worldmodel.two_hot import TwoHot


class ChunkPrior(nn.Module):
    """p(start | y) and p(latent | y, start) of the next chunk.

    Args:
        width: d1.
        patches: P; the last of the `P + 1` starts is END.
        parameters: numbers that describe one latent.
        starts: whether starts are predicted at all; with a fixed stride they are known.
        rate: patches a frame that change, on average, where they are followed through time; 0 where they are not.
    """

    def __init__(self, width: int, patches: int, parameters: int, *, starts: bool, rate: float = 0.0) -> None:
        super().__init__()
        self.patches = patches
        if starts:
            self.start = nn.Linear(width, patches + 1)
            nn.init.zeros_(self.start.weight)
            nn.init.zeros_(self.start.bias)
        self.changes = self.changed = None
        if rate:
            self.changes = nn.Linear(width, patches)
            nn.init.zeros_(self.changes.weight)
            nn.init.constant_(self.changes.bias, math.log(rate / (patches - rate)))
            self.changed = nn.Linear(patches, 2 * width, bias=False)
        self.hidden = nn.Linear(width, 2 * width)
        self.start_embedding = nn.Parameter(torch.randn(patches, 2 * width) * 0.02)
        self.latent = nn.Linear(2 * width, parameters)

    def change_logits(self, y: Tensor) -> Tensor:
        """Logits `(..., P)` of which patches change, from y at F_t."""
        assert self.changes is not None
        return self.changes(y).to(y.dtype)

    def start_logits(self, y: Tensor, last_start: Tensor, changed: Tensor | None = None) -> Tensor:
        """Logits `(..., P + 1)` of where the next chunk starts: behind `last_start` `(...)` (-1: none yet) or END.

        Only `changed` patches `(..., P)` may start one, if they are followed through time.
        """
        place = torch.arange(self.patches + 1, device=y.device)
        possible = place > last_start.unsqueeze(-1)
        # A frame has at least one chunk, and the first begins at its first patch; unless nothing has changed.
        first = place == 0
        if changed is not None:
            open_end = F.pad(changed, (0, 1), value=True)
            possible = possible & open_end
            first = open_end & (open_end.long().cumsum(-1) == 1)
        opening = (last_start < 0).unsqueeze(-1)
        possible = torch.where(opening, first, possible)
        return self.start(y).to(y.dtype).masked_fill(~possible, -torch.inf)

    def forward(self, y: Tensor, start: Tensor, changed: Tensor | None = None) -> Tensor:
        """Parameters of the latent of the chunk that starts at `start` `(...)`, where `changed` `(..., P)` are new."""
        hidden = self.hidden(y) + self.start_embedding[start]
        if self.changed is not None and changed is not None:
            ahead = torch.arange(self.patches, device=y.device) >= start.unsqueeze(-1)
            hidden = hidden + self.changed((changed & ahead).to(y.dtype))
        return self.latent(F.silu(hidden)).to(y.dtype)


class Outcome(nn.Module):
    """Reward and termination on arriving at a frame, from y of its last token.

    A reward is an event and a size: the event is rare and sharp, while the size may depend on things that no frame
    shows, and one regression of both would blur them.

    Args:
        width: d1.
        clock: whether time comes first in saying the size, see `Clock`; y then says what is left of it.
    """

    def __init__(self, width: int, *, clock: bool = False) -> None:
        super().__init__()
        self.size = TwoHot(bins=41, low=-5.0, high=5.0)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 2 + self.size.bins)
        nn.init.zeros_(self.out.weight)  # rare events start at even odds, not at a random conviction
        nn.init.zeros_(self.out.bias)
        self.clock = Clock() if clock else None

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a reward event `(...)`, of termination `(...)`, and of the size `(..., bins)`."""
        said = self.out(F.silu(self.hidden(y))).to(y.dtype)
        event, terminated, size = said.split([1, 1, self.size.bins], dim=-1)
        return event.squeeze(-1), terminated.squeeze(-1), size

    def mean_size(self, logits: Tensor, elapsed: Tensor) -> Tensor:
        """The expected size `(...)` of a reward, from its logits `(..., bins)` and the time `(...)`."""
        size = self.size.mean(logits)
        return size if self.clock is None else size + self.clock(elapsed)

    def size_loss(self, logits: Tensor, elapsed: Tensor, reward: Tensor) -> Tensor:
        """How wrong the size of a reward is, `(...)`, where there was one; arguments as for `mean_size`."""
        return self.size.loss(logits, reward if self.clock is None else reward - self.clock(elapsed))
