"""At the border of a dream: actions and seeds on their way in, pictures on their way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.error import InvalidAction
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from worldmodel.specs import ObservationSpec

RENDER_SIZE = 256  # pixels; a smaller picture is scaled up by the largest whole factor that stays within


def check_actions(space: Space, actions: Any, num_envs: int) -> np.ndarray:
    """A batch of actions as an array, if each row is an action of `space`.

    Entries of a Box beyond its bounds are let through, as most environments do (they are clipped).

    Args:
        space: of a single action.
        actions: anything that numpy can read, `(num_envs, *space.shape)`.
        num_envs: rows.

    Raises:
        InvalidAction: with what is wrong and where.
    """
    array = np.asarray(actions)
    expected = (num_envs, *(space.shape or ()))
    if array.shape != expected:
        raise InvalidAction(f"Expected actions of shape {expected} for {space}, not {array.shape}.")
    if isinstance(space, Box):
        if array.dtype.kind not in "iuf":
            raise InvalidAction(f"Expected actions of numbers for {space}, not {array.dtype}.")
        if not np.isfinite(array).all():
            raise InvalidAction(f"The actions hold NaN or infinity: {array[~np.isfinite(array)][0]}.")
        return array
    if array.dtype.kind not in "iu":
        raise InvalidAction(f"Expected actions of integers for {space}, not {array.dtype}.")
    assert isinstance(space, Discrete | MultiDiscrete), space
    size = space.n if isinstance(space, Discrete) else space.nvec
    wrong = (array < space.start) | (array >= space.start + size)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise InvalidAction(f"The action {array[row]} of row {row} is not in {space}.")
    return array


def row_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """The seed of each row, from what Gymnasium's vector `reset` accepts: a number gives row i `seed + i`.

    Raises:
        ValueError: it is a list of another length.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    seeds = [None if one is None else int(one) for one in seed]
    if len(seeds) != num_envs:
        raise ValueError(f"{len(seeds)} seeds were given for {num_envs} environments; give one for each")
    return seeds


def check_reset_mask(mask: Any, num_envs: int) -> np.ndarray:
    """The rows to reset, `(num_envs,)` bool: all of them if there is no mask.

    Raises:
        TypeError, ValueError: it is not an array of `num_envs` bools, or names no row.
    """
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (num_envs,):
        raise TypeError(f"options['reset_mask'] must be a numpy array of {num_envs} bools, not {mask!r}")
    if not mask.any():
        raise ValueError("options['reset_mask'] must name at least one environment")
    return mask


def picture(frame: np.ndarray, spec: ObservationSpec) -> np.ndarray:
    """An image observation `(H, W, C)` as RGB uint8 that a human can see: small ones are scaled up by a whole factor.

    One channel becomes grey, of four the first three are colours; of any other stack of frames the last channel, the
    newest, is shown.

    Args:
        frame: the image.
        spec: what it looks like; floats are black and white at the ends of their range.
    """
    if frame.shape[-1] == 4:
        frame = frame[..., :3]
    elif frame.shape[-1] != 3:
        frame = np.repeat(frame[..., -1:], 3, axis=-1)
    if frame.dtype != np.uint8:
        frame = np.clip(np.round((frame - spec.offset) / spec.scale * 255.0), 0, 255).astype(np.uint8)
    factor = max(1, RENDER_SIZE // max(frame.shape[:2]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
