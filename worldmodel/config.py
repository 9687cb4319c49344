"""Every knob of the model: small frozen dataclasses, one a part, and the presets built from them.

A config travels as JSON beside the weights (`config.json`), so it holds only numbers, strings, tuples and configs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def _check_numbers(config: Any) -> None:
    """Refuse text, nothing, zero and less where a part needs a number: in a layer it would fail in riddles.

    Raises:
        ValueError: names the part, the field and its value.
    """
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), type(f.default)
        if kind not in (int, float):
            continue
        wanted = "a whole number" if kind is int else "a number"
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise ValueError(f"{type(config).__name__}: {f.name} must be {wanted}, not {value!r}")
        zero = f.default == 0 or f.name in MAY_BE_ZERO
        if not (value >= 0 if zero else value > 0):
            raise ValueError(f"{type(config).__name__}: {f.name} must be {wanted} above 0, not {value!r}")


MAY_BE_ZERO = ("max_extra", "unimix")


def _check_sizes(name: str, sizes: tuple[int, ...]) -> None:
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"{name} must be whole numbers above 0, not {sizes!r}")


@dataclass(frozen=True, kw_only=True)
class ObservationSpec:
    """What one observation looks like.

    Attributes:
        shape: `(H, W, C)` for images and symbolic grids, `(D,)` for vectors.
        dtype: numpy name of the values' type, `"uint8"` or `"float32"`.
        kind: `"image"` (pixels), `"grid"` (small integers, one cell a patch) or `"vector"`.
        offset, scale: the model sees `(value - offset) / scale`. Images use 0 and 255.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    kind: str = "image"
    offset: float = 0.0
    scale: float = 255.0

    def __post_init__(self) -> None:
        if self.kind not in ("image", "grid", "vector"):
            raise ValueError(f"observation kind must be image, grid or vector, not {self.kind!r}")
        if len(self.shape) != (1 if self.kind == "vector" else 3):
            raise ValueError(f"an observation of kind {self.kind!r} cannot have the shape {self.shape}")
        _check_sizes("an observation's shape", self.shape)


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What one action looks like.

    Attributes:
        kind: `"discrete"` (an int64 scalar), `"multi_discrete"` (int64, an entry a choice) or `"box"` (float32 vector).
        sizes: choices of each discrete entry; `(D,)` for a box of D numbers.
        low, high: bounds of a box, one number for all entries; ignored by the discrete kinds.
    """

    kind: str = "discrete"
    sizes: tuple[int, ...] = (2,)
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("discrete", "multi_discrete", "box"):
            raise ValueError(f"action kind must be discrete, multi_discrete or box, not {self.kind!r}")
        _check_sizes("an action's sizes", self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action as the model takes it: `()` for discrete, `(n,)` otherwise."""
        if self.kind == "discrete":
            return ()
        return (len(self.sizes),) if self.kind == "multi_discrete" else (self.sizes[0],)

    @property
    def width(self) -> int:
        """Numbers in an action written as a vector: one-hots side by side, or the box itself."""
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """The frame stage: patches, bidirectional attention, Mamba-2, router."""

    patch: int = 8  # side of a square patch, in pixels (cells of a grid, entries of a vector)
    width: int = 64  # d0
    encoder_layers: str = "T1m1"  # attention sees the frame first, Mamba-2 compresses after it
    decoder_layers: str = "m1T1"  # the mirror image
    heads: int = 4
    readers: int = 4  # ways in which a patch's place weighs what a chunk pools from it and paints onto it
    paint_past: bool = False  # whether the painter also sees y, what the past says; it makes the code lazy
    boundary: str = "stride"  # where chunks start: "stride" (fixed) or "learned" (the router)
    chunks: float = 4.0  # chunks a frame: exact for "stride", the target mean for "learned"
    max_chunks: int = 8  # cap for "learned": the most probable boundaries of a frame win

    def __post_init__(self) -> None:
        if self.boundary not in ("stride", "learned"):
            raise ValueError(f"boundary must be 'stride' or 'learned', not {self.boundary!r}")
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The latent of one chunk: `groups` categoricals of `classes` each."""

    kind: str = "categorical"  # or "gaussian", with `groups` numbers
    groups: int = 16
    classes: int = 16
    unimix: float = 0.01  # share of the uniform distribution mixed in, in the losses only

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """The causal stage around the main network: Mamba-2 in, Mamba-2 out."""

    width: int = 128  # d1
    encoder_layers: str = "m1"
    decoder_layers: str = "m1"
    heads: int = 4
    window: int = 128  # tokens that attention layers here look back on, if there are any
    extra: float = 0.0  # boundaries a frame beside the forced one at F_t; 0 runs the main network once a frame
    max_extra: int = 2  # cap of those, a frame

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class MainConfig:
    """The main network: attention over the past, a Mamba-2 layer before each."""

    width: int = 192  # d2
    layers: str = "m1T1"
    heads: int = 4
    window: int = 16  # main tokens that attention looks back on, in training and in dreams alike

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Shared by all Mamba-2 layers; names and meaning as in mamba-ssm."""

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    headdim: int = 32
    chunk_size: int = 32

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to rebuild a `WorldModel`."""

    observation: ObservationSpec
    action: ActionSpec
    frame: FrameConfig = field(default_factory=FrameConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    causal: CausalConfig = field(default_factory=CausalConfig)
    main: MainConfig = field(default_factory=MainConfig)
    mamba: MambaConfig = field(default_factory=MambaConfig)
    format_version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: the data were written by a newer version, or a field is unknown.
        """
        data = dict(data)
        if data.get("format_version", 1) > 1:
            raise ValueError(f"config.json has format version {data['format_version']}; this worldmodel reads 1")
        for name, part in PARTS.items():
            if name in data:
                data[name] = _rebuild(part, data[name])
        return _rebuild(cls, data)


PARTS = {
    "observation": ObservationSpec,
    "action": ActionSpec,
    "frame": FrameConfig,
    "latent": LatentConfig,
    "causal": CausalConfig,
    "main": MainConfig,
    "mamba": MambaConfig,
}


def _rebuild(cls: type, values: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(values) - known:
        raise ValueError(f"config has a field that this version does not know: {', '.join(sorted(unknown))}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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
        return ModelConfig(observation=observation, action=action, frame=FrameConfig(patch=patch, chunks=chunks))
    if name == "small":
        return ModelConfig(
            observation=observation,
            action=action,
            frame=FrameConfig(
                patch=patch, width=192, chunks=2 * chunks, max_chunks=16, encoder_layers="T2m2", decoder_layers="m2T2"
            ),
            latent=LatentConfig(groups=32, classes=16),
            causal=CausalConfig(width=384, heads=6, encoder_layers="m3", decoder_layers="m3"),
            main=MainConfig(width=512, heads=8, layers="m1T1m1T1m1T1m1T1", window=64),
            mamba=MambaConfig(d_state=64, headdim=64, chunk_size=64),
        )
    raise ValueError(f"there is no preset {name!r}; choose tiny or small")
