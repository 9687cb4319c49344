"""What y says: the next chunk's start and latent, and, at a frame's last token, reward and termination.

All of it comes in y's precision, under autocast too: it goes into losses, and samples are drawn by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.clock import Clock
from worldmodel.draws import Draws, pick
from worldmodel.two_hot import TwoHot


class ChunkPrior(nn.Module):
    """p(start | y) and p(latent | y, start) of the next chunk.

    Args:
        width: d1.
        part: `(P,)` int64, the modality of each patch; the last of the `P + 1` starts is END.
        parameters: numbers that describe one latent.
        starts: whether starts are predicted at all; with a fixed stride they are known.
        rate: patches a frame that change, on average, where they are followed through time; 0 where they are not.
    """

    part: Tensor
    follows: Tensor

    def __init__(self, width: int, part: Tensor, parameters: int, *, starts: bool, rate: float = 0.0) -> None:
        super().__init__()
        patches = self.patches = len(part)
        self.modalities = int(part.max()) + 1
        ends = torch.tensor([-1]), part.cpu(), torch.tensor([len(part)])  # before the first patch, and END
        self.register_buffer("part", torch.cat(ends), persistent=False)
        if starts:
            follows = self._possible(torch.arange(-1, patches), None, None)  # asked of the same places at every step
            self.register_buffer("follows", follows, persistent=False)
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

    def draw_changes(self, y: Tensor, uniform: Tensor | None) -> Tensor:
        """Which patches change, `(..., P)` bool, from y at F_t; without as many `uniform` numbers the likely ones."""
        return self.change_logits(y).sigmoid() > (0.5 if uniform is None else uniform)

    def start_logits(
        self, y: Tensor, last_start: Tensor, changed: Tensor | None = None, left: Tensor | int | None = None
    ) -> Tensor:
        """Logits `(..., P + 1)` of where the next chunk starts, or END.

        Args:
            y: `(..., d1)`.
            last_start: `(...)` int64, behind which it starts; -1 if there is none yet.
            changed: `(..., P)` bool, the only patches that may start one, if they are followed through time.
            left: `(...)` how many chunks the frame may still have: enough are kept for the modalities to come.
        """
        if changed is None and self.modalities == 1:
            possible = self.follows[last_start + 1]
        else:
            possible = self._possible(last_start, changed, left)
        return self.start(y).to(y.dtype).masked_fill(~possible, -torch.inf)

    def _possible(self, last_start: Tensor, changed: Tensor | None, left: Tensor | int | None) -> Tensor:
        """Where the next chunk may start, `(..., P + 1)` bool; arguments are those of `start_logits`.

        Each modality, END among them, begins with a chunk at its first patch: so does the frame, if there is any.
        """
        place, part = torch.arange(self.patches + 1, device=last_start.device), self.part[1:]
        there = torch.ones_like(place, dtype=torch.bool) if changed is None else F.pad(changed, (0, 1), value=True)
        next_one = there & (part > self.part[last_start + 1].unsqueeze(-1))
        farthest = next_one.int().argmax(-1, keepdim=True)
        possible = there & (place > last_start.unsqueeze(-1)) & (place <= farthest)
        if left is None or self.modalities == 1:
            return possible
        each = [(next_one & (part == m)).any(-1) for m in range(self.modalities)]
        to_come = torch.stack(each).sum(0)
        return possible & ((to_come < left).unsqueeze(-1) | (place == farthest))

    def draw_start(
        self, y: Tensor, last_start: Tensor, uniform: Tensor | None, changed: Tensor | None, left: int
    ) -> tuple[Tensor, Tensor]:
        """Where the next chunk starts or END, and the entropy of that choice in nats, both `(...)`.

        Arguments are those of `start_logits`; without `uniform` `(...)` numbers it is the most likely place.
        """
        logits = self.start_logits(y, last_start, changed, left)
        p = logits.softmax(-1)
        entropy = -(p * p.clamp(min=1e-12).log()).sum(-1)
        return logits.argmax(-1) if uniform is None else pick(logits, uniform), entropy

    def forward(self, y: Tensor, start: Tensor, changed: Tensor | None = None) -> Tensor:
        """Parameters of the latent of the chunk that starts at `start` `(...)`, where `changed` `(..., P)` are new."""
        hidden = self.hidden(y) + self.start_embedding[start]
        if self.changed is not None and changed is not None:
            ahead = torch.arange(self.patches, device=y.device) >= start.unsqueeze(-1)
            hidden = hidden + self.changed((changed & ahead).to(y.dtype))
        return self.latent(F.silu(hidden)).to(y.dtype)


@dataclass
class Said:
    """What y says of arriving at a frame.

    Attributes:
        event, terminated: `(...)` logits of a reward and of termination.
        size: `(..., bins)` logits of how large the reward is; with a clock, of what time has not said of it.
        sign: `(...)` logit of a reward above 0; None without a clock.
    """

    event: Tensor
    terminated: Tensor
    size: Tensor
    sign: Tensor | None


class Outcome(nn.Module):
    """Reward and termination on arriving at a frame, from y of its last token.

    A reward is an event and a size: the event is rare and sharp, while the size may depend on things that no frame
    shows, and one regression of both would blur them.

    Args:
        width: d1.
        clock: whether time comes first in saying the size, see `Clock`; y then says the sign, and what is left.
    """

    def __init__(self, width: int, *, clock: bool = False) -> None:
        super().__init__()
        self.size = TwoHot(bins=41, low=-5.0, high=5.0)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 2 + self.size.bins)
        nn.init.zeros_(self.out.weight)  # rare events start at even odds, not at a random conviction
        nn.init.zeros_(self.out.bias)
        self.clock = Clock() if clock else None
        self.sign = nn.Linear(width, 1) if clock else None
        if self.sign is not None:
            nn.init.zeros_(self.sign.weight)
            nn.init.zeros_(self.sign.bias)

    def forward(self, y: Tensor) -> Said:
        """What y `(..., d1)` of a frame's last token says."""
        hidden = F.silu(self.hidden(y))
        event, terminated, size = self.out(hidden).to(y.dtype).split([1, 1, self.size.bins], dim=-1)
        sign = None if self.sign is None else self.sign(hidden).to(y.dtype).squeeze(-1)
        return Said(event.squeeze(-1), terminated.squeeze(-1), size, sign)

    def mean_size(self, said: Said, elapsed: Tensor) -> Tensor:
        """The expected size `(...)` of a reward, `elapsed` `(...)` int64 actions after the episode began."""
        size = self.size.mean(said.size)
        if self.clock is None or said.sign is None:
            return size
        above, below = self.clock(elapsed).unbind(-1)
        return size + torch.lerp(below, above, said.sign.sigmoid())

    def draw(self, y: Tensor, elapsed: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What comes of arriving at a frame, all `(...)`; without `draws` what is most likely.

        Returns:
            The reward that is paid and its expectation, whether the frame is terminal and how probable that is.
        """
        said = self(y)
        event, terminated, size = said.event.sigmoid(), said.terminated.sigmoid(), self.mean_size(said, elapsed)
        of_event, of_end = (0.5, 0.5) if draws is None else (draws.event, draws.terminated)
        return (event > of_event) * size, event * size, terminated > of_end, terminated

    def size_loss(self, said: Said, elapsed: Tensor, reward: Tensor) -> Tensor:
        """How wrong sign and size of a reward `(...)` are, `(...)`, where there was one."""
        if self.clock is None or said.sign is None:
            return self.size.loss(said.size, reward)
        above, below = self.clock(elapsed).unbind(-1)
        sign = F.binary_cross_entropy_with_logits(said.sign, (reward > 0).float(), reduction="none")
        return sign + self.size.loss(said.size, reward - torch.where(reward > 0, above, below))
