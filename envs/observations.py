"""Observations as frames, and back: one array each, whatever the space.

An environment shows arrays, numbers or a dict of them. The store and the model hold *frames*: arrays as they are, one
of n choices as a one-hot, and a dict as one row of bytes, its parts behind one another
(`worldmodel.specs.ObservationSpec`). `to_frames` and `from_frames` are the only place where one becomes the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete

from worldmodel.envs.spaces import observation_spec
from worldmodel.errors import UserError
from worldmodel.specs import ObservationSpec


def frame_type(space: Space) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one frame."""
    if isinstance(space, Box):
        return space.shape, space.dtype
    spec = observation_spec(space)
    return spec.shape, np.dtype(spec.dtype)


def to_frames(space: Space, observation: Any) -> np.ndarray:
    """Observations of an environment as frames.

    Args:
        space: of a single observation.
        observation: one observation, or a batch of them as vector environments give it.

    Returns:
        `(..., *frame shape)`, any leading axes that the observation has.

    Raises:
        UserError: it is no observation of that space.
    """
    if isinstance(space, Discrete):
        choice = _array(observation)
        if choice.dtype.kind not in "iu" or ((choice < space.start) | (choice >= space.start + space.n)).any():
            raise UserError(f"the observation {observation!r} is not in {space}")
        frames = np.zeros((*choice.shape, int(space.n)), np.uint8)
        np.put_along_axis(frames, (choice - space.start)[..., None].astype(np.int64), 1, axis=-1)
        return frames
    if isinstance(space, Dict):
        return _record(space, observation)
    return _array(observation)


def _array(observation: Any) -> np.ndarray:
    try:
        return np.asarray(observation)
    except ValueError as error:
        raise UserError(f"an observation cannot be read as an array: {error}") from error


def _record(space: Dict, observation: Any) -> np.ndarray:
    if not isinstance(observation, dict) or set(observation) != set(space.spaces):
        found = sorted(observation) if isinstance(observation, dict) else type(observation).__name__
        raise UserError(f"an observation is to be a dict of {', '.join(sorted(space.spaces))}, not {found}")
    rows = []
    for part in observation_spec(space).parts:
        values = to_frames(space[part.name], observation[part.name])
        lead = values.shape[: values.ndim - len(part.shape)]
        if values.shape != (*lead, *part.shape) or values.dtype != part.dtype:
            raise UserError(
                f"the part {part.name!r} of an observation is to be {part.dtype} of shape {part.shape}, "
                f"not {values.dtype} of shape {values.shape}"
            )
        flat = np.ascontiguousarray(values).reshape(*lead, int(np.prod(part.shape)))
        rows.append(flat.view(np.uint8))
    if len(leads := {row.shape[:-1] for row in rows}) > 1:
        raise UserError(f"the parts of an observation are to be as many of each, not {sorted(leads)}")
    return np.concatenate(rows, axis=-1)


def from_frames(space: Space, frames: np.ndarray) -> Any:
    """Frames as observations of `space`, new arrays, clipped to its bounds. The inverse of `to_frames`."""
    if isinstance(space, Discrete):
        return frames.argmax(-1) + space.start
    if isinstance(space, Dict):
        views = {part.name: values for part, values in modalities_of(observation_spec(space), frames)}
        return {name: from_frames(part, views[name]) for name, part in space.spaces.items()}
    assert isinstance(space, Box), space
    clipped = frames if _holds_all_values(space) else np.clip(frames, space.low, space.high)
    return clipped.astype(space.dtype)


def modalities_of(spec: ObservationSpec, frames: np.ndarray) -> Iterator[tuple[ObservationSpec, np.ndarray]]:
    """What frames `(..., *spec.shape)` hold, modality by modality: `(..., *its shape)`, copies if there are several."""
    if not spec.parts:
        yield spec, frames
    for part, place in zip(spec.parts, spec.places):
        values = np.ascontiguousarray(frames[..., place]).view(part.dtype)
        yield part, values.reshape(*frames.shape[:-1], *part.shape)


def first_modality(spec: ObservationSpec, frames: np.ndarray) -> np.ndarray:
    """What of the frames a picture can be made of, `(..., H, W, C)`, if one can."""
    return next(modalities_of(spec, frames))[1]


def row_of(observation: Any, row: int) -> Any:
    """One observation of a batch."""
    if isinstance(observation, dict):
        return {name: row_of(part, row) for name, part in observation.items()}
    return observation[row]


def count_rows(observation: Any) -> int:
    """How many observations a batch holds."""
    return count_rows(next(iter(observation.values()))) if isinstance(observation, dict) else len(observation)


def _holds_all_values(space: Box) -> bool:
    if space.dtype == np.uint8:
        return bool((space.low == 0).all() and (space.high == 255).all())
    return not (space.bounded_below.any() or space.bounded_above.any())
