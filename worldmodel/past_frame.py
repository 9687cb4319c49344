"""The frame before and the action between, shown to the frame encoder (as in Δ-IRIS): a code may then say what is new.

Shape suffixes: n frames, P patches, V values of a patch, A entries of an action vector, D width d0.
"""

from __future__ import annotations

from torch import Tensor, nn


class PastFrame(nn.Module):
    """What is added to the patches of a frame; nothing at first, and nothing where no frame came before."""

    def __init__(self, values: int, action_width: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(values, width, bias=False)
        self.action = nn.Linear(action_width, width, bias=False)
        nn.init.zeros_(self.patches.weight)
        nn.init.zeros_(self.action.weight)

    def forward(self, before_nPV: Tensor, action_nA: Tensor, known_n: Tensor) -> Tensor:
        """`(n, P, D)`.

        Args:
            before_nPV: patches of the frame before; anything where it is not known.
            action_nA: action vector between the two.
            known_n: bool.
        """
        said = self.patches(before_nPV) + self.action(action_nA).unsqueeze(1)
        return said * known_n.view(-1, 1, 1)
