"""Windows of a test set run through a world model: some real frames, then open loop, then beside it closed loop.

All windows step together, and every way of predicting them gives the same record, a `Rollout`, whether it is a dream,
the truth itself or a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldmodel.envs.segments import FrameTable
from worldmodel.envs.windows import Windows
from worldmodel.model import WorldModel
from worldmodel.outputs import StepOutput
from worldmodel.state import DreamState


@dataclass
class Rollout:
    """What N windows look like at H horizons. Where a window does not reach a horizon there are zeros.

    Attributes:
        frames: `(N, H, *observation shape)`.
        reward: `(N, H)` float32, paid on arriving at the frame.
        reward_mean: `(N, H)` float32, its expectation.
        terminated: `(N, H)` bool.
        terminated_probability: `(N, H)` float32.
        starts: `(N, H, K)` first patch of each chunk, -1 where absent; None for what no model made.
        chunks: mean number of chunks a frame, over all steps of all windows.
        start_entropy: mean nats a frame of choosing where chunks start.
    """

    frames: np.ndarray
    reward: np.ndarray
    reward_mean: np.ndarray
    terminated: np.ndarray
    terminated_probability: np.ndarray
    starts: np.ndarray | None = None
    chunks: float | None = None
    start_entropy: float | None = None


def truth(table: FrameTable, windows: Windows) -> Rollout:
    """What really came."""
    at = np.stack([np.minimum(windows.at(h), len(table) - 1) for h in windows.horizons], axis=1)
    reached = windows.steps[:, None] >= np.asarray(windows.horizons)
    reward = table.reward[at] * reached
    terminated = table.terminated[at] & reached
    frames = table.frames[table.index[at]]
    frames[~reached] = 0
    return Rollout(frames, reward, reward, terminated, terminated.astype(np.float32))


def repeat_last_frame(table: FrameTable, windows: Windows) -> Rollout:
    """The guess that nothing will ever change: the last frame of the context, no reward, no end."""
    last = table.frames[table.index[windows.at(0)]]
    nothing = np.zeros((len(windows), len(windows.horizons)), dtype=np.float32)
    frames = np.repeat(last[:, None], len(windows.horizons), axis=1)
    return Rollout(frames, nothing, nothing, nothing.astype(bool), nothing)


def observe_context(model: WorldModel, table: FrameTable, windows: Windows, seed: int = 0) -> DreamState:
    """Show each window's context to the model. A context in mid-episode begins with the action that led to it."""
    state = model.initial_state(len(windows), seed=seed, elapsed=_tensor(table.elapsed(windows.begin)))
    for step in range(1 - windows.context, 1):
        at = windows.at(step)
        action, frame = _tensor(table.action[at]), _tensor(table.frames[table.index[at]])
        state, _ = model.observe(state, action, frame, _tensor(table.first[at]))
    return state


def open_loop(
    model: WorldModel,
    state: DreamState,
    table: FrameTable,
    windows: Windows,
    shuffle_seed: int | None = None,
    realign: int = 0,
) -> Rollout:
    """Dream on from `state` with the recorded actions, most likely latents, starts and events.

    Args:
        model: the world model.
        state: after the context, see `observe_context`.
        table: the test set's frames.
        windows: what to dream.
        shuffle_seed: if given, all actions of all windows and steps change places at random.
        realign: after so many steps, and again and again, the model is shown what it painted; 0 never.
    """
    actions = _recorded_actions(table, windows)
    if shuffle_seed is not None:
        taken = np.arange(actions.shape[1]) < windows.steps[:, None]
        actions[taken] = np.random.default_rng(shuffle_seed).permutation(actions[taken])

    def step(state: DreamState, number: int, rows: int) -> tuple[DreamState, StepOutput]:
        action = _tensor(actions[:rows, number - 1])
        after, out = model.imagine(state, action, greedy=True)
        return model.realign(state, action, out) if realign and number % realign == 0 else (after, out)

    return _roll(model, state, windows, step, seen=False)


def closed_loop(model: WorldModel, state: DreamState, table: FrameTable, windows: Windows) -> Rollout:
    """Go on observing the true frames, and decode what was observed: the ceiling of what a dream can look like."""

    def step(state: DreamState, number: int, rows: int) -> tuple[DreamState, StepOutput]:
        at = windows.at(number, rows)
        frame = _tensor(table.frames[table.index[at]])
        return model.observe(state, _tensor(table.action[at]), frame, torch.zeros(rows, dtype=torch.bool))

    return _roll(model, state, windows, step, seen=True)


def _roll(
    model: WorldModel,
    state: DreamState,
    windows: Windows,
    step: Callable[[DreamState, int, int], tuple[DreamState, StepOutput]],
    seen: bool,
) -> Rollout:
    N, H = len(windows), len(windows.horizons)
    spec = model.config.observation
    frames = np.zeros((N, H, *spec.shape), dtype=spec.dtype)
    numbers = {name: np.zeros((N, H), dtype=np.float32) for name in ("reward", "reward_mean", "terminated_probability")}
    terminated = np.zeros((N, H), dtype=bool)
    starts: list[np.ndarray] = [np.zeros((N, 0), dtype=np.int64)] * H
    chunks = entropy = 0.0
    for number in range(1, int(windows.steps.max(initial=0)) + 1):
        rows = windows.running(number)
        state, out = step(state[:rows], number, rows)
        chunks += float(out.chunks.sum())
        entropy += float(out.start_entropy.sum())
        if number in windows.horizons:
            column = windows.horizons.index(number)
            frames[:rows, column] = model.decode(out).cpu().numpy()
            numbers["reward"][:rows, column] = out.reward.cpu().numpy()
            numbers["reward_mean"][:rows, column] = out.reward_mean.cpu().numpy()
            numbers["terminated_probability"][:rows, column] = out.terminated_probability.cpu().numpy()
            terminated[:rows, column] = out.terminated.cpu().numpy()
            found = out.starts.cpu().numpy()
            starts[column] = np.pad(found, ((0, N - rows), (0, 0)), constant_values=-1)
    total = max(1, int(windows.steps.sum()))
    widest = max(part.shape[1] for part in starts)
    padded = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=-1) for part in starts]
    return Rollout(
        frames=frames,
        **numbers,
        terminated=terminated,
        starts=np.stack(padded, axis=1),
        chunks=chunks / total,
        # Where chunks start in a frame that is seen is not a choice.
        start_entropy=None if seen else entropy / total,
    )


def _recorded_actions(table: FrameTable, windows: Windows) -> np.ndarray:
    """`(N, longest window, *action shape)`; what lies behind a window's end is not used."""
    steps = np.arange(1, int(windows.steps.max(initial=1)) + 1)
    at = windows.at(0)[:, None] + steps
    return table.action[np.minimum(at, len(table) - 1)]


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
