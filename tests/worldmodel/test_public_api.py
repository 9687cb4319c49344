"""The names that the README promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import worldmodel
from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.checkpoint import save_actor_critic
from worldmodel.checkpoint import save_model
from worldmodel.envs.contexts import choose_contexts, save_contexts
from worldmodel.envs.make import spec_of
from worldmodel.envs.rollout import Episode
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.spaces import action_spec, observation_spec, space_from_json
from worldmodel.presets import preset


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    environment = spec_of("CartPole-v1")
    observation, action = (space_from_json(environment[f"{name}_space"]) for name in ("observation", "action"))
    model = worldmodel.WorldModel(preset("tiny", observation_spec(observation), action_spec(action)))
    save_model(folder, model, environment)
    episode = Episode(np.zeros((9, 4), np.float32), np.zeros(8, np.int64), np.ones(8, np.float32), True, False)
    save_contexts(folder / "contexts.npz", choose_contexts(FrameTable.from_episodes([episode], action), count=4))
    save_actor_critic(folder, ActorCritic(model.feature_width, model.config.action))
    return folder


def test_importing_registers_and_leaves_torch_alone() -> None:
    code = "import worldmodel, gymnasium, sys; gymnasium.spec('worldmodel/Dream-v0'); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_load_and_step(run: Path) -> None:
    model = worldmodel.load(run)
    assert not model.training
    state = model.initial_state(2, seed=0)
    assert isinstance(state, worldmodel.DreamState)
    with pytest.raises(AttributeError, match="nonsense"):
        worldmodel.nonsense  # noqa: B018


@pytest.mark.parametrize("env_id", ["worldmodel/Dream-v0", "CartPole-v1"])
def test_the_agent_acts_in_the_dream_and_in_the_real_environment(run: Path, env_id: str) -> None:
    env = gymnasium.make(env_id, **({"checkpoint": str(run)} if env_id.startswith("worldmodel") else {}))
    agent, memory = worldmodel.load_agent(run), None
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        action, memory = agent.act(observation, memory)
        assert action in env.action_space
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            break
