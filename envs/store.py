"""Episodes on disk, bit for bit: a watchable video, a sidecar of arrays, and one index.

    store/
      index.json           format version, environment spec, codec, one entry an episode
      episodes/000000.mkv  T + 1 pictures (only with the codec "x264rgb")
      episodes/000000.npz  actions, rewards, flags, seed, checksum; the observations too with the codec "npz", or what
                           there is beside the pictures

Every file is written beside its place and moved there, the index last. So whoever is killed half-way leaves a valid
store, and the next `add` writes over what was not yet in the index.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Dict

from worldmodel.envs.check_episode import checked
from worldmodel.envs.observations import frame_type, to_frames
from worldmodel.envs.rollout import Episode
from worldmodel.envs.spaces import SMALLEST_IMAGE, observation_spec, space_from_json, space_to_json
from worldmodel.envs.store_index import put, read_index, stamp, write_index
from worldmodel.envs.video import read_video, write_video
from worldmodel.errors import UserError


class EpisodeStore:
    """A folder of episodes of one environment. Made by `create` or `open`.

    Attributes:
        root: the folder.
        environment: the environment spec, see `worldmodel.envs.make`; its `id` is `None` for imported data.
        observation_space, action_space: of a single environment.
        codec: how observations are kept, `"x264rgb"` or `"npz"`.
        index: one dict an episode, with the keys of `store_index.INDEX_FIELDS`.
    """

    def __init__(
        self, root: Path, environment: dict[str, Any], codec: str, index: list[dict[str, Any]], known: tuple[int, int]
    ) -> None:
        self.root = root
        self.environment = environment
        self.observation_space = space_from_json(environment["observation_space"])
        self.action_space = space_from_json(environment["action_space"])
        self.codec = codec
        self.index = index
        self._stamp = known  # of the index that was read

    @classmethod
    def create(
        cls,
        root: str | Path,
        environment: dict[str, Any] | None = None,
        *,
        observation_space: Space | None = None,
        action_space: Space | None = None,
    ) -> EpisodeStore:
        """Begin an empty store.

        Args:
            root: a folder without a store; made if missing.
            environment: an environment spec. Without one (your own data), give both spaces.
            observation_space, action_space: of a single environment.

        Raises:
            UserError: there is a store already, the spaces are missing or of an unsupported kind, or the folder cannot
                be written.
        """
        root = Path(root)
        if (root / "index.json").exists():
            raise UserError(f"{root} holds a store already; open it, or choose another folder")
        if environment is None:
            if observation_space is None or action_space is None:
                raise UserError("a new store needs an environment spec, or an observation space and an action space")
            environment = {
                "id": None,
                "observation_space": space_to_json(observation_space),
                "action_space": space_to_json(action_space),
            }
        space = space_from_json(environment["observation_space"])
        frame_type(space)  # who cannot be kept should be told so now
        codec = _codec_for(space)
        try:
            (root / "episodes").mkdir(parents=True, exist_ok=True)
            write_index(root, environment, codec, [])
        except OSError as error:
            raise UserError(f"no store can be made in {root}: {error}") from error
        return cls(root, environment, codec, [], stamp(root))

    @classmethod
    def open(cls, root: str | Path) -> EpisodeStore:
        """Open the store in the folder `root`.

        Raises:
            UserError: there is none, its index is damaged, or a newer version wrote it.
        """
        data = read_index(Path(root))
        return cls(Path(root), data["environment"], data["codec"], data["episodes"], data["stamp"])

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.index)

    @property
    def steps(self) -> int:
        """The number of actions in all episodes."""
        return sum(entry["length"] for entry in self.index)

    def add(
        self,
        frames: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: bool,
        truncated: bool,
        seed: int | None = None,
    ) -> str:
        """Append one episode of `T` actions.

        Args:
            frames: `(T + 1, *observation shape)`, in the dtype of the observation space; for a Dict a dict of such.
            actions: `(T, *action shape)`; `actions[t]` was taken at `frames[t]` and led to `frames[t + 1]`.
            rewards: `(T,)`; `rewards[t]` was paid for `actions[t]`.
            terminated: the last frame is terminal: nothing can follow it.
            truncated: the episode was cut off at the last frame, by a time limit or by whoever recorded it.
            seed: what the environment was reset with, if known.

        Returns:
            The episode's name.

        Raises:
            UserError: an array has the wrong shape, type or length, or holds a NaN, or somebody else is filling the
                store, too.
        """
        return self.add_episode(
            Episode(
                to_frames(self.observation_space, frames),
                np.asarray(actions),
                np.asarray(rewards),
                bool(terminated),
                bool(truncated),
                seed,
            )
        )

    def add_episode(self, episode: Episode) -> str:
        """Append one episode. See `add`."""
        episode = checked(episode, self.observation_space, self.action_space)
        if stamp(self.root) != self._stamp:
            raise UserError(
                f"somebody else has added to {self.root} since it was opened: two must not fill one store, "
                "so this episode was left out; wait for the other, then open it anew"
            )
        name = f"{int(self.index[-1]['name']) + 1 if self.index else 0:06d}"
        frames = episode.observations
        arrays: dict[str, Any] = {
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminated": np.array(episode.terminated),
            "truncated": np.array(episode.truncated),
            "seed": np.array(-1 if episode.seed is None else episode.seed, np.int64),
            "checksum": np.array(zlib.crc32(frames.data), np.uint32),
        }
        if self.codec == "x264rgb":
            video = io.BytesIO()
            pictures, beside = _apart(frames, self.observation_space)
            write_video(video, pictures)
            put(self._path(name, "mkv"), video.getvalue())
            if beside.size:
                arrays["beside"] = beside
        else:
            arrays["observations"] = frames
        sidecar = io.BytesIO()
        np.savez_compressed(sidecar, **arrays)
        put(self._path(name, "npz"), sidecar.getvalue())
        entry = {
            "name": name,
            "length": episode.length,
            "terminated": episode.terminated,
            "truncated": episode.truncated,
            "return": episode.total_reward,
            "seed": None if episode.seed is None else int(episode.seed),
        }
        write_index(self.root, self.environment, self.codec, [*self.index, entry])
        self.index.append(entry)
        self._stamp = stamp(self.root)
        return name

    def read(self, name: str) -> Episode:
        """The episode called `name`.

        Raises:
            UserError: its files are missing, damaged, or not what was written.
        """
        try:
            with np.load(io.BytesIO(self._path(name, "npz").read_bytes())) as arrays:
                data = {key: arrays[key] for key in arrays.files}
            frames = self._frames(name, data)
            seed = int(data["seed"])
            episode = Episode(
                observations=frames,
                actions=data["actions"],
                rewards=data["rewards"],
                terminated=bool(data["terminated"]),
                truncated=bool(data["truncated"]),
                seed=None if seed < 0 else seed,
            )
            if zlib.crc32(frames.data) != int(data["checksum"]):  # a damaged video may still decode, to other pixels
                raise ValueError("its frames are not those that were written")
            return checked(episode, self.observation_space, self.action_space)
        except Exception as error:  # zip, numpy and FFmpeg answer flipped bits with almost any exception there is
            raise UserError(f"the episode {name} in {self.root} is damaged: {error or repr(error)}") from error

    def _frames(self, name: str, data: dict[str, np.ndarray]) -> np.ndarray:
        if self.codec != "x264rgb":
            return data["observations"]
        pictures = read_video(self._path(name, "mkv"))
        if not isinstance(self.observation_space, Dict):
            return pictures
        flat = pictures.reshape(len(pictures), -1)
        return np.concatenate([flat, data["beside"]], axis=1) if "beside" in data else flat

    def episodes(self) -> Iterator[Episode]:
        """All episodes, decoded one by one. Damaged ones are skipped, each with a warning that names it."""
        for entry in self.index:
            try:
                yield self.read(entry["name"])
            except UserError as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)

    def _path(self, name: str, suffix: str) -> Path:
        return self.root / "episodes" / f"{name}.{suffix}"


def _codec_for(space: Space) -> str:
    """Colour images as video; H.264 takes no smaller ones, and no other kinds."""
    shape, dtype = _shown_type(space)
    image = dtype == np.uint8 and len(shape) == 3 and shape[2] == 3
    return "x264rgb" if image and min(shape[:2]) >= SMALLEST_IMAGE else "npz"


def _shown_type(space: Space) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of what can be shown of an observation: of a dict its first picture."""
    if isinstance(space, Dict):
        shown = observation_spec(space).shown
        return ((), np.dtype(np.uint8)) if shown is None else (shown.shape, np.dtype(shown.dtype))
    return space.shape or (), np.dtype(space.dtype)


def _apart(frames: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The pictures `(T + 1, H, W, 3)` of frames, and the bytes beside them: pictures come first in a record."""
    shape, _ = _shown_type(space)
    flat = frames.reshape(len(frames), -1)
    pictures, beside = np.split(flat, [int(np.prod(shape))], axis=1)
    return np.ascontiguousarray(pictures).reshape(len(frames), *shape), beside
