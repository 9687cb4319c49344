"""The fixed episodes on which a world model is measured: of a player that succeeds, and of random actions.

They follow from the environment's spec alone, so a set that is lost or outdated is made again, the same to the bit.
Their seeds begin at 2**31, where those of `rollout.episode_seeds` end: whatever was collected, no training episode's
layout was drawn with a test seed. (A small world can still come out alike under two seeds.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minigrid
import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from tqdm import tqdm

from worldmodel.envs.grid_player import play_episode
from worldmodel.envs.make import make_from_spec, make_vector_env
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import Episode, play_limit, rollout
from worldmodel.envs.seen_ground import shown_cells
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError

VERSION = 1
FIRST_SEED = 2**31  # of the succeeding episodes
FIRST_RANDOM_SEED = FIRST_SEED + 1_000_000
PLANS = 8  # the k-th succeeding episode has k mod 8 detours: without any none is long enough to dream 50 steps of
RANDOM_BYTES = 2**30  # of random episodes, about; the last one is kept whole
PARTIAL_VIEWS = ("minigrid_rgb", "minigrid_rgb16", "minigrid_rgb_direction", "minigrid_grid")


@dataclass(frozen=True)
class TestSet:
    """The episodes, laid end to end.

    Attributes:
        environment: the environment spec.
        table: frames, actions, rewards and ends.
        succeeding: `(E,)` bool, which of the episodes the player succeeded in; the others are random.
        shown: `(N, X, Y)` bool, the cells of the world that each frame shows (`worldmodel.envs.seen_ground`); None for
            environments that are no grids. Where the whole world is always in view, X and Y are 1.
    """

    __test__ = False  # not a test case, whatever its name begins with

    environment: dict[str, Any]
    table: FrameTable
    succeeding: np.ndarray
    shown: np.ndarray | None


def default_folder(environment: dict[str, Any]) -> Path:
    """Where the test set of an environment is kept: in the user's cache, under its id and a hash of its spec."""
    digest = hashlib.blake2b(json.dumps(environment, sort_keys=True).encode(), digest_size=6).hexdigest()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = str(environment.get("id")).replace("/", "-").replace(":", "-")
    return Path(cache) / "worldmodel" / "test_sets" / f"{name}-{digest}"


def load_test_set(
    environment: dict[str, Any], folder: str | Path | None = None, episodes: int = 50, progress: bool = True
) -> TestSet:
    """The test set of an environment; made first if the folder does not hold it.

    Args:
        environment: the environment spec.
        folder: a cache, overwritten when it holds another set; `default_folder(environment)` if left out.
        episodes: how many of each kind. Of environments other than MiniGrid there are only random ones, cut off after
            `rollout.DEFAULT_HORIZON` steps where the environment has no time limit.
        progress: show a bar while the set is made.

    Raises:
        UserError: the environment cannot be made.
    """
    folder = default_folder(environment) if folder is None else Path(folder)
    wanted = {
        "version": VERSION,
        "environment": environment,
        "episodes": episodes,
        "gymnasium": gym.__version__,
        "minigrid": minigrid.__version__,
    }
    if (limit := play_limit(environment)) is not None:
        wanted["limit"] = limit  # only here: without it, sets of before are what is wanted
    found = _read(folder, wanted)
    if found is None:
        _make(folder, wanted, progress)
        found = _read(folder, wanted)
    if found is None:
        raise UserError(f"the test set in {folder} cannot be read back: is the disk full, or another process writing?")
    return found


def _read(folder: Path, wanted: dict[str, Any]) -> TestSet | None:
    """What the folder holds, if that is whole and what is wanted."""
    try:
        described = json.loads((folder / "test_set.json").read_text())
        if {**described, "succeeding": None} != {**wanted, "succeeding": None}:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged episode: the count below is then wrong
            table = FrameTable.from_store(EpisodeStore.open(folder / "store"))
        succeeding = np.array(described["succeeding"], dtype=bool)
        shown = None
        if (folder / "seen_ground.npz").exists():
            with np.load(folder / "seen_ground.npz") as arrays:
                shape = tuple(arrays["shape"])
                shown = np.unpackbits(arrays["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, UserError):
        return None
    if table.num_episodes != len(succeeding) or (shown is not None and len(shown) != len(table)):
        return None
    return TestSet(environment=wanted["environment"], table=table, succeeding=succeeding, shown=shown)


def _make(folder: Path, wanted: dict[str, Any], progress: bool) -> None:
    """Play the episodes into a folder beside `folder`, then move it there: half a set is never found."""
    environment, episodes = wanted["environment"], wanted["episodes"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    env = make_from_spec(environment)
    try:
        is_grid = isinstance(env.unwrapped, MiniGridEnv)
        whole_in_view = not any(name in PARTIAL_VIEWS for name in environment.get("wrappers") or ())
        store = EpisodeStore.create(temporary / "store", environment)
        succeeding, shown = [], []
        with tqdm(total=episodes * (2 if is_grid else 1), desc="test set", unit="episode", disable=not progress) as bar:
            played = ((True, e) for e in _succeeding(env, episodes)) if is_grid else iter(())
            for success, episode in itertools.chain(played, ((False, e) for e in _random(environment, episodes))):
                store.add_episode(episode)
                succeeding.append(success)
                if is_grid:
                    frames = episode.length + 1
                    shown.append(np.ones((frames, 1, 1), bool) if whole_in_view else shown_cells(env, episode))
                bar.update()
        if is_grid:
            cells = np.concatenate(shown)
            with open(temporary / "seen_ground.npz", "wb") as file:
                np.savez_compressed(file, bits=np.packbits(cells), shape=np.array(cells.shape))
        (temporary / "test_set.json").write_text(json.dumps({**wanted, "succeeding": succeeding}))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        env.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _succeeding(env: gym.Env, episodes: int) -> Iterator[Episode]:
    """The first `episodes` seeds with which the player succeeds, given four tries for each."""
    count = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 4 * episodes):
        if count == episodes:
            return
        episode = play_episode(env, seed, detours=count % PLANS)
        if episode.total_reward > 0:
            count += 1
            yield episode
    if count < episodes:
        warnings.warn(f"the player succeeds in {count} episodes only; the test set lacks the others", stacklevel=2)


def _random(environment: dict[str, Any], episodes: int) -> Iterator[Episode]:
    """So many episodes of random actions, or fewer where these are gigabytes of pixels."""
    left = RANDOM_BYTES
    seeds = range(FIRST_RANDOM_SEED, FIRST_RANDOM_SEED + episodes)
    venv = make_vector_env(environment, num_envs=1)
    try:
        policy = RandomPolicy(venv.single_action_space, seeds)
        for episode in rollout(venv, policy, episodes=episodes, seeds=seeds, limit=play_limit(environment)):
            yield episode
            left -= episode.observations.nbytes
            if left < 0:
                return
    finally:
        venv.close()
