"""Configs that are known to work, by name."""

from __future__ import annotations

import math
from typing import Any

from worldmodel.config import (
    BesideConfig,
    CausalConfig,
    FrameConfig,
    LatentConfig,
    MainConfig,
    MambaConfig,
    ModelConfig,
    OutcomeConfig,
)
from worldmodel.specs import ActionSpec, ObservationSpec

SIZES = {"image": 8, "grid": 1, "vector": 1}  # of a patch


def preset(name: str, observation: ObservationSpec, action: ActionSpec) -> ModelConfig:
    """The config called `name` for these observations and actions.

    `tiny` learns MiniGrid in minutes on two CPU cores; `small` is for 64x64 games on one GPU.
    """
    if name == "tiny":
        frame = FrameConfig(**_cut_up(observation, 1))
        return ModelConfig(
            observation=observation,
            action=action,
            frame=frame,
            latent=_slotted(observation, frame, groups=3, classes=4),
            outcome=OutcomeConfig(clock=True),
        )
    if name == "small":
        frame = FrameConfig(width=192, encoder_layers="T2m2", decoder_layers="m2T2", **_cut_up(observation, 2))
        return ModelConfig(
            observation=observation,
            action=action,
            frame=frame,
            latent=_slotted(observation, frame, groups=4, classes=4),
            causal=(CausalConfig(width=384, heads=6, encoder_layers="m3", decoder_layers="m3"),),
            main=MainConfig(width=512, heads=8, layers="m1T1m1T1m1T1m1T1", window=64),
            outcome=OutcomeConfig(clock=True),
            mamba=MambaConfig(d_state=64, headdim=64, chunk_size=64),
        )
    raise ValueError(f"there is no preset {name!r}; choose tiny or small")


def _cut_up(observation: ObservationSpec, finer: int) -> dict[str, Any]:
    """What a frame stage is told of patches and chunks; `finer` times as many of these as in the smallest model."""
    wanted = {"image": 4, "grid": 4, "vector": 2, "choice": 1}
    cut: list[dict[str, Any]] = []
    for modality in observation.modalities:
        patch = SIZES.get(modality.kind, modality.shape[0])  # a choice is one patch
        patches = _patches(modality, patch)
        # Fewer chunks than patches, or a router has nothing to decide.
        cut.append({"patch": patch, "chunks": float(min(finer * wanted[modality.kind], max(1, patches - 1)))})
    beside = tuple(BesideConfig(**other) for other in cut[1:])
    return cut[0] | {"beside": beside, "max_chunks": 8 * finer + round(sum(other.chunks for other in beside))}


def _patches(modality: ObservationSpec, patch: int) -> int:
    axes = 1 if len(modality.shape) == 1 else 2
    return math.prod(-(-side // patch) for side in modality.shape[:axes])


def _slotted(observation: ObservationSpec, frame: FrameConfig, groups: int, classes: int) -> LatentConfig:
    """A slot for each patch of a chunk of the first modality, and of 16 slots as many each as there are for all."""
    patches = -(-_patches(observation.modalities[0], frame.patch) // round(frame.chunks))
    slots = patches * max(1, 16 // patches)
    return LatentConfig(slots=slots, groups=groups * slots, classes=classes)
