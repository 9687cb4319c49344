"""What y says: the next chunk's start and latent, and, at a frame's last token, reward and termination.

All of it comes in y's precision, under autocast too: it goes into losses, and samples are drawn by it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.two_hot import TwoHot


class ChunkPrior(nn.Module):
    """p(start | y) and p(latent | y, start) of the next chunk.

    Args:
        width: d1.
        patches: P; the last of the `P + 1` starts is END.
        parameters: numbers that describe one latent.
        starts: whether starts are predicted at all; with a fixed stride they are known.
    """

    def __init__(self, width: int, patches: int, parameters: int, *, starts: bool) -> None:
        super().__init__()
        self.patches = patches
        if starts:
            self.start = nn.Linear(width, patches + 1)
            nn.init.zeros_(self.start.weight)
            nn.init.zeros_(self.start.bias)
        self.hidden = nn.Linear(width, 2 * width)
        self.start_embedding = nn.Parameter(torch.randn(patches, 2 * width) * 0.02)
        self.latent = nn.Linear(2 * width, parameters)

    def start_logits(self, y: Tensor, last_start: Tensor) -> Tensor:
        """Logits `(..., P + 1)` of where the next chunk starts: behind `last_start` `(...)` (-1: none yet) or END."""
        place = torch.arange(self.patches + 1, device=y.device)
        logits = self.start(y).to(y.dtype).masked_fill(place <= last_start.unsqueeze(-1), -torch.inf)
        # A frame has at least one chunk, and the first begins at patch 0.
        opening = (last_start < 0).unsqueeze(-1)
        return logits.masked_fill(opening & (place > 0), -torch.inf)

    def forward(self, y: Tensor, start: Tensor) -> Tensor:
        """Parameters of the latent of the chunk that starts at patch `start` `(...)`."""
        return self.latent(F.silu(self.hidden(y) + self.start_embedding[start])).to(y.dtype)


class Outcome(nn.Module):
    """Reward and termination on arriving at a frame, from y of its last token.

    A reward is an event and a size: the event is rare and sharp, while the size may depend on things that no frame
    shows (MiniGrid pays less the later it is), and one regression of both would blur them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size = TwoHot(bins=41, low=-5.0, high=5.0)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 2 + self.size.bins)
        nn.init.zeros_(self.out.weight)  # rare events start at even odds, not at a random conviction
        nn.init.zeros_(self.out.bias)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a reward event `(...)`, of termination `(...)`, and of the size `(..., bins)`."""
        said = self.out(F.silu(self.hidden(y))).to(y.dtype)
        event, terminated, size = said.split([1, 1, self.size.bins], dim=-1)
        return event.squeeze(-1), terminated.squeeze(-1), size
