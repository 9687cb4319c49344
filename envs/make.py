"""Any Gymnasium id, wrapped by name, and described so that the same environment can be built again later.

A run folder and an episode store both hold an *environment spec*: id, wrappers, kwargs, time limit and the two spaces.
`make_from_spec` rebuilds the environment and refuses when its spaces are no longer the ones that were recorded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import (
    AddRenderObservation,
    DtypeObservation,
    FilterObservation,
    FlattenObservation,
    TimeLimit,
    TransformObservation,
)

from worldmodel.envs.spaces import space_to_json
from worldmodel.errors import UserError

# Packages that register their environments only when imported, by how their ids begin.
PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py"}
SKIP = 4  # frames that an action is held for in Atari games


def _minigrid_rgb(env: gymnasium.Env, pixels: int = 8) -> gymnasium.Env:
    """What the agent sees, 8 pixels a cell: 56x56x3."""
    from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper

    return ImgObsWrapper(RGBImgPartialObsWrapper(env, tile_size=pixels))


def _minigrid_rgb16(env: gymnasium.Env) -> gymnasium.Env:
    """The same, 16 pixels a cell: 112x112x3."""
    return _minigrid_rgb(env, pixels=16)


def _minigrid_rgb_full(env: gymnasium.Env) -> gymnasium.Env:
    """The whole map, 8 pixels a cell."""
    from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper

    return ImgObsWrapper(RGBImgObsWrapper(env, tile_size=8))


def _minigrid_grid(env: gymnasium.Env) -> gymnasium.Env:
    """What the agent sees as codes of object, colour and state: 7x7x3."""
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(env)


def _minigrid_rgb_direction(env: gymnasium.Env) -> gymnasium.Env:
    """What the agent sees, 56x56x3, and beside it which way it looks, one of four: two modalities."""
    from minigrid.wrappers import RGBImgPartialObsWrapper

    return FilterObservation(RGBImgPartialObsWrapper(env, tile_size=8), ["image", "direction"])


def _render_beside(env: gymnasium.Env) -> gymnasium.Env:
    """The rendered picture beside the observation: a dict of both."""
    return AddRenderObservation(env, render_only=False)


def _render(env: gymnasium.Env) -> gymnasium.Env:
    """The rendered picture in place of the observation."""
    return AddRenderObservation(env, render_only=True)


def _resize64(env: gymnasium.Env) -> gymnasium.Env:
    """Images averaged down to 64x64, every source pixel counted by its area; of a dict those that it holds."""

    def shrink(image: np.ndarray) -> np.ndarray:
        chw = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
        small = torch.nn.functional.interpolate(chw[None], size=(64, 64), mode="area")[0]
        return small.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def small(space: Space) -> Space | None:
        shape = space.shape or ()
        return Box(0, 255, (64, 64, shape[2]), np.uint8) if len(shape) == 3 else None

    return _transformed(
        env, shrink, small, f"the wrapper 'resize64' needs images of shape (H, W, C), not {env.observation_space}"
    )


class SkipFrames(gymnasium.Wrapper):
    """Every action held for four frames, of which the brighter of the last two is seen, pixel by pixel.

    As in Mnih et al. (2015): Atari games draw some things in every other frame only.
    """

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action; the rewards of its frames are added up."""
        total, seen = 0.0, None
        for _ in range(SKIP):
            before = seen
            seen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return seen if before is None else np.maximum(before, seen), total, terminated, truncated, info


def _grayscale(env: gymnasium.Env) -> gymnasium.Env:
    """Colours as one channel of brightness (Rec. 601)."""
    shape = env.observation_space.shape or ()
    if len(shape) != 3 or shape[2] != 3:
        raise UserError(f"the wrapper 'grayscale' needs images of shape (H, W, 3), not {shape}")
    weights = np.array([0.299, 0.587, 0.114], np.float32)

    def mix(image: np.ndarray) -> np.ndarray:
        return np.round(image @ weights).astype(np.uint8)[..., None]

    return TransformObservation(env, mix, Box(0, 255, (*shape[:2], 1), np.uint8))


def _single_precision(env: gymnasium.Env) -> gymnasium.Env:
    """Numbers of float64 as float32; without any, the environment as it is."""

    def single(space: Space) -> Space | None:
        if not isinstance(space, Box) or space.dtype != np.float64:
            return None
        return Box(space.low, space.high, space.shape, np.float32)

    return _transformed(env, lambda values: values.astype(np.float32), single)


def _transformed(
    env: gymnasium.Env,
    function: Callable[[np.ndarray], np.ndarray],
    becomes: Callable[[Space], Space | None],
    sentence: str = "",
) -> gymnasium.Env:
    """What an environment shows, changed; of a dict each part by itself.

    Args:
        env: the environment.
        function: changes an observation, or a part.
        becomes: the space of what a space's observations are changed to; None where they stay as they are.
        sentence: said where nothing changes; without one that is no mistake.
    """
    space = env.observation_space
    if not isinstance(space, Dict):
        changed = becomes(space)
        if changed is not None:
            return TransformObservation(env, function, changed)
    elif parts := {name: new for name, part in space.spaces.items() if (new := becomes(part)) is not None}:

        def each(observation: dict[str, Any]) -> dict[str, Any]:
            return observation | {name: function(observation[name]) for name in parts}

        return TransformObservation(env, each, Dict({**space.spaces, **parts}))
    if sentence:
        raise UserError(sentence)
    return env


def _flatten(env: gymnasium.Env) -> gymnasium.Env:
    """Anything as one float32 vector; discrete parts as one-hots."""
    return DtypeObservation(FlattenObservation(env), np.float32)


WRAPPERS: dict[str, Callable[[gymnasium.Env], gymnasium.Env]] = {
    "minigrid_rgb": _minigrid_rgb,
    "minigrid_rgb16": _minigrid_rgb16,
    "minigrid_rgb_full": _minigrid_rgb_full,
    "minigrid_grid": _minigrid_grid,
    "minigrid_rgb_direction": _minigrid_rgb_direction,
    "render": _render,
    "render_beside": _render_beside,
    "skip4": SkipFrames,
    "resize64": _resize64,
    "grayscale": _grayscale,
    "flatten": _flatten,
}


def default_wrappers(env_id: str) -> tuple[str, ...]:
    """The wrappers an id gets when none are named: MiniGrid's RGB partial view, Atari as world models see it (every
    fourth frame, 64x64x3), none for others."""
    if env_id.startswith("ALE/"):
        return ("skip4", "resize64")
    return ("minigrid_rgb",) if env_id.startswith(("MiniGrid-", "BabyAI-")) else ()


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
        env = WRAPPERS[name](env)
    if outside is not None:
        env = TimeLimit(env, outside)
    env = _single_precision(env)
    if seed is not None:
        env.reset(seed=seed)
    return env


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
