"""Which rule or router decides where the chunks of a frame start."""

from __future__ import annotations

import math

from torch import Tensor

from worldmodel.boundaries import Change, Random
from worldmodel.config import FrameConfig
from worldmodel.modalities import ModalityRouters
from worldmodel.router import Router, Threshold
from worldmodel.surprise import Surprise
from worldmodel.trying import Trying


def frame_router(config: FrameConfig, part: Tensor, counts: list[int]) -> Threshold | ModalityRouters | None:
    """What decides where the chunks of a frame start; None where that is fixed.

    Args:
        config: of the frame stage.
        part: `(P,)` int64, the modality of each patch.
        counts: how many patches each modality has.

    Raises:
        ValueError: there can be no such number of chunks.
    """
    if config.boundary in ("stride", "none"):
        for (_, chunks), patches in zip(config.targets, counts, strict=True):
            if config.boundary == "stride" and not 1 <= chunks <= patches:
                raise ValueError(f"a frame of {patches} patches cannot have {chunks} chunks")
        return None
    names = ["", *(f"frame.beside.{i}." for i in range(len(config.beside)))]
    each = zip(names, config.targets, counts, strict=True)
    routers = [_of_modality(config, name, *target, patches, len(part)) for name, target, patches in each]
    if len(routers) == 1:
        return routers[0]
    if config.max_chunks < (least := sum(max(target) for target in config.targets)):
        raise ValueError(f"max_chunks={config.max_chunks} is below the {least} chunks of all modalities together")
    if config.max_chunks < (whole := sum(round(last) for _, last in config.targets)):
        raise ValueError(
            f"max_chunks={config.max_chunks} is below the {whole} chunks of all modalities together, a whole number in "
            f"each, which they have while a stride is held: set it to {whole} or more"
        )
    if all(router is None for router in routers):
        raise ValueError(f"{config.boundary} boundaries need a modality that is to have more than one chunk")
    return ModalityRouters(routers, part)


def _of_modality(
    config: FrameConfig, where: str, first: float, last: float, patches: int, of_all: int
) -> Threshold | None:
    """The router of one modality; None if that is one of several, and always one chunk."""
    if config.beside and last == 1 and first <= 1:
        return None
    for name, chunks in {"chunks": last, "chunks_first": first or last}.items():
        if not 1 < chunks < patches or config.max_chunks < chunks:
            raise ValueError(
                f"{config.boundary} boundaries need a number of chunks between 1 and the {patches} patches of a frame, "
                f"both exclusive, and max_chunks not below it, not {where}{name}={chunks}, "
                f"max_chunks={config.max_chunks}"
            )
    rate = (last - 1) / (patches - 1)
    if config.boundary == "change":
        return Change(rate, of_all)
    if config.boundary == "random":
        return Random(rate)
    if config.boundary == "surprise":
        return Surprise(rate)
    if config.boundary == "tried":
        return Trying(rate, of_all, config.width)
    return Router(config.width, rate, patience=math.inf)  # the scores of frames stand still after the pictures
