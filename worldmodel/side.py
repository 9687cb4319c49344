"""Side vectors: what fills the missing dimensions when the width grows.

H-Net widens by appending a learned constant, because a linear layer would bend the gradient. That constant carries
nothing, so here a part of it is the action: `[content | action | learned rest]`, one side vector a frame, the same for
all tokens of the frame. Another part may come from a narrower encoder that runs beside the main path and is chunked as
it is. All parts start at zero, so at step 0 the model is a plain H-Net. To weigh the idea, the action can be added
instead, or go into the content of F_t alone (`SideConfig.action`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import SideConfig
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


def action_width(spec: ActionSpec) -> int:
    """Entries of an `action_vector`."""
    return spec.width + 1


class Widening(nn.Module):
    """One widening: `[x | action | path | learned rest]`, or with the action added to `[x | path | learned rest]`.

    Args:
        narrow, wide: the widths before and after.
        config: how the action enters.
        action_width: entries of `action_vector`.
        path: width of the parallel encoder's part, 0 without one.

    Raises:
        ValueError: the width does not grow enough, so there would be no place for the action.
    """

    def __init__(self, narrow: int, wide: int, config: SideConfig, action_width: int, path: int = 0) -> None:
        super().__init__()
        size = wide - narrow - path
        if size < 2:
            beside = f", {path} of it for the parallel path" if path else ""
            raise ValueError(f"side vectors need a growing width, not {narrow} -> {wide}{beside}")
        self.added = config.action == "add"
        self.action = None
        if config.action != "token":
            entries = wide if self.added else size // 2
            self.action = nn.Linear(action_width, entries, bias=False)
            nn.init.zeros_(self.action.weight)
        self.path = nn.Linear(path, path, bias=False) if path else None
        if self.path is not None:
            nn.init.zeros_(self.path.weight)
        self.rest = nn.Parameter(torch.zeros(size - size // 2 if config.action == "padding" else size))

    def forward(self, x: Tensor, action: Tensor, path: Tensor | None = None) -> Tensor:
        """`(..., narrow)` and what broadcasts to it, `(..., action_width)` and `(..., path)`, to `(..., wide)`."""
        leading = x.shape[:-1]
        parts = [x]
        if self.action is not None and not self.added:
            parts.append(self.action(action).expand(*leading, -1))
        if self.path is not None and path is not None:
            parts.append(self.path(path).expand(*leading, -1))
        wide = torch.cat([*parts, self.rest.expand(*leading, -1)], dim=-1)
        return wide + self.action(action) if self.action is not None and self.added else wide
