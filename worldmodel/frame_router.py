"""Which rule or router decides where the chunks of a frame start."""

from __future__ import annotations

import math

from worldmodel.boundaries import Change, Random
from worldmodel.config import FrameConfig
from worldmodel.router import Router, Threshold
from worldmodel.trying import Trying


def frame_router(config: FrameConfig, patches: int) -> Threshold | None:
    """What decides where the chunks of a frame of P `patches` start; None where that is fixed.

    Raises:
        ValueError: there can be no such number of chunks.
    """
    if config.boundary in ("stride", "none"):
        if config.boundary == "stride" and not 1 <= config.chunks <= patches:
            raise ValueError(f"a frame of {patches} patches cannot have {config.chunks} chunks")
        return None
    for name, chunks in {"chunks": config.chunks, "chunks_first": config.chunks_first or config.chunks}.items():
        if not 1 < chunks < patches or config.max_chunks < chunks:
            raise ValueError(
                f"{config.boundary} boundaries need a number of chunks between 1 and the {patches} patches of a frame, "
                f"both exclusive, and max_chunks not below it, not {name}={chunks}, max_chunks={config.max_chunks}"
            )
    rate = (config.chunks - 1) / (patches - 1)
    if config.boundary == "change":
        return Change(rate, patches)
    if config.boundary == "random":
        return Random(rate)
    if config.boundary == "tried":
        return Trying(rate, patches, config.width)
    return Router(config.width, rate, patience=math.inf)  # the scores of frames stand still after the pictures
