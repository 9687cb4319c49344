"""A trained model that goes on learning on pictures twice as high and wide, and does not start over.

One more encoder and decoder come around the outermost ones and start from their weights (the idea of
S. Mueller, "H-Net VLMs: some loose thoughts"); the chunks, the code and all that is behind them stay whole.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from worldmodel.config import ModelConfig
from worldmodel.frames import FrameStage
from worldmodel.outer import CHILDREN


def grown_config(config: ModelConfig) -> ModelConfig:
    """The config of a model that has grown once more. Its targets have arrived, wherever they came from.

    Raises:
        ValueError: observations are no images.
    """
    spec = config.observation
    return replace(
        config,
        observation=replace(spec, shape=(*(2 * size for size in spec.shape[:2]), *spec.shape[2:])),
        frame=replace(config.frame, grown=config.frame.grown + 1, chunks_first=0.0),
        time=replace(config.time, changes_first=0.0),
        causal=tuple(replace(stage, extra_first=0.0) for stage in config.causal),
    )


@torch.no_grad()
def start_outermost(stage: FrameStage) -> None:
    """Give the outermost of a frame stage's outer stages the weights of what it is around.

    Its two projections stay at zero, so it adds nothing yet.
    """
    assert stage.outer is not None
    *_, new = stage.outer.stages
    inside = stage if len(stage.outer.stages) == 1 else stage.outer.stages[-2]
    for name in ("embed", "encoder", "decoder"):
        getattr(new, name).load_state_dict(getattr(inside, name).state_dict())
    new.place.copy_(inside.place.repeat_interleave(CHILDREN, dim=0))
    new.decoder_place.copy_(inside.decoder_place.repeat_interleave(CHILDREN, dim=0))
