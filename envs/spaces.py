"""Gymnasium spaces as JSON, and as what the model knows of them.

The store keeps actions exactly as the environment took them. The model counts choices from 0 and sees boxes as numbers
in [-1, 1]; `to_model_action` and `from_model_action` are the only place where one becomes the other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from worldmodel.errors import UserError
from worldmodel.specs import ActionSpec, ObservationSpec

MOST_CHOICES = 10_000  # of one observation: each is a byte of a frame
SMALLEST_IMAGE = 16  # sides below this many pixels are cells of a symbolic grid
FURTHEST = 1e-3  # from 1: how near an action without bounds comes, which is then 1,000
MINIGRID_CODES = 10  # MiniGrid declares its grids as 0..255, but its largest object code is 10


def space_to_json(space: Space) -> dict[str, Any]:
    """Write a space as plain numbers, strings and lists.

    Args:
        space: a Box, Discrete or MultiDiscrete, or a Dict of such.

    Raises:
        UserError: it is a space of another kind.
    """
    if isinstance(space, Box):
        return {
            "type": "Box",
            "low": _bounds_to_json(space.low),
            "high": _bounds_to_json(space.high),
            "shape": list(space.shape),
            "dtype": space.dtype.name,
        }
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, Dict):
        _check_names(space)
        return {"type": "Dict", "spaces": {name: space_to_json(part) for name, part in space.spaces.items()}}
    raise UserError(
        f"the space {space} is a {type(space).__name__}; only Box, Discrete, MultiDiscrete and Dict are supported, "
        "so choose a wrapper that turns it into one of them"
    )


def space_from_json(data: dict[str, Any]) -> Space:
    """The inverse of `space_to_json`.

    Raises:
        UserError: the description is incomplete or of an unknown type.
    """
    try:
        if data["type"] == "Box":
            shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
            low, high = (np.broadcast_to(np.array(data[k], dtype=np.float64), shape) for k in ("low", "high"))
            return Box(low.astype(dtype), high.astype(dtype), shape=shape, dtype=dtype.type)
        if data["type"] == "Discrete":
            return Discrete(data["n"], start=data["start"])
        if data["type"] == "MultiDiscrete":
            return MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
        if data["type"] == "Dict":
            return Dict({name: space_from_json(part) for name, part in data["spaces"].items()})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the space description {data!r} cannot be read: {error!r}") from error
    raise UserError(f"the space description {data!r} has an unknown type; known are Box, Discrete, MultiDiscrete, Dict")


def _bounds_to_json(bounds: np.ndarray) -> Any:
    """One number where all bounds agree, else nested lists. JSON has no infinity: it becomes a string."""
    values = bounds if bounds.size == 0 or (bounds != bounds.flat[0]).any() else bounds.flat[0]
    return _finite(np.asarray(values).tolist())


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if value in (float("inf"), float("-inf")) else value


def observation_spec(space: Space) -> ObservationSpec:
    """What the model needs to know about the observations of `space`.

    Args:
        space: Box of uint8 or float32, `(H, W, C)` or `(D,)`; Discrete; or a Dict of these.

    Raises:
        UserError: observations of this space cannot be fed to the model.
    """
    if isinstance(space, Dict):
        _check_names(space)
        return ObservationSpec.record(_part(name, part) for name, part in sorted(space.spaces.items()))
    if isinstance(space, Discrete):
        if space.n > MOST_CHOICES:
            raise UserError(
                f"observations of one of {space.n} choices are too many to tell apart: {MOST_CHOICES} at most"
            )
        # A one is seen as 10: it is one of many.
        return ObservationSpec(kind="choice", shape=(int(space.n),), scale=0.1)
    if not isinstance(space, Box):
        raise UserError(
            f"the observation space {space} is not a Box, a Discrete or a Dict of these; choose a wrapper that makes "
            "it one, such as 'flatten'"
        )
    if space.dtype.name not in ("uint8", "float32"):
        raise UserError(f"observations must be uint8 or float32, not {space.dtype.name}")
    if len(space.shape) not in (1, 3) or 0 in space.shape:
        raise UserError(f"observations must have the shape (H, W, C) or (D,), not {space.shape}")
    if len(space.shape) == 3 and space.shape[0] <= 4 < space.shape[2]:
        raise UserError(f"observations of shape {space.shape} look like (C, H, W); put the channels last")
    small = min(space.shape[:2]) < SMALLEST_IMAGE
    kind = "vector" if len(space.shape) == 1 else "grid" if small else "image"
    if kind == "vector":
        offset, scale = 0.0, 255.0 if space.dtype == np.uint8 else 1.0
    else:
        offset, scale = _value_range(space, kind)
    return ObservationSpec(shape=space.shape, dtype=space.dtype.name, kind=kind, offset=offset, scale=scale)


def _check_names(space: Dict) -> None:
    if others := [name for name in space.spaces if not isinstance(name, str)]:
        raise UserError(f"the parts of a Dict space must have names of text, not {others[0]!r}")


def _part(name: str, space: Space) -> ObservationSpec:
    try:
        if isinstance(space, Dict):
            raise UserError(f"{space} is a Dict itself, and only one level can be told apart: choose a flatter wrapper")
        return dataclasses.replace(observation_spec(space), name=name)
    except UserError as error:
        raise UserError(f"in the part {name!r} of the observations: {error}") from error


def _value_range(space: Box, kind: str) -> tuple[float, float]:
    low, high = float(space.low.min()), float(space.high.max())
    if kind == "grid" and high == 255:
        high = MINIGRID_CODES
    return (low, high - low) if np.isfinite(high - low) and high > low else (0.0, 1.0)


def action_spec(space: Space) -> ActionSpec:
    """What the model needs to know about the actions of `space`.

    Raises:
        UserError: the space is not a Discrete, MultiDiscrete or float Box.
    """
    if isinstance(space, Discrete):
        return ActionSpec(kind="discrete", sizes=(int(space.n),))
    if isinstance(space, MultiDiscrete):
        return ActionSpec(kind="multi_discrete", sizes=tuple(int(n) for n in space.nvec.flat))
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and 0 not in space.shape:
        return ActionSpec(kind="box", sizes=(int(np.prod(space.shape)),), low=-1.0, high=1.0)
    raise UserError(f"the action space {space} is not supported; it must be Discrete, MultiDiscrete or a Box of floats")


def to_model_action(space: Space, actions: np.ndarray) -> np.ndarray:
    """Actions of the environment as the model takes them.

    Args:
        space: the space of a single action.
        actions: `(..., *space.shape)`, any leading axes.

    Returns:
        `(..., *action_spec(space).shape)`: int64 choices counted from 0, or float32 in [-1, 1]: a box's entries by
        their bounds, x without bounds as x / (1 + |x|).
    """
    actions = np.asarray(actions)
    lead = actions.shape[: actions.ndim - len(space.shape or ())]
    if isinstance(space, Discrete):
        return actions.astype(np.int64) - int(space.start)
    if isinstance(space, MultiDiscrete):
        return (actions.astype(np.int64) - space.start).reshape(*lead, -1)
    assert isinstance(space, Box), space
    middle, half, bounded = _middle_and_half(space)
    x = (np.clip(actions, space.low, space.high) - middle) / half
    return np.where(bounded, x, x / (1 + np.abs(x))).astype(np.float32).reshape(*lead, -1)


def from_model_action(space: Space, actions: np.ndarray) -> np.ndarray:
    """The inverse of `to_model_action`: actions that the environment accepts, boxes clipped to their bounds."""
    actions = np.asarray(actions)
    if isinstance(space, Discrete):
        return actions.astype(np.int64) + int(space.start)
    lead = actions.shape[:-1]
    actions = actions.reshape((*lead, *(space.shape or ())))
    if isinstance(space, MultiDiscrete):
        return actions.astype(np.int64) + space.start
    assert isinstance(space, Box), space
    middle, half, bounded = _middle_and_half(space)
    x = np.where(bounded, actions, actions / np.maximum(1 - np.abs(actions), FURTHEST))
    return np.clip(x * half + middle, space.low, space.high).astype(space.dtype)


def _middle_and_half(space: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and half width of each entry, 0 and 1 where the entry has no bounds or no width; and where it has."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    scaled = np.isfinite(low) & np.isfinite(high) & (high > low)
    low, high = np.where(scaled, low, -1.0), np.where(scaled, high, 1.0)
    return (low + high) / 2, (high - low) / 2, scaled
