"""What is around a frame stage that has grown: stages that see and paint pictures twice as high and wide, each.

The patches of the frame stage stay where they were and cover more pixels: a picture that was doubled g times has the
same P patches, 2^g times as high and wide. An outer stage cuts each into 2x2 children of the size in pixels that the
model was born with, runs an encoder over them and merges the four into one vector again; the way back is its mirror.
All of it enters beside the plain path (the picture at half the size in, the painted picture at twice the size out),
through two projections that begin at zero: a model that has just grown says of a large picture what it said of the
small one.

Attention and Mamba-2 go over the four children of a patch and no further. What lies further apart meets in the stages
inside, where a patch is one token; over all 4^g P children attention would cost the square of them
(docs/design.md has the measurement).

Shape suffixes: n frames, P patches of the frame stage, N patches of the stage inside (P, 4 P, ...), S values of a patch
at some resolution, V values of the smallest patch, D width d0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.layers import Stack

CHILDREN = 4  # of a patch, row by row


class OuterStage(nn.Module):
    """One doubling: encoder and decoder of the 4 N children around a stage of N patches."""

    def __init__(self, config: ModelConfig, patches: int, values: int) -> None:
        super().__init__()
        frame, D = config.frame, config.frame.width
        self.embed = nn.Linear(values, D)
        self.place = nn.Parameter(torch.randn(CHILDREN * patches, D) * 0.5)
        self.encoder = Stack(frame.encoder_layers, D, heads=frame.heads, mamba=config.mamba, causal=False)
        self.merge = nn.Linear(CHILDREN * D, D, bias=False)
        self.decoder_place = nn.Parameter(torch.randn(CHILDREN * patches, D) * 0.5)
        self.decoder = Stack(frame.decoder_layers, D, heads=frame.heads, mamba=config.mamba, causal=False)
        self.paint = nn.Linear(D, values)
        for zero in (self.merge.weight, self.paint.weight, self.paint.bias):
            nn.init.zeros_(zero)

    def encode(self, children_nCV: Tensor, beside_nCD: Tensor | None) -> Tensor:
        """What the stage inside is to see beside its own patches: `(n, N, D)`.

        Args:
            children_nCV: pixels of the `C = 4 N` children.
            beside_nCD: the same from the stage around this one, if there is one.
        """
        n, C, _ = children_nCV.shape
        x = self.embed(children_nCV) + self.place
        if beside_nCD is not None:
            x = x + beside_nCD
        h = self.encoder(x.view(-1, CHILDREN, x.shape[-1]))
        return self.merge(h.view(n, C // CHILDREN, -1))

    def decode(self, inside_nND: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the children, `(n, 4 N, D)`, and what they add to the picture, `(n, 4 N, V)`."""
        x = inside_nND.repeat_interleave(CHILDREN, dim=1) + self.decoder_place
        h = self.decoder(x.view(-1, CHILDREN, x.shape[-1])).view_as(x)
        return h, self.paint(h)


class OuterStages(nn.Module):
    """All the doublings of a frame stage.

    Args:
        config: with `frame.grown` above 0.
        patches: P.
        values: V.
    """

    def __init__(self, config: ModelConfig, patches: int, values: int) -> None:
        super().__init__()
        self.channels = config.observation.shape[2]
        # The innermost first: those that were there before keep their names when one more comes around them.
        self.stages: Any = nn.ModuleList(
            OuterStage(config, patches * CHILDREN**i, values) for i in range(config.frame.grown)
        )

    def encode(self, patches_nPS: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of the patches as the frame stage was born to see them, `(n, P, V)`, and what comes beside them.

        Returns:
            The pixels, averaged, and `(n, P, D)` to be added to their embedding.
        """
        beside: Tensor | None = None
        for depth in range(len(self.stages), 0, -1):
            beside = self.stages[depth - 1].encode(self._split(patches_nPS, depth), beside)
            patches_nPS = self._halve(patches_nPS)
        assert beside is not None
        return patches_nPS, beside

    def shrink(self, patches_nPS: Tensor) -> Tensor:
        """Pixels of the patches as the frame stage was born to see them, averaged: `(n, P, V)`."""
        for _ in self.stages:
            patches_nPS = self._halve(patches_nPS)
        return patches_nPS

    def decode(self, inside_nPD: Tensor, painted_nPV: Tensor) -> Tensor:
        """Paint the large picture, `(n, P, S)`.

        Args:
            inside_nPD: vectors of the patches behind the frame stage's decoder.
            painted_nPV: what the frame stage paints.
        """
        for depth, stage in enumerate(self.stages, 1):
            inside_nPD, detail = stage.decode(inside_nPD)
            painted_nPV = self._double(painted_nPV) + self._join(detail, depth)
        return painted_nPV

    def _squares(self, patches_nPS: Tensor) -> Tensor:
        """Patches as pictures, `(n, P, side, side, C)`."""
        side = round((patches_nPS.shape[-1] / self.channels) ** 0.5)
        return patches_nPS.unflatten(-1, (side, side, self.channels))

    def _halve(self, patches_nPS: Tensor) -> Tensor:
        """The picture at half the size, each pixel the mean of four."""
        squares = self._squares(patches_nPS)
        # One axis after the other: so the mean of four equal pixels is that pixel, to the bit.
        return squares.unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3).flatten(2)

    def _double(self, patches_nPS: Tensor) -> Tensor:
        """The picture at twice the size, each pixel four times."""
        return self._squares(patches_nPS).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).flatten(2)

    def _split(self, patches_nPS: Tensor, times: int) -> Tensor:
        """Patches into 2x2 children, and these into theirs: `(n, 4^times P, S / 4^times)`."""
        for _ in range(times):
            halves = self._squares(patches_nPS).unflatten(3, (2, -1)).unflatten(2, (2, -1))  # (n, P, 2, h, 2, w, C)
            patches_nPS = halves.transpose(3, 4).flatten(4).flatten(1, 3)
        return patches_nPS

    def _join(self, children_nPS: Tensor, times: int) -> Tensor:
        """The inverse of `_split`."""
        for _ in range(times):
            squares = self._squares(children_nPS).unflatten(1, (-1, 2, 2))  # (n, P, 2, 2, h, w, C)
            children_nPS = squares.transpose(3, 4).flatten(2)
        return children_nPS
