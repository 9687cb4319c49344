"""Where dreams begin: real prefixes that came with the checkpoint, burnt in once and kept as states to branch from.

Burning in a context costs as many steps as it is long, and a dream restarts often; so it is paid when a run is loaded,
and a loaded run is shared by all environments of the process that dream in it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from worldmodel.checkpoint import CONFIG_FILE, MODEL_FILE, load_environment, load_model
from worldmodel.envs.contexts import Contexts, burn_in, load_contexts
from worldmodel.envs.observations import frame_type
from worldmodel.envs.spaces import space_from_json
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.state import DreamState

START_KINDS = ("initial", "anywhere")
CONTEXTS_FILE = "contexts.npz"
LOADED_AT_ONCE = 2  # runs that stay loaded; the one not asked for longest makes room


@dataclass(frozen=True)
class Starts:
    """States to begin a dream from, and what they look like.

    Attributes:
        state: the burnt-in states, one a row; to be reseeded by whoever dreams on from them.
        frames: `(N, *frame shape)` the model's own picture of the last frame of each context.
    """

    state: DreamState
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class DreamWorld:
    """A run that is loaded to be dreamt in. It is shared: nothing may write into it.

    Attributes:
        model: the world model, in evaluation mode.
        environment: the description of the real environment in `config.json`.
        observation_space, action_space: the real environment's.
        starts: burnt-in states of each kind that the run has contexts for: `"initial"`, real beginnings of episodes;
            `"anywhere"`, the middle of episodes.
    """

    model: WorldModel
    environment: dict[str, Any]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    starts: dict[str, Starts]


def load_world(run: str | PathLike[str], device: str = "cpu", loops: float | None = None) -> DreamWorld:
    """A run's world, loaded and burnt in once for each version of its files.

    Args:
        run: a run folder.
        device: where the model runs.
        loops: of its core, see `load_model`. Worlds that loop otherwise are not the same.

    Raises:
        UserError: a file of the run is missing, damaged or does not fit the others, or it cannot loop like that.
    """
    path = Path(run).resolve()
    key = (path, str(device), loops)
    with _lock:
        stamps = tuple(_stamp(path / name) for name in (CONFIG_FILE, MODEL_FILE, CONTEXTS_FILE))
        stamp, world = _loaded.get(key, (None, None))
        if world is None or stamp != stamps:
            world = _load(path, device, loops)
        _loaded[key] = (stamps, world)
        _loaded.move_to_end(key)
        while len(_loaded) > LOADED_AT_ONCE:
            _loaded.popitem(last=False)
    return world


_lock = threading.Lock()
_loaded: OrderedDict[tuple[Path, str, float | None], tuple[tuple[Any, ...], DreamWorld]] = OrderedDict()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # loading will say what is missing
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _load(path: Path, device: str, loops: float | None) -> DreamWorld:
    if not path.is_dir():
        raise UserError(f"{path} is not a run folder; give the folder that `worldmodel train --out` wrote")
    model = load_model(path, device, loops=loops)
    environment = load_environment(path)
    contexts = load_contexts(path / CONTEXTS_FILE)
    try:
        spaces = {name: space_from_json(environment[name]) for name in ("observation_space", "action_space")}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / CONFIG_FILE} does not describe the environment's spaces: {error!r}") from error
    config, observation = model.config, frame_type(spaces["observation_space"])[0]
    if observation != config.observation.shape or contexts.frames.shape[2:] != config.observation.shape:
        raise UserError(
            f"the files of {path} do not fit each other: the model sees {config.observation.shape}, the environment "
            f"shows {observation} and the contexts hold {contexts.frames.shape[2:]}; train the run anew"
        )
    starts = {}
    for kind, rows in zip(START_KINDS, (contexts.initial, ~contexts.initial)):
        if rows.any():
            starts[kind] = _burn_in(model, contexts[rows])
    return DreamWorld(model, environment, **spaces, starts=starts)


def _burn_in(model: WorldModel, contexts: Contexts) -> Starts:
    state, out = burn_in(model, contexts)
    return Starts(state, model.decode(out).cpu().numpy())
