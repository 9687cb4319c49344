"""Models of a few thousand weights and batches of noise for them, in every shape that the config allows."""

from __future__ import annotations

from dataclasses import replace

import torch

from worldmodel.batch import Batch
from worldmodel.config import (
    BesideConfig,
    CausalConfig,
    FrameConfig,
    LatentConfig,
    LoopConfig,
    MainConfig,
    MambaConfig,
    ModelConfig,
    OutcomeConfig,
    SideConfig,
)
from worldmodel.model import WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec

# Windows are shorter than the test rows, so that rings of keys wrap around; chunk_size is shorter than a row, too.
STRIDE = ModelConfig(
    observation=ObservationSpec(shape=(12, 16, 3)),
    action=ActionSpec(sizes=(5,)),
    frame=FrameConfig(patch=4, width=16, heads=2, encoder_layers="T1m1", decoder_layers="m1T1", chunks=4.0),
    latent=LatentConfig(groups=3, classes=4),
    causal=(CausalConfig(width=24, heads=2, encoder_layers="m1", decoder_layers="m1", window=7),),
    main=MainConfig(width=32, heads=2, layers="m1T1", window=4),
    mamba=MambaConfig(d_state=4, headdim=8, chunk_size=8),
)
LEARNED = replace(STRIDE, frame=replace(STRIDE.frame, boundary="learned", chunks=4.0, max_chunks=6))
EXTRA = replace(
    LEARNED, causal=(replace(STRIDE.causal[0], extra=1.0, max_extra=2, encoder_layers="m1t1", decoder_layers="t1m1"),)
)
# Every mechanism is in one of these at least; tests/worldmodel/test_mechanisms.py draws them in any combination.
INNER = replace(STRIDE.causal[0], width=28)
DEEP = replace(EXTRA, causal=(replace(EXTRA.causal[0], extra=2.0, max_extra=3), replace(INNER, extra=1.0)))
# A picture, a few numbers and one of several choices.
RECORD = ObservationSpec.record(
    [
        ObservationSpec(name="heading", kind="choice", shape=(4,), scale=1.0),
        ObservationSpec(name="camera", shape=(8, 12, 3)),
        ObservationSpec(name="speed", kind="vector", shape=(5,), dtype="float32", scale=1.0),
    ]
)
BESIDE = (BesideConfig(patch=1, chunks=2.0), BesideConfig(patch=4))
CONFIGS = {
    "stride": STRIDE,
    "record": replace(
        STRIDE,
        observation=RECORD,
        frame=replace(STRIDE.frame, chunks=3.0, beside=BESIDE),
        outcome=OutcomeConfig(clock=True),
    ),
    "record_learned": replace(
        EXTRA, observation=RECORD, frame=replace(LEARNED.frame, chunks=3.0, max_chunks=8, beside=BESIDE)
    ),
    "learned": LEARNED,
    "extra": EXTRA,
    "stride_extra": replace(STRIDE, causal=(replace(STRIDE.causal[0], extra=1.0, max_extra=1),)),
    "none": replace(STRIDE, frame=replace(STRIDE.frame, boundary="none", patch=6)),
    "change": replace(LEARNED, frame=replace(LEARNED.frame, boundary="change", order="hilbert")),
    "random": replace(LEARNED, frame=replace(LEARNED.frame, boundary="random")),
    "tried": replace(LEARNED, frame=replace(LEARNED.frame, boundary="tried")),
    "surprise": replace(LEARNED, frame=replace(LEARNED.frame, boundary="surprise")),
    "masked": replace(LEARNED, frame=replace(LEARNED.frame, mask=0.3)),
    "gaussian": replace(LEARNED, latent=LatentConfig(kind="gaussian", groups=5)),
    "slotted": replace(LEARNED, latent=LatentConfig(groups=6, classes=4, slots=2)),
    "multi_discrete": replace(STRIDE, action=ActionSpec(kind="multi_discrete", sizes=(3, 2, 4))),
    "box": replace(LEARNED, action=ActionSpec(kind="box", sizes=(2,), low=-2.0, high=3.0)),
    "vector": replace(
        STRIDE,
        observation=ObservationSpec(shape=(5,), dtype="float32", kind="vector", scale=1.0),
        frame=replace(STRIDE.frame, patch=1, chunks=2.0),
    ),
    "vector_learned": replace(
        EXTRA,
        observation=ObservationSpec(shape=(5,), dtype="float32", kind="vector", scale=1.0),
        frame=replace(LEARNED.frame, patch=1, chunks=2.0, max_chunks=4),
    ),
    "deep": DEEP,
    # Chunks that reach over frames, in both stages, and know how long they were.
    "merging": replace(
        DEEP,
        causal=(
            replace(EXTRA.causal[0], frame_boundary=False, extra=1.5, lengths=True),
            replace(INNER, frame_boundary=False, extra=0.7, lengths=True, residual="none"),
        ),
    ),
    # Told from all sides.
    "told": replace(
        EXTRA,
        main=replace(EXTRA.main, width=48),
        side=SideConfig(path=8, values=True),
        causal=(replace(EXTRA.causal[0], cut_off=True, residual="attention"),),
    ),
    "bare": replace(
        STRIDE,
        main=replace(STRIDE.main, width=48),
        side=SideConfig(path=8, values=True),
        causal=(replace(STRIDE.causal[0], cut_off=True, residual="mamba"),),
    ),
    "looped": replace(
        EXTRA, main=replace(EXTRA.main, loop=LoopConfig(layers="T1", coda="t1", loops=2.0, max_loops=4, certainty=True))
    ),
    "added": replace(EXTRA, side=SideConfig(action="add")),
    "token": replace(DEEP, side=SideConfig(action="token")),
    "grid": replace(
        STRIDE,
        observation=ObservationSpec(shape=(3, 4, 2), kind="grid", scale=10.0),
        frame=replace(STRIDE.frame, patch=1, chunks=3.0),
        outcome=OutcomeConfig(clock=True),
    ),
}


def random_frames(config: ModelConfig, n: int, seed: int) -> torch.Tensor:
    """`n` different observations of noise."""
    return random_observations(config.observation, n, seed)


def random_observations(spec: ObservationSpec, n: int, seed: int) -> torch.Tensor:
    """The same, of any kind."""
    g = torch.Generator().manual_seed(seed)
    if spec.parts:
        each = (random_observations(part, n, seed + i) for i, part in enumerate(spec.parts))
        return torch.cat([values.flatten(1).view(torch.uint8) for values in each], dim=1)
    if spec.kind == "choice":
        return torch.eye(spec.shape[0], dtype=torch.uint8)[torch.randint(0, spec.shape[0], (n,), generator=g)]
    if spec.dtype == "uint8":
        high = 256 if spec.kind == "image" else 11
        return torch.randint(0, high, (n, *spec.shape), generator=g, dtype=torch.uint8)
    return torch.randn(n, *spec.shape, generator=g)


def random_actions(config: ModelConfig, *leading: int, seed: int) -> torch.Tensor:
    """Valid actions of any kind."""
    g = torch.Generator().manual_seed(seed)
    spec = config.action
    if spec.kind == "box":
        return spec.low + (spec.high - spec.low) * torch.rand(*leading, *spec.shape, generator=g)
    parts = [torch.randint(0, size, leading, generator=g) for size in spec.sizes]
    return parts[0] if spec.kind == "discrete" else torch.stack(parts, -1)


def random_batch(config: ModelConfig, rows: int = 3, length: int = 9, seed: int = 0, distinct: int = 14) -> Batch:
    """Rows of several pieces: row 0 one whole episode, row 1 from mid-episode into the next, row 2 three pieces."""
    g = torch.Generator().manual_seed(seed)
    first = torch.zeros(rows, length, dtype=torch.bool)
    start = torch.zeros(rows, length, dtype=torch.bool)
    first[0::3, 0] = True
    start[1::3, 0] = True
    first[1::3, length // 3] = True
    first[2::3, 0] = True
    start[2::3, length // 2] = True
    first[2::3, length // 2 + 1] = True
    start |= first
    slot = torch.arange(length).expand(rows, -1)
    began = torch.where(start, slot, 0).cummax(1).values
    elapsed = slot - began + torch.where(first.gather(1, began), 0, 7)  # what begins in mid-episode begins late
    action = random_actions(config, rows, length, seed=seed + 1)
    action[first] = 0
    reward = torch.rand(rows, length, generator=g) * (torch.rand(rows, length, generator=g) < 0.3) * ~first
    return Batch(
        frames=random_frames(config, distinct, seed + 2),
        index=torch.randint(0, distinct, (rows, length), generator=g),
        action=action,
        reward=reward,
        terminated=(torch.rand(rows, length, generator=g) < 0.2) & ~first,
        first=first,
        start=start,
        elapsed=elapsed,
    )


def random_model(config: ModelConfig, seed: int = 0) -> WorldModel:
    """A model in which nothing is zero any more, so that everything matters; routers have found their quantiles."""
    torch.manual_seed(seed)
    model = WorldModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        model.train()
        for i in range(8):
            model(random_batch(config, rows=3, seed=100 + i), torch.arange(3))
    return model.eval()
