"""Trajectories in, a world model out: see README.md.

Importing the package registers the environment `worldmodel/Dream-v0`. Torch is imported by the first name that needs
it, so that `import worldmodel` stays instant. The model and its kernels need no Gymnasium: where it is missing, only
the environment is not there.
"""

from __future__ import annotations

import importlib
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.model import WorldModel
    from worldmodel.state import DreamState

__all__ = ["DreamState", "WorldModel", "load", "load_agent"]

_HOMES = {"DreamState": "worldmodel.state", "WorldModel": "worldmodel.model"}


def load(run: str | PathLike[str], device: str = "cpu", *, loops: float | None = None) -> WorldModel:
    """The world model of a run folder, in evaluation mode.

    Args:
        run: a run folder, as `worldmodel train` writes it.
        device: where its weights go.
        loops: how often its core runs, if it has one; as often as in training on average if not given.

    Raises:
        UserError: the folder or a file in it is missing or damaged, or the model cannot have so many loops.
    """
    return importlib.import_module("worldmodel.checkpoint").load_model(run, device=device, loops=loops)


def load_agent(run: str | PathLike[str], device: str = "cpu", *, greedy: bool = False, seed: int = 0) -> Any:
    """The agent of a run folder: `action, memory = agent.act(observation, memory)`, in any env with the run's spaces.

    Args:
        run: a run folder with an `agent.safetensors`, as `worldmodel dream` writes it.
        device: where its weights go.
        greedy: always the most likely action, in place of a sampled one.
        seed: of what it samples.

    Raises:
        UserError: the folder or a file in it is missing or damaged.
    """
    # By name, because agents stand above this package: nothing here may depend on them.
    return importlib.import_module("worldmodel.agents.policy").Agent.load(run, device, greedy=greedy, seed=seed)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'worldmodel' has no attribute {name!r}")


def _register() -> None:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":  # it is there, but broken
            raise
        return
    gymnasium.register(
        id="worldmodel/Dream-v0",
        entry_point="worldmodel.envs.dream:DreamEnv",
        vector_entry_point="worldmodel.envs.dream:DreamVectorEnv",
    )


_register()
