"""A real run folder in a second: a tiny model with random weights and contexts from a short collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from worldmodel.checkpoint import save_model
from worldmodel.envs.collect import collect
from worldmodel.envs.contexts import choose_contexts, save_contexts
from worldmodel.envs.make import spec_of
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.model import WorldModel
from worldmodel.presets import preset


def write_run(
    folder: Path, env_id: str, end_bias: float = -3.0, steps: int = 200, wrappers: Sequence[str] | None = None
) -> Path:
    """A run folder whose model was never trained.

    Args:
        folder: an empty one.
        env_id: a Gymnasium id.
        end_bias: logit of termination in every dreamt step; the default ends about one step in twenty.
        steps: to collect.
        wrappers: by name; the default ones if left out.
    """
    store = collect(spec_of(env_id, wrappers=wrappers), folder / "data", steps, num_envs=4, progress=False)
    torch.manual_seed(0)
    model = WorldModel(preset("tiny", observation_spec(store.observation_space), action_spec(store.action_space)))
    with torch.no_grad():
        model.outcome.out.bias[1] = end_bias
        model.outcome.out.bias[-1] = 1.0  # rewards of a size that is not zero
    save_model(folder / "run", model, store.environment)
    save_contexts(folder / "run" / "contexts.npz", choose_contexts(FrameTable.from_store(store), count=16))
    return folder / "run"
