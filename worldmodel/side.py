"""Side vectors: what fills the missing dimensions when the width grows.

H-Net widens by appending a learned constant, because a linear layer would bend the gradient. That constant carries
nothing, so here a part of it is the action: `[content | action | learned rest]`, one side vector a frame, the same for
all tokens of the frame. Both parts start at zero, so at step 0 the model is a plain H-Net.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.specs import ActionSpec


def action_vector(action: Tensor, first: Tensor, spec: ActionSpec) -> Tensor:
    """Actions as vectors, with a last entry that says "no action".

    Args:
        action: `(..., *spec.shape)`.
        first: `(...)` bool, frames that begin an episode: no action led there, whatever `action` says.

    Returns:
        `(..., spec.width + 1)` float32: one-hots side by side, or the box scaled to [-1, 1].
    """
    none = first.unsqueeze(-1)
    action = action.masked_fill(first if spec.kind == "discrete" else none, 0)
    if spec.kind == "box":
        vector = (2 * (action.float() - spec.low) / (spec.high - spec.low) - 1).clamp(-1, 1)
    elif spec.kind == "discrete":
        vector = F.one_hot(action.long(), spec.sizes[0]).float()
    else:
        parts = [F.one_hot(action[..., i].long(), size).float() for i, size in enumerate(spec.sizes)]
        vector = torch.cat(parts, dim=-1)
    return torch.cat([vector.masked_fill(none, 0.0), none.to(vector.dtype)], dim=-1)


class SideVector(nn.Module):
    """The side vector of one widening, half of it from the action, half learned.

    Args:
        narrow, wide: the widths before and after.
        action_width: entries of `action_vector`.

    Raises:
        ValueError: the width does not grow, so there would be no place for the action.
    """

    def __init__(self, narrow: int, wide: int, action_width: int) -> None:
        super().__init__()
        if wide - narrow < 2:
            raise ValueError(f"side vectors need a growing width, not {narrow} -> {wide}")
        size = wide - narrow
        self.action = nn.Linear(action_width, size // 2, bias=False)
        nn.init.zeros_(self.action.weight)
        self.rest = nn.Parameter(torch.zeros(size - size // 2))

    def forward(self, action: Tensor) -> Tensor:
        """`(..., action_width)` to `(..., wide - narrow)`."""
        rest = self.rest.expand(*action.shape[:-1], -1)
        return torch.cat([self.action(action), rest], dim=-1)
