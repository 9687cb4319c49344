"""A real run folder without training: a small random world model of a real environment, and a fresh agent."""

from __future__ import annotations

from pathlib import Path

import torch

from worldmodel.agents.actor_critic import ActorCritic, AgentConfig
from worldmodel.agents.checkpoint import save_actor_critic
from worldmodel.checkpoint import save_model
from worldmodel.config import CausalConfig, FrameConfig, LatentConfig, MainConfig, ModelConfig
from worldmodel.envs.make import spec_of
from worldmodel.envs.spaces import action_spec, observation_spec, space_from_json
from worldmodel.model import WorldModel

SMALL = AgentConfig(width=32, dreams=16, horizon=4)


def small_model(environment: dict, seed: int = 0) -> WorldModel:
    """A model of a few thousand weights for the spaces of an environment spec."""
    torch.manual_seed(seed)
    observation = observation_spec(space_from_json(environment["observation_space"]))
    config = ModelConfig(
        observation=observation,
        action=action_spec(space_from_json(environment["action_space"])),
        frame=FrameConfig(patch=8 if observation.kind == "image" else 1, width=32, heads=2, chunks=2.0),
        latent=LatentConfig(groups=4, classes=4),
        causal=(CausalConfig(width=64, encoder_layers="m1", decoder_layers="m1", heads=2),),
        main=MainConfig(width=96, layers="m1T1", heads=2, window=6),
    )
    model = WorldModel(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 2 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)  # else an untrained model ignores actions and promises nothing
    return model


def fresh_agent(model: WorldModel, config: AgentConfig = SMALL, seed: int = 1) -> ActorCritic:
    """An agent with small random last layers: fresh ones are zero, and would hide what they are fed."""
    torch.manual_seed(seed)
    agent = ActorCritic(model.feature_width, model.config.action, config)
    for network in (agent.actor, agent.critic):
        torch.nn.init.normal_(network[-1].weight, std=0.3)
    return agent


def write_run(folder: Path, env_id: str) -> Path:
    """A run folder with `config.json`, `world_model.safetensors` and `agent.safetensors`."""
    environment = spec_of(env_id)
    model = small_model(environment)
    save_model(folder, model, environment)
    save_actor_critic(folder, fresh_agent(model))
    return folder
