"""The pieces of work whose speed is measured: an update of the model, a dream with and without pictures, the agent."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import cpu_seconds

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.training import AgentTrainer
from worldmodel.envs.make import make_vector_env
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.model import WorldModel
from worldmodel.state import DreamState
from worldmodel.training import TrainConfig, Trainer

Work = Callable[[], object]
AGENT_DREAMS = 256  # dreams in an update of the agent, 15 steps each


def all_distinct(table: FrameTable, seed: int = 0) -> FrameTable:
    """The same episodes with no two frames alike: a few pixels of each are changed by one grey level."""
    rng = np.random.default_rng(seed)
    frames = table.frames[table.index].copy()
    flat = frames.reshape(len(frames), -1)
    places = rng.integers(flat.shape[1], size=(len(flat), 8))
    flat[np.arange(len(flat))[:, None], places] ^= 1
    return dataclasses.replace(table, frames=frames, index=np.arange(len(frames)))


def distinct_share(model: WorldModel, table: FrameTable, config: TrainConfig, count: int = 16) -> float:
    """Frames of a batch that are different from all others in it; the others cost the frame stage nothing."""
    source = Segments.for_training(table, model.config, config)
    indices = [source.sample().index for _ in range(count)]
    return statistics.mean(len(torch.unique(index)) / index.numel() for index in indices)


def training(model: WorldModel, table: FrameTable, config: TrainConfig) -> Work:
    """One update of a copy of the model, by the trainer as it is after its first, pictures-only updates."""
    source = Segments.for_training(table, model.config, config)
    copy = WorldModel(model.config)
    copy.load_state_dict(model.state_dict())
    trainer = Trainer(copy.train(), source, Path("unused"), config)
    trainer.update = config.pictures_first
    trainer.step(source.sample())
    if source.codes is not None:
        source.codes.of(np.arange(len(table.frames)))  # a run codes each frame once; this is what comes after
    return lambda: trainer.step(source.sample())


def agent_update(model: WorldModel, table: FrameTable) -> Work:
    """One update of actor and critic in 256 dreams of 15 steps."""
    agent = ActorCritic(model.feature_width, model.config.action)
    trainer, starts = AgentTrainer(model, agent), dream_state(model, table, AGENT_DREAMS)
    return lambda: trainer.update(starts)


def dream_state(model: WorldModel, table: FrameTable, rows: int) -> DreamState:
    """A state that has seen eight real frames."""
    rng = np.random.default_rng(0)
    begin = rng.integers(0, len(table) - 8, size=rows)
    state = model.initial_state(rows, elapsed=torch.from_numpy(table.elapsed(begin)))
    for t in range(8):
        at = begin + t
        frame, action = torch.from_numpy(table.frames[table.index[at]]), torch.from_numpy(table.action[at])
        state, _ = model.observe(state, action, frame, torch.from_numpy(table.first[at]))
    return state


def observing(model: WorldModel, table: FrameTable, rows: int) -> Work:
    """One look at what as many environments show."""
    rng = np.random.default_rng(0)
    state, none = dream_state(model, table, rows), torch.zeros(rows, dtype=torch.bool)
    frames = torch.from_numpy(table.frames[table.index[rng.integers(len(table), size=rows)]])
    actions = random_actions(model, 1, rows)[0]
    return lambda: model.observe(state, actions, frames, none)


def acting(
    model: WorldModel, table: FrameTable, environment: dict[str, Any], repeats: int, rows: int = 16
) -> dict[str, float]:
    """Milliseconds of one step of 16 real environments, and of `observe` of what they show."""
    envs = make_vector_env(environment, rows)
    envs.reset(seed=0)
    seconds = {
        "environments_ms": cpu_seconds(lambda: envs.step(envs.action_space.sample()), 2 * repeats),
        "observe_ms": cpu_seconds(observing(model, table, rows), 2 * repeats),
    }
    envs.close()
    return {name: 1e3 * value for name, value in seconds.items()}


def random_actions(model: WorldModel, steps: int, rows: int) -> torch.Tensor:
    """Actions for a dream, `(steps, rows, *action shape)`."""
    action = model.config.action
    if action.kind == "box":
        return torch.empty(steps, rows, *action.shape).uniform_(action.low, action.high)
    return torch.randint(min(action.sizes), (steps, rows, *action.shape))


def dreaming(model: WorldModel, state: DreamState, steps: int, pixels: bool) -> Work:
    """A dream of all rows of the state, with or without its pictures."""
    actions = random_actions(model, steps, state.batch_size)

    def dream() -> None:
        now = state
        for action in actions:
            now, out = model.imagine(now, action)
            if pixels:
                model.decode(out)

    return dream


def measure(model: WorldModel, table: FrameTable, repeats: int) -> dict[str, dict[str, float]]:
    """The rows of the table of speed, each by CPU-second of one thread."""
    config, few = TrainConfig(), max(3, repeats // 3)
    frames = config.batch_size * config.length
    rates = {}
    for name, source in (("trained", table), ("trained, every frame distinct", all_distinct(table))):
        seconds = cpu_seconds(training(model, source, config), repeats)
        rates[name] = {"per_cpu_second": frames / seconds, "distinct_share": distinct_share(model, source, config)}
    # As in sheeprl's figure: one agent's update over as many dreams as the batch has frames, 15 steps each.
    agent = cpu_seconds(agent_update(model, table), few)
    together = frames / rates["trained"]["per_cpu_second"] + agent * frames / AGENT_DREAMS
    rates["trained, with the agent's update"] = rates["trained"] | {"per_cpu_second": frames / together}
    for name, rows, steps, pixels in (("dreamed with pixels", 16, 15, True), ("latent dream steps", 1024, 5, False)):
        dream = dreaming(model, dream_state(model, table, rows), steps, pixels)
        rates[name] = {"per_cpu_second": rows * steps / cpu_seconds(dream, repeats if pixels else few)}
    return rates
