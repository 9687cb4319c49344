"""Your own data: one `.npz` an episode becomes an episode store.

    frames        (T + 1, H, W, C) uint8, or (T + 1, D) float      (or `observations`)
    actions       (T,) or (T, n) whole numbers, or (T, n) float
    rewards       (T,)
    terminated    one bool, or (T,): the last one counts
    truncated     the same; may be left out

The spaces are read off the data of all files together: whole numbers become as many choices as the largest one needs,
floats a box that just holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from tqdm import tqdm

from worldmodel.envs.check_episode import checked
from worldmodel.envs.rollout import Episode
from worldmodel.envs.spaces import observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError


def import_npz(files: Sequence[str | Path], out: str | Path, progress: bool = False) -> EpisodeStore:
    """Make a store of `.npz` files, one episode each, in the order given.

    All files are checked before the store is begun.

    Args:
        files: see the module's docstring.
        out: folder of the new store.
        progress: show bars, one of the check and one of the import.

    Returns:
        The open store. Its environment has no id: nothing can be played in it, only learned from.

    Raises:
        UserError: a file is missing, lacks a key, or does not fit the others; the message names file and key.
    """
    if not files:
        raise UserError("there are no .npz files to import")
    paths = [Path(file) for file in files]
    observation_space, action_space = _spaces_of(paths[0], _read(paths[0]))
    for path in tqdm(paths[1:], unit="file", desc="check", disable=not progress):
        observations, actions = _spaces_of(path, _read(path))
        if observations != observation_space:
            raise UserError(f"{path}: frames are {observations}, but {paths[0]} has {observation_space}")
        action_space = _joined(action_space, actions, f"{path}: actions are {actions}, but those before {action_space}")
    store = EpisodeStore.create(out, observation_space=observation_space, action_space=action_space)
    for path in tqdm(paths, unit="file", desc="import", disable=not progress):
        store.add_episode(_read(path))
    return store


def _read(path: Path) -> Episode:
    """The episode in one file, float64 made float32."""
    try:
        with np.load(path) as file:
            data = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # zip and numpy answer a damaged or foreign file with almost any exception there is
        raise UserError(f"{path} is not a readable .npz file: {error or repr(error)}") from error
    key = "frames" if "frames" in data else "observations"
    for needed in (key, "actions", "rewards", "terminated"):
        if needed not in data:
            wanted = "frames (or observations)" if needed == key else needed
            raise UserError(f"{path} lacks the key {wanted}; it has {', '.join(sorted(data)) or 'none'}")
    frames = data[key]
    return Episode(
        observations=frames.astype(np.float32) if frames.dtype == np.float64 else frames,
        actions=data["actions"],
        rewards=data["rewards"],
        terminated=_last_flag(path, "terminated", data["terminated"]),
        truncated=_last_flag(path, "truncated", data.get("truncated", np.array(False))),
    )


def _last_flag(path: Path, key: str, flags: np.ndarray) -> bool:
    """The flag of the last step, from one flag or one a step."""
    if flags.ndim > 1 or flags.size == 0 or flags.dtype.kind not in "biu":
        raise UserError(f"{path}: {key} must be one bool or one a step, not {flags.dtype} of shape {flags.shape}")
    if flags.ndim == 1 and flags[:-1].any():
        raise UserError(f"{path}: {key} is true before the last step; write one file an episode")
    return bool(flags.flat[-1])


def _spaces_of(path: Path, episode: Episode) -> tuple[Space, Space]:
    """The smallest spaces that hold one episode, which is checked on the way."""
    frames, actions = episode.observations, episode.actions
    low, high = (0, 255) if frames.dtype == np.uint8 else (-np.inf, np.inf)
    try:
        if frames.dtype not in (np.uint8, np.float32):
            raise UserError(f"frames must be uint8 or float, not {frames.dtype}")
        observation_space = Box(low, high, frames.shape[1:], frames.dtype.type)
        observation_spec(observation_space)
        action_space = _action_space_of(actions)
        checked(episode, observation_space, action_space)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return observation_space, action_space


def _action_space_of(actions: np.ndarray) -> Space:
    if actions.ndim not in (1, 2) or actions.size == 0:
        raise UserError(f"actions must have the shape (T,) or (T, n), not {actions.shape}")
    if actions.dtype.kind == "f":
        if not np.isfinite(actions).all():
            raise UserError("the actions hold a value that is not a finite number")
        actions = actions.astype(np.float32)
        return Box(actions.min(axis=0), actions.max(axis=0), actions.shape[1:], np.float32)
    if actions.dtype.kind not in "iub":
        raise UserError(f"actions must be whole numbers or floats, not {actions.dtype}")
    if actions.min() < 0:
        raise UserError(f"actions that are choices count from 0, but one is {actions.min()}")
    choices = actions.max(axis=0).astype(np.int64) + 1
    return Discrete(int(choices)) if actions.ndim == 1 else MultiDiscrete(choices)


def _joined(one: Space, other: Space, mismatch: str) -> Space:
    """The smallest space that holds both."""
    if type(one) is not type(other) or one.shape != other.shape:
        raise UserError(mismatch)
    if isinstance(one, Discrete) and isinstance(other, Discrete):
        return Discrete(max(int(one.n), int(other.n)))
    if isinstance(one, MultiDiscrete) and isinstance(other, MultiDiscrete):
        return MultiDiscrete(np.maximum(one.nvec, other.nvec))
    assert isinstance(one, Box) and isinstance(other, Box)
    return Box(np.minimum(one.low, other.low), np.maximum(one.high, other.high), dtype=np.float32)
