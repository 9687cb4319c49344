"""What frames are cut into and coded as, once all that stands still: each is coded once, however often it comes."""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.batch import Codes
from worldmodel.frames import FrameStage
from worldmodel.seeing import see_loose

BLOCK = 64  # frames coded together, always the same ones: a run that is resumed gets the bits of one that was not


class KnownCodes:
    """The codes of some frames, found out block by block when they are first asked for.

    Args:
        stage: that codes frames the same forever (`FrameStage.fixed`).
        frames: `(U, *observation shape)`.
    """

    def __init__(self, stage: FrameStage, frames: np.ndarray) -> None:
        self.stage, self.frames = stage, frames
        self.known = np.zeros(-(-len(frames) // BLOCK), dtype=bool)
        self.chunks = np.zeros(len(frames), dtype=int)  # of each frame: so that a GPU need not be asked
        valid = torch.zeros(len(frames), stage.cutting.max_chunks, dtype=torch.bool, device=stage.place.device)
        self.codes = Codes(valid.long(), valid, stage.place.new_zeros(*valid.shape, stage.code.size))

    @staticmethod
    def bytes_for(stage: FrameStage, frames: np.ndarray) -> int:
        """What the codes of so many frames take: posteriors, starts, and whether a chunk is there."""
        return (4 * stage.code.size + 8 + 1) * len(frames) * stage.cutting.max_chunks

    @torch.no_grad()
    def of(self, which: np.ndarray) -> Codes:
        """The codes of the frames `which` `(n,)`."""
        device = self.codes.posterior.device
        for block in np.unique(which // BLOCK):
            if not self.known[block]:
                here = slice(block * BLOCK, (block + 1) * BLOCK)
                _, chunks, posterior, _ = see_loose(self.stage, torch.from_numpy(self.frames[here]).to(device), None)
                for known, said in zip(self.codes, (chunks.start, chunks.valid, posterior)):
                    known[here, : said.shape[1]] = said
                self.chunks[here] = chunks.valid.sum(1).cpu().numpy()
                self.known[block] = True
        index, K = torch.from_numpy(which).to(device), self.chunks[which].max()
        return Codes(*(known[index, :K] for known in self.codes))
