"""What frames were coded as, once encoder and slots stand still: each is coded once, however often it comes again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldmodel.frames import FrameStage
from worldmodel.seeing import see_loose

BLOCK = 64  # frames coded together, always the same ones: a run that is resumed gets the bits of one that was not


class KnownCodes:
    """The posteriors of some frames, found out block by block when they are first asked for.

    Args:
        stage: that codes frames the same forever (`FrameStage.fixed`).
        frames: `(U, *observation shape)`.
    """

    def __init__(self, stage: FrameStage, frames: np.ndarray) -> None:
        self.stage, self.frames = stage, frames
        self.known = np.zeros(-(-len(frames) // BLOCK), dtype=bool)
        self.posterior = stage.place.new_zeros(len(frames), stage.cutting.max_chunks, stage.code.size)

    @staticmethod
    def bytes_for(stage: FrameStage, frames: np.ndarray) -> int:
        """What the posteriors of so many frames take."""
        return 4 * len(frames) * stage.cutting.max_chunks * stage.code.size

    @torch.no_grad()
    def of(self, which: np.ndarray) -> Tensor:
        """The posteriors `(n, K, parameters)` of the frames `which` `(n,)`."""
        for block in np.unique(which // BLOCK):
            if not self.known[block]:
                here = slice(block * BLOCK, (block + 1) * BLOCK)
                frames = torch.from_numpy(self.frames[here]).to(self.posterior.device)
                self.posterior[here] = see_loose(self.stage, frames, None)[2]
                self.known[block] = True
        return self.posterior[torch.from_numpy(which).to(self.posterior.device)]
