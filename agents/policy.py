"""The agent as a policy: it watches through the world model and acts, in a real environment or in a dreamed one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.checkpoint import load_actor_critic, save_actor_critic
from worldmodel.agents.imagination import action_noise
from worldmodel.checkpoint import load_environment, load_model
from worldmodel.envs.observations import to_frames
from worldmodel.envs.spaces import from_model_action, space_from_json
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.state import DreamState


@dataclass(frozen=True)
class Memory:
    """What an agent carries from one step to the next, a row each.

    Attributes:
        state: the world model's, after the last observation.
        action: `(B, *action shape)` the last action, as the model takes it.
        keys: `(B,)` int64, where the chance of the running episode comes from.
        steps: `(B,)` int64 since the episode began.
        episodes: how many have begun in all rows together.
    """

    state: DreamState
    action: Tensor
    keys: Tensor
    steps: Tensor
    episodes: int


class Agent:
    """Acts on observations; see `worldmodel.envs.rollout.Policy`.

    The `k`-th episode started, whichever row plays it, takes its chance from `seed` and `k` alone: what an agent does
    in an episode does not depend on how many others are played beside it.

    Args:
        model: the world model that the agent was trained in.
        actor_critic: the trained networks.
        observation_space, action_space: of a single environment.
        greedy: always the most likely action, in place of a sampled one.
        seed: of the sampled actions and latents.

    Raises:
        UserError: the agent was trained on another model's features or for other actions.
    """

    def __init__(
        self,
        model: WorldModel,
        actor_critic: ActorCritic,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        greedy: bool = False,
        seed: int = 0,
    ) -> None:
        if (actor_critic.features, actor_critic.action) != (model.feature_width, model.config.action):
            raise UserError(
                f"the agent expects {actor_critic.features} features and {actor_critic.action}, but the world model "
                f"has {model.feature_width} and {model.config.action}: train the agent again in this world model"
            )
        self.model, self.actor_critic = model, actor_critic
        self.observation_space, self.action_space = observation_space, action_space
        self.greedy, self.seed = greedy, seed

    @classmethod
    def load(
        cls,
        run: Path | str,
        device: torch.device | str = "cpu",
        *,
        greedy: bool = False,
        seed: int = 0,
        loops: float | None = None,
    ) -> Agent:
        """The world model and the agent of a run folder; `loops` are those of `worldmodel.load`.

        Raises:
            UserError: one of them is missing or damaged, or they do not fit each other.
        """
        model = load_model(run, device, loops=loops)
        environment = load_environment(run)
        spaces = (space_from_json(environment[f"{name}_space"]) for name in ("observation", "action"))
        return cls(model, load_actor_critic(run, device), *spaces, greedy=greedy, seed=seed)

    def save(self, run: Path | str) -> None:
        """Writes the agent's networks into the folder of its world model's run."""
        save_actor_critic(run, self.actor_critic)

    @torch.no_grad()
    def act(
        self, observation: Any, memory: Memory | None = None, first: np.ndarray | bool | None = None
    ) -> tuple[np.ndarray, Memory]:
        """Chooses actions for a batch of observations, or one action for a single observation.

        Args:
            observation: as an environment of these spaces shows it, or a vector environment of B rows.
            memory: what the last call returned; None where all rows begin.
            first: `(B,)` bool, rows that begin a new episode; None means no row, or all of them without a memory.

        Returns:
            actions: `(B, *action shape)`, or one action for a single observation, as the environment takes them.
            memory: for the next call. The one passed in stays valid: acting on from it again gives the same.

        Raises:
            UserError: the observation has another shape than those the agent was trained on, or a type that theirs
                cannot hold.
        """
        shape = self.model.config.observation.shape
        frames = to_frames(self.observation_space, observation)
        single = frames.shape == shape
        if not single and frames.shape[1:] != shape:
            raise UserError(f"the agent was trained on observations of shape {shape}, not {frames.shape}")
        frames = _typed(frames, self.model.config.observation.dtype)
        # Torch reads no array backwards, and warns of one that may not be written into: such are copied.
        frame = torch.as_tensor(np.require(frames, requirements=["C", "W"]), device=self.model.device)
        frame = frame.unsqueeze(0) if single else frame
        rows = len(frame)
        if memory is None:
            memory, first = self._new_memory(rows), np.ones(rows, bool)
        elif memory.state.batch_size != rows:
            raise ValueError(f"the memory has {memory.state.batch_size} rows, the observation {rows}")
        begins = np.zeros(rows, bool) if first is None else np.asarray(first, bool).reshape(rows)
        if begins.any():
            memory = self._begin(memory, begins)

        first_rows = torch.as_tensor(begins, device=self.model.device)
        state, out = self.model.observe(memory.state, memory.action, frame, first_rows)
        policy = self.actor_critic.policy(out.feature)
        if self.greedy:
            action = policy.mode()
        else:
            action = policy.sample(action_noise(memory.keys, memory.steps, self.actor_critic.action.width))
        memory = Memory(state, action, memory.keys, memory.steps + 1, memory.episodes)
        actions = from_model_action(self.action_space, action.cpu().numpy())
        return (actions[0] if single else actions), memory

    def _new_memory(self, rows: int) -> Memory:
        spec, device = self.actor_critic.action, self.model.device
        dtype = torch.float32 if spec.kind == "box" else torch.int64
        action = torch.zeros(rows, *spec.shape, dtype=dtype, device=device)
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        return Memory(self.model.initial_state(rows, seed=zeros), action, zeros, zeros, 0)

    def _begin(self, memory: Memory, begins: np.ndarray) -> Memory:
        """Gives the rows that begin an episode a key of their own. The model itself forgets what came before."""
        order = torch.as_tensor(memory.episodes + np.cumsum(begins) - 1, device=self.model.device)
        rows = torch.as_tensor(begins, device=self.model.device)
        keys = torch.where(rows, self.seed % 2**31 * 2**32 + order, memory.keys)
        state = memory.state.reseed(keys).where(rows, memory.state)
        steps = torch.where(rows, 0, memory.steps)
        return Memory(state, memory.action, keys, steps, memory.episodes + int(begins.sum()))


def _typed(frames: np.ndarray, dtype: str) -> np.ndarray:
    """Frames in the model's type, also if an environment shows numbers of another width.

    Raises:
        UserError: that type cannot hold them.
    """
    if frames.dtype == dtype:
        return frames
    if frames.dtype.kind in ("biuf" if dtype == "float32" else "biu"):
        typed = frames.astype(dtype)
        if dtype == "float32" or (typed == frames).all():
            return typed
    raise UserError(f"the agent was trained on observations of {dtype}, which cannot hold these of {frames.dtype}")
