"""Fill an episode store from a real environment, resumable at any moment."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tqdm import tqdm

from worldmodel.envs.make import make_vector_env, spec_of
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import Policy, episode_seeds, rollout
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError


def collect(
    env: dict[str, Any] | str,
    out: str | Path,
    steps: int,
    policy: Policy | None = None,
    num_envs: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> EpisodeStore:
    """Play until the store holds `steps` actions in all, adding each episode as it ends.

    The seeds of the episodes follow from `seed`. Those that the store holds already are passed over, so a run that was
    interrupted goes on, with the same command, where it stopped; episodes that were running then are played again.

    Args:
        env: a Gymnasium id or an environment spec.
        out: folder of the store, new or of the same environment.
        steps: actions that the store holds at the end. The last episodes are cut off there, as truncated.
        policy: chooses the actions; uniformly random if left out.
        num_envs: environments that step together.
        seed: of the whole collection.
        progress: show a bar.

    Returns:
        The open store.

    Raises:
        UserError: the store is of another environment, or the environment cannot be made.
    """
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, not {num_envs}")
    spec = spec_of(env) if isinstance(env, str) else env
    store = open_or_create(out, spec)
    if store.steps >= steps:
        return store
    known = {entry["seed"] for entry in store.index}
    seeds, policy_seeds = itertools.tee(s for s in episode_seeds(seed) if s not in known)
    venv = make_vector_env(spec, num_envs)
    if policy is None:
        policy = RandomPolicy(venv.single_action_space, policy_seeds)
    try:
        with tqdm(total=steps, initial=store.steps, unit="step", desc="collect", disable=not progress) as bar:
            for episode in rollout(venv, policy, seeds=seeds, steps=steps - store.steps, progress=bar.update):
                store.add_episode(episode)
    finally:
        venv.close()
    return store


def open_or_create(out: str | Path, spec: dict[str, Any]) -> EpisodeStore:
    """The store in `out`, made if there is none.

    Raises:
        UserError: it holds episodes of another environment.
    """
    if not (Path(out) / "index.json").exists():
        return EpisodeStore.create(out, spec)
    store = EpisodeStore.open(out)
    for key, value in spec.items():
        if store.environment.get(key) != value:
            raise UserError(
                f"{out} was collected with {key} = {store.environment.get(key)!r}, not {value!r}; choose another folder"
            )
    return store
