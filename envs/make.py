"""Any Gymnasium id, wrapped by name, and described so that the same environment can be built again later.

A run folder and an episode store both hold an *environment spec*: id, wrappers, kwargs, time limit and the two spaces.
`make_from_spec` rebuilds the environment and refuses when its spaces are no longer the ones that were recorded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from worldmodel.envs.spaces import space_to_json
from worldmodel.envs.wrappers import WRAPPERS, default_wrappers, single_precision
from worldmodel.errors import UserError

# Packages that register their environments only when imported, by how their ids begin.
PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py"}


def make_env(
    env_id: str,
    *,
    wrappers: Sequence[str] | None = None,
    seed: int | None = None,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> gymnasium.Env:
    """Build an environment by its Gymnasium id.

    Args:
        env_id: such as `"MiniGrid-Empty-Random-6x6-v0"`, `"CartPole-v1"`, or `"module:Id-v0"`.
        wrappers: names from `WRAPPERS`, the innermost first; `None` takes `default_wrappers(env_id)`.
        seed: resets the environment once with this seed.
        render_mode: passed on; the wrappers `"render"` and `"render_beside"` set it to `"rgb_array"`.
        max_episode_steps: time limit; `None` keeps the registered one.
        **kwargs: passed to the environment.

    Returns:
        The environment; observations of float64 are made float32, in a dict too.

    Raises:
        UserError: the id or a wrapper is unknown, or the environment cannot be built.
    """
    names = default_wrappers(env_id) if wrappers is None else tuple(wrappers)
    for name in names:
        if name not in WRAPPERS:
            raise UserError(f"there is no wrapper {name!r}{_near(name, WRAPPERS)}; known are {', '.join(WRAPPERS)}")
    if {"render", "render_beside"} & set(names):
        render_mode = "rgb_array"
    if render_mode is not None:  # environments without pictures do not know the word
        kwargs["render_mode"] = render_mode
    if "skip4" in names and env_id.startswith("ALE/"):
        kwargs.setdefault("frameskip", 1)  # the emulator skips by itself otherwise, and shows one frame of the four
    outside = max_episode_steps if "skip4" in names else None  # inside it would count every frame
    env = _make(env_id, max_episode_steps=max_episode_steps if outside is None else None, **kwargs)
    for name in names:
        env = _wrapped(env, name)
    if outside is not None:
        env = TimeLimit(env, outside)
    env = single_precision(env)
    if seed is not None:
        env.reset(seed=seed)
    return env


def _wrapped(env: gymnasium.Env, name: str) -> gymnasium.Env:
    try:
        return WRAPPERS[name](env)
    except UserError:
        raise
    except Exception as error:  # whatever a wrapper's own code makes of an environment that it was not made for
        raise UserError(
            f"the wrapper {name!r} does not fit an environment that shows {env.observation_space}"
        ) from error


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    for start, package in PACKAGES.items():
        if env_id.startswith(start):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(f"{env_id} needs the package {package}, which is not installed") from error
    try:
        return gymnasium.make(env_id, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.NamespaceNotFound) as error:
        raise UserError(f"there is no environment {env_id!r}{_near(env_id, gymnasium.registry)}") from error
    except Exception as error:  # whatever the environment's own code makes of these kwargs
        raise UserError(f"the environment {env_id!r} cannot be made: {error}") from error


def _near(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def environment_spec(
    env_id: str,
    wrappers: Sequence[str] | None,
    kwargs: dict[str, Any],
    env: gymnasium.Env,
    max_episode_steps: int | None = None,
) -> dict[str, Any]:
    """What `make_from_spec` needs to build `env` again, as JSON.

    Raises:
        UserError: a space of `env` is of a kind that cannot be recorded.
    """
    return {
        "id": env_id,
        "wrappers": list(default_wrappers(env_id) if wrappers is None else wrappers),
        "kwargs": dict(kwargs),
        "max_episode_steps": max_episode_steps,
        "episode_limit": episode_limit(env),
        "observation_space": space_to_json(env.observation_space),
        "action_space": space_to_json(env.action_space),
    }


def episode_limit(env: gymnasium.Env) -> int | None:
    """Steps after which `env` truncates an episode: its time limit, or MiniGrid's own `max_steps`; None if unknown."""
    if env.spec is not None and env.spec.max_episode_steps:
        return env.spec.max_episode_steps
    return getattr(env.unwrapped, "max_steps", None)


def spec_of(
    env_id: str, wrappers: Sequence[str] | None = None, max_episode_steps: int | None = None, **kwargs: Any
) -> dict[str, Any]:
    """The environment spec of an id: builds the environment, looks at its spaces, closes it."""
    env = make_env(env_id, wrappers=wrappers, max_episode_steps=max_episode_steps, **kwargs)
    try:
        return environment_spec(env_id, wrappers, kwargs, env, max_episode_steps)
    finally:
        env.close()


def make_from_spec(spec: dict[str, Any], *, render_mode: str | None = None) -> gymnasium.Env:
    """Build the environment that `spec` describes.

    Raises:
        UserError: the spec names no environment, or the spaces are not the recorded ones.
    """
    if not spec.get("id"):
        raise UserError("these data name no environment (they were imported), so none can be made from them")
    env = make_env(
        spec["id"],
        wrappers=spec.get("wrappers"),
        render_mode=render_mode,
        max_episode_steps=spec.get("max_episode_steps"),
        **spec.get("kwargs", {}),
    )
    for name, space in (("observation_space", env.observation_space), ("action_space", env.action_space)):
        if (found := space_to_json(space)) != spec[name]:
            env.close()
            raise UserError(f"mismatched spaces: {spec['id']} has the {name} {found}, but {spec[name]} was recorded")
    return env


def make_vector_env(spec_or_id: dict[str, Any] | str, num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    """`num_envs` copies of one environment, reset only where somebody asks for it (see `rollout`).

    Args:
        spec_or_id: an environment spec or a Gymnasium id.
        num_envs: how many copies step together.
        **kwargs: for an id, passed to `make_env`.
    """
    spec = spec_of(spec_or_id, **kwargs) if isinstance(spec_or_id, str) else spec_or_id
    return SyncVectorEnv([lambda: make_from_spec(spec)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
