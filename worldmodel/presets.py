"""Configs that are known to work, by name."""

from __future__ import annotations

from worldmodel.config import (
    CausalConfig,
    FrameConfig,
    LatentConfig,
    MainConfig,
    MambaConfig,
    ModelConfig,
    OutcomeConfig,
)
from worldmodel.specs import ActionSpec, ObservationSpec


def preset(name: str, observation: ObservationSpec, action: ActionSpec) -> ModelConfig:
    """The config called `name` for these observations and actions.

    `tiny` learns MiniGrid in minutes on two CPU cores; `small` is for 64x64 games on one GPU.
    """
    if observation.kind == "image":
        patch, chunks = 8, 4.0
    elif observation.kind == "grid":
        patch, chunks = 1, 4.0
    else:
        patch, chunks = 1, float(min(2, observation.shape[0]))
    if name == "tiny":
        return ModelConfig(
            observation=observation,
            action=action,
            frame=FrameConfig(patch=patch, chunks=chunks),
            outcome=OutcomeConfig(clock=True),
        )
    if name == "small":
        return ModelConfig(
            observation=observation,
            action=action,
            frame=FrameConfig(
                patch=patch, width=192, chunks=2 * chunks, max_chunks=16, encoder_layers="T2m2", decoder_layers="m2T2"
            ),
            latent=LatentConfig(groups=32, classes=16),
            causal=(CausalConfig(width=384, heads=6, encoder_layers="m3", decoder_layers="m3"),),
            main=MainConfig(width=512, heads=8, layers="m1T1m1T1m1T1m1T1", window=64),
            outcome=OutcomeConfig(clock=True),
            mamba=MambaConfig(d_state=64, headdim=64, chunk_size=64),
        )
    raise ValueError(f"there is no preset {name!r}; choose tiny or small")
