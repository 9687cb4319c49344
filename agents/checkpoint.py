"""The agent's two files in a run folder: `agent.safetensors` to act with, `agent_trainer.pt` to go on training from.

The second repeats the weights: one file is replaced at a time, and a resumed run must not mix two moments.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from worldmodel.agents.actor_critic import ActorCritic, AgentConfig
from worldmodel.checkpoint import write_atomically
from worldmodel.errors import UserError
from worldmodel.specs import ActionSpec

FORMAT_VERSION = 1
AGENT_FILE = "agent.safetensors"
TRAINER_FILE = "agent_trainer.pt"


def save_actor_critic(run: Path | str, agent: ActorCritic) -> None:
    """Writes `agent.safetensors`: the weights, and in its metadata all that is needed to rebuild the agent."""
    description = {
        "format_version": FORMAT_VERSION,
        "config": agent.config.to_dict(),
        "features": agent.features,
        "action": dataclasses.asdict(agent.action),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in agent.state_dict().items()}
    metadata = {"agent": json.dumps(description)}  # one entry: safetensors shuffles several, and bits would differ
    write_atomically(Path(run) / AGENT_FILE, safetensors.torch.save(weights, metadata))


def load_actor_critic(run: Path | str, device: torch.device | str = "cpu") -> ActorCritic:
    """Rebuilds the agent's networks from a run folder.

    Raises:
        UserError: there is none, or the file is damaged or of a newer version.
    """
    path = Path(run) / AGENT_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: train an agent there first, with `worldmodel dream --run {run}`")
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["agent"])
        version = description["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, but this worldmodel reads {FORMAT_VERSION}: update it"
            )
        action = description["action"] | {"sizes": tuple(description["action"]["sizes"])}
        config = AgentConfig.from_dict(description["config"])
        agent = ActorCritic(description["features"], ActionSpec(**action), config)
        agent.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as an agent ({error}): train it again, or restore the file") from error
    return agent.to(device)


def save_trainer(run: Path | str, agent: ActorCritic, state: dict[str, Any]) -> None:
    """Writes `agent_trainer.pt`: `state` and the agent's weights of the same moment."""
    buffer = io.BytesIO()
    content = {"format_version": FORMAT_VERSION, "config": agent.config.to_dict(), "agent": agent.state_dict(), **state}
    torch.save(content, buffer)
    write_atomically(Path(run) / TRAINER_FILE, buffer.getvalue())


def load_trainer(run: Path | str, agent: ActorCritic) -> dict[str, Any]:
    """Reads `agent_trainer.pt`, puts its weights into `agent`, and returns the rest.

    Raises:
        UserError: there is none, it is damaged, or it belongs to an agent of another config.
    """
    path = Path(run) / TRAINER_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: there is no agent's training to resume in {run}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = AgentConfig.from_dict(state["config"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it to train the agent from the start") from error
    if saved != agent.config:
        changed = [k for k, v in agent.config.to_dict().items() if v != state["config"][k]]
        raise UserError(f"{path} was trained with another {', '.join(changed)}: resume with the same agent config")
    try:
        agent.load_state_dict(state.pop("agent"))
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this world model's features or actions: {error}") from error
    return state
