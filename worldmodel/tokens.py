"""What the causal stages know of tokens beside their content, and what the contents are made of.

Shape suffixes: B rows, L tokens, M chosen tokens, K chunks, P patches, d width d0, A entries of an action vector,
Z latent width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.kernels.compaction import take
from worldmodel.loops import LoopNotes
from worldmodel.router import Routing
from worldmodel.side import action_width


@dataclass
class Side:
    """What comes to tokens from the side: `(B, L, ...)` for whole rows, `(B, ...)` for one token a row.

    Attributes:
        action: `(..., A)` action vector of the token's frame, the same for all of its tokens.
        frame: `(...)` int64, the number of the token's frame in its piece, from 1.
        values: `(..., Z + A)` [latent | action] for value embeddings, no latent at F_t; None where nobody asks for it.
        path: `(..., path width)` what the parallel encoder says; None on the outermost way in, or without one.
        certainty: `(...)` how sure the router was that a chunk starts here; None without a router.
    """

    action: Tensor
    frame: Tensor
    values: Tensor | None = None
    path: Tensor | None = None
    certainty: Tensor | None = None

    def take(self, index_BM: Tensor, path: Tensor | None = None, certainty: Tensor | None = None) -> Side:
        """The tokens at `index_BM`, with what the stage itself has to say of them."""
        values = None if self.values is None else take(self.values, index_BM)
        return Side(take(self.action, index_BM), self.frame.gather(1, index_BM), values, path, certainty)


@dataclass
class Marks:
    """Which of the tokens of whole rows are what, all `(B, L)`, bool but for the last two.

    Attributes:
        is_frame: F_t.
        reset: a piece begins here and nothing is remembered; always an F_t.
        present: False at pads, which lie to the right.
        key: int64, the noise key of the token's row of frames.
        place: int64, its place in that row.
    """

    is_frame: Tensor
    reset: Tensor
    present: Tensor
    key: Tensor
    place: Tensor

    def take(self, index_BM: Tensor, kept_BM: Tensor) -> Marks:
        """Those of the tokens at `index_BM`, of which only `kept_BM` are real."""
        is_frame, reset = (flag.gather(1, index_BM) & kept_BM for flag in (self.is_frame, self.reset))
        return Marks(is_frame, reset, kept_BM, self.key.gather(1, index_BM), self.place.gather(1, index_BM))


@dataclass
class Said:
    """What the stages have to say of whole rows beside their output.

    Attributes:
        routing: what the routers said, by the name of their stage.
        loops: how a looped core went; None without one.
    """

    routing: dict[str, Routing]
    loops: LoopNotes | None = None


def number_in_piece(reset_BL: Tensor) -> Tensor:
    """The number of each token in its own piece, from 1: `(B, L)` int64."""
    place = torch.arange(reset_BL.shape[1], device=reset_BL.device)
    return place - torch.where(reset_BL, place, 0).cummax(1).values + 1


def number_frames(is_frame_BL: Tensor, reset_BL: Tensor) -> Tensor:
    """The number of each token's frame in its own piece, from 1: `(B, L)` int64."""
    so_far = is_frame_BL.long().cumsum(1)
    before = torch.where(reset_BL, so_far - 1, 0).cummax(1).values
    return so_far - before


def lengths_before(start_nK: Tensor, valid_nK: Tensor) -> Tensor:
    """Patches from the start of the chunk before to that of each: `(..., K)` int64, 0 for the first and absent ones."""
    before = torch.cat([start_nK[..., :1], start_nK[..., :-1]], dim=-1)
    return (start_nK - before) * valid_nK


class Contents(nn.Module):
    """The contents of tokens, of width d0.

    A chunk token says what its latent is, where the chunk starts, and how long the chunk BEFORE it was: how long it is
    itself must be predicted, not given away. Where patches are followed through time it also says which of them are
    new. F_t is a learned vector, and the action if that is to be a token.
    """

    def __init__(self, config: ModelConfig, patches: int, latent_width: int) -> None:
        super().__init__()
        d = config.frame.width
        self.latent = nn.Linear(latent_width, d)
        self.start = nn.Parameter(torch.randn(patches, d) * 0.1)
        self.length = nn.Parameter(torch.zeros(patches + 1, d))
        self.frame = nn.Parameter(torch.randn(d) * 0.5)
        self.changed = nn.Linear(patches, d, bias=False) if config.time.layers else None
        self.action = None
        if config.side.action == "token":
            self.action = nn.Linear(action_width(config.action), d, bias=False)

    def chunks(self, latent: Tensor, start: Tensor) -> Tensor:
        """What chunks hold and where: `(..., Z)` and `(...)` give `(..., d)`."""
        return self.latent(latent) + self.start[start]

    def tokens(self, content: Tensor, length: Tensor, changed: Tensor | None) -> Tensor:
        """Tokens from `chunks`.

        Args:
            content: `(..., d)`.
            length: `(...)` int64, patches from the start of the chunk before to this one's; 0 for the first.
            changed: which patches of the frame are new, `(..., P)` bool, if they are followed through time.
        """
        token = content + self.length[length]
        return token if self.changed is None or changed is None else token + self.changed(changed.to(token.dtype))

    def frames(self, action: Tensor) -> Tensor:
        """F_t for action vectors `(..., A)`: `(..., d)`."""
        frame = self.frame.expand(*action.shape[:-1], -1)
        return frame if self.action is None else frame + self.action(action)
