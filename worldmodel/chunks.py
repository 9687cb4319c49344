"""Where the chunks of frames are.

Shape suffixes: n frames, P patches, K chunks of the fullest frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Chunks:
    """Where the chunks of some frames are.

    Attributes:
        start: `(n, K)` int64, first patch of each chunk; 0 where absent.
        valid: `(n, K)` bool, which of the K exist.
        of_patch: `(n, P)` int64, the chunk that each patch belongs to; -1 where it has not changed.
        gate: `(n, P)` STE of the router's confidence, or None where boundaries are fixed.
    """

    start: Tensor
    valid: Tensor
    of_patch: Tensor
    gate: Tensor | None = None

    @classmethod
    def at(cls, start: Tensor, valid: Tensor, patches: int, changed: Tensor | None = None) -> Chunks:
        """From starts alone, as a dream generates them; of the `changed` patches `(n, P)` only, if those are given."""
        place = torch.arange(patches, device=start.device)
        begun = (start.unsqueeze(-1) <= place) & valid.unsqueeze(-1)
        of_patch = begun.sum(1) - 1
        return cls(start, valid, of_patch if changed is None else of_patch.masked_fill(~changed, -1))

    def rows(self, index: Tensor) -> Chunks:
        """The chunks of some of the frames, `index` `(m,)`."""
        gate = None if self.gate is None else self.gate[index]
        return Chunks(self.start[index], self.valid[index], self.of_patch[index], gate)
