"""What goes into a model and comes out of it: the shapes and kinds of observations and actions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

PLANE = ("image", "grid")  # kinds that have rows and columns
KINDS = (*PLANE, "vector", "choice", "record")


def _check_sizes(name: str, sizes: tuple[int, ...]) -> None:
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"{name} must be whole numbers above 0, not {sizes!r}")


@dataclass(frozen=True, kw_only=True)
class ObservationSpec:
    """What one observation looks like.

    Attributes:
        shape: `(H, W, C)` for images and symbolic grids, `(D,)` for vectors, `(n,)` for one of n choices, and for
            records `(bytes,)`.
        dtype: numpy name of the values' type, `"uint8"` or `"float32"`.
        kind: `"image"` (pixels), `"grid"` (small integers, one cell a patch), `"vector"`, `"choice"` (a one-hot), or
            `"record"`: several modalities, the bytes of one behind those of the other.
        offset, scale: the model sees `(value - offset) / scale`. Images use 0 and 255.
        name: of a part of a record.
        parts: of a record, those that can be shown first.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    kind: str = "image"
    offset: float = 0.0
    scale: float = 255.0
    name: str = ""
    parts: tuple[ObservationSpec, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"observation kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if len(self.shape) != (3 if self.kind in PLANE else 1):
            raise ValueError(f"an observation of kind {self.kind!r} cannot have the shape {self.shape}")
        _check_sizes("an observation's shape", self.shape)
        if (self.kind == "record") != bool(self.parts) or any(part.parts for part in self.parts):
            raise ValueError("an observation of kind 'record', and no other, has parts, which have none themselves")

    @classmethod
    def record(cls, parts: Iterable[ObservationSpec]) -> ObservationSpec:
        """The spec of several modalities, those that can be shown first."""
        ordered = tuple(sorted(parts, key=lambda part: KINDS.index(part.kind)))
        return cls(shape=(sum(part.bytes for part in ordered),), kind="record", scale=1.0, parts=ordered)

    @property
    def bytes(self) -> int:
        """How many bytes one observation takes."""
        return math.prod(self.shape) * (1 if self.dtype == "uint8" else 4)

    @property
    def value_range(self) -> float:
        """How far apart two values of it can lie, which is what errors are measured by."""
        return 1.0 if self.kind == "choice" else self.scale  # the model sees a one larger than it is

    @property
    def modalities(self) -> tuple[ObservationSpec, ...]:
        """The parts of a record; any other observation is its own only one."""
        return self.parts or (self,)

    @property
    def shown(self) -> ObservationSpec | None:
        """The modality that a picture can be made of, always the first; None if there is none."""
        first = self.modalities[0]
        return first if first.kind in PLANE else None

    @property
    def places(self) -> tuple[slice, ...]:
        """Where each of the parts lies in a record."""
        ends = [0, *itertools.accumulate(part.bytes for part in self.parts)]
        return tuple(slice(begin, end) for begin, end in itertools.pairwise(ends))


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
