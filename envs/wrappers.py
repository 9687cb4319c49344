"""Wrappers by name: what an environment shows is turned into what a model can see.

A name is all that an environment spec keeps of a wrapper, so what it does must never change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import (
    AddRenderObservation,
    DtypeObservation,
    FilterObservation,
    FlattenObservation,
    TransformObservation,
)

from worldmodel.envs.spaces import SMALLEST_IMAGE
from worldmodel.errors import UserError

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
    return _resized(env, 64)


def _resize128(env: gymnasium.Env) -> gymnasium.Env:
    """The same, to 128x128."""
    return _resized(env, 128)


def _resized(env: gymnasium.Env, side: int) -> gymnasium.Env:

    def shrink(image: np.ndarray) -> np.ndarray:
        chw = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
        small = torch.nn.functional.interpolate(chw[None], size=(side, side), mode="area")[0]
        return small.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def small(space: Space) -> Space | None:
        return Box(0, 255, (side, side, space.shape[2]), np.uint8) if _is_picture(space) else None

    return _transformed(
        env, shrink, small, f"the wrapper 'resize{side}' needs images of uint8, (H, W, C), not {env.observation_space}"
    )


class SkipFrames(gymnasium.Wrapper):
    """Every action held for four frames, of which the brighter of the last two is seen, pixel by pixel.

    As in Mnih et al. (2015): Atari games draw some things in every other frame only.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        if not isinstance(env.observation_space, Box) or env.observation_space.dtype != np.uint8:
            raise UserError(f"the wrapper 'skip4' needs brightnesses of uint8, not {env.observation_space}")

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


def _is_picture(space: Space) -> TypeGuard[Box]:
    if not isinstance(space, Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 3 and min(space.shape[:2]) >= SMALLEST_IMAGE


def single_precision(env: gymnasium.Env) -> gymnasium.Env:
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
    "resize128": _resize128,
    "grayscale": _grayscale,
    "flatten": _flatten,
}


def default_wrappers(env_id: str) -> tuple[str, ...]:
    """The wrappers an id gets when none are named: MiniGrid's RGB partial view, Atari as world models see it (every
    fourth frame, 64x64x3), none for others."""
    if env_id.startswith("ALE/"):
        return ("skip4", "resize64")
    return ("minigrid_rgb",) if env_id.startswith(("MiniGrid-", "BabyAI-")) else ()
