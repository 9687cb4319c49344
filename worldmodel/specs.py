"""What goes into a model and comes out of it: the shapes and kinds of observations and actions."""

from __future__ import annotations

from dataclasses import dataclass


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
