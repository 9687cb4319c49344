"""What an episode must be to enter a store, each requirement one sentence when it is not met."""

from __future__ import annotations

import dataclasses

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from worldmodel.envs.observations import frame_type, modalities_of
from worldmodel.envs.rollout import Episode
from worldmodel.envs.spaces import observation_spec
from worldmodel.errors import UserError


def checked(episode: Episode, observation_space: Space, action_space: Space) -> Episode:
    """The same episode with actions and rewards in the types that the store keeps.

    Args:
        episode: of any origin.
        observation_space, action_space: of a single environment.

    Returns:
        The episode, its actions in the dtype of the action space, its rewards float32.

    Raises:
        UserError: an array has the wrong shape, type or length, a value outside its space, or is not finite.
    """
    frames, actions, rewards = episode.observations, episode.actions, episode.rewards
    if actions.ndim == 0 or len(actions) == 0:
        raise UserError("an episode needs at least one action")
    if len(frames) != len(actions) + 1:
        raise UserError(
            f"{len(actions)} actions need {len(actions) + 1} frames, one before the first action and one after each, "
            f"but there are {len(frames)}"
        )
    if rewards.shape != (len(actions),):
        raise UserError(f"{len(actions)} actions need as many rewards, but the rewards have the shape {rewards.shape}")
    _check_frames(frames, observation_space)
    if not _is_number(rewards) or not np.isfinite(rewards).all():
        raise UserError("the rewards hold a value that is not a finite number")
    return dataclasses.replace(
        episode,
        observations=np.ascontiguousarray(frames),
        actions=_checked_actions(actions, action_space),
        rewards=rewards.astype(np.float32),
    )


def _check_frames(frames: np.ndarray, space: Space) -> None:
    shape, dtype = frame_type(space)
    if frames.shape[1:] != shape or frames.dtype != dtype:
        raise UserError(
            f"the frames are {frames.dtype} of shape {frames.shape[1:]}, "
            f"but this store's observations are {dtype} of shape {shape}"
        )
    parts = [("", frames)]
    if isinstance(space, Dict):
        parts = [(f" in the part {part.name!r}", v) for part, v in modalities_of(observation_spec(space), frames)]
    for where, values in parts:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"the frames hold a value that is not a finite number{where}")


def _checked_actions(actions: np.ndarray, space: Space) -> np.ndarray:
    if actions.shape[1:] != space.shape:
        raise UserError(f"the actions have the shape {actions.shape[1:]}, but this store's actions have {space.shape}")
    if isinstance(space, Box):
        if not _is_number(actions) or not np.isfinite(actions).all():
            raise UserError("the actions hold a value that is not a finite number")
        return actions.astype(space.dtype)
    assert isinstance(space, Discrete | MultiDiscrete), space
    if actions.dtype.kind not in "iub":
        raise UserError(f"the actions are {actions.dtype}, but this store's actions are whole numbers")
    count = space.n if isinstance(space, Discrete) else space.nvec
    if ((actions < space.start) | (actions >= space.start + count)).any():
        raise UserError(
            f"an action lies outside the action space {space}: the values go from {actions.min()} to {actions.max()}"
        )
    return actions.astype(np.int64)


def _is_number(values: np.ndarray) -> bool:
    return values.dtype.kind in "fiub"
