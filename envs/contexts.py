"""Short real prefixes of episodes that travel with a checkpoint: dreams begin where something real happened.

A context is aligned to its end: with `valid[n]` frames, row `n` fills the last `valid[n]` slots, and all rows are ready
after the same step.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from worldmodel.checkpoint import write_atomically
from worldmodel.envs.segments import FrameTable
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.outputs import StepOutput
from worldmodel.state import DreamState

FORMAT_VERSION = 2  # 1 did not know how much of an episode lies before a context


@dataclass(frozen=True)
class Contexts:
    """`N` prefixes of at most `T` frames, in the timing of `worldmodel.batch.Batch`.

    Attributes:
        frames: `(N, T, *observation shape)`; slots before the first valid one are zeros.
        actions: `(N, T, *action shape)` the action that led to each frame, as the model takes it.
        first: `(N, T)` bool, the frame begins an episode.
        valid: `(N,)` how many frames each row has, the last ones.
        initial: `(N,)` bool, the row is the first frame of an episode and nothing else.
        elapsed: `(N,)` int64, actions of the episode before the row's first frame.
    """

    frames: np.ndarray
    actions: np.ndarray
    first: np.ndarray
    valid: np.ndarray
    initial: np.ndarray
    elapsed: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.valid)

    def __getitem__(self, rows: slice | np.ndarray) -> Contexts:
        """Some of the rows: a slice, a mask or indices."""
        return Contexts(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def choose_contexts(table: FrameTable, count: int = 64, length: int = 8, seed: int = 0) -> Contexts:
    """Draw contexts from real data: half of them beginnings of episodes, half anywhere later.

    Args:
        table: the data.
        count: contexts in all.
        length: frames of a context that begins in mid-episode; fewer where its episode begins later than that.
        seed: of the choice.

    Returns:
        Contexts none of which ends at a terminal frame.
    """
    rng = np.random.default_rng(seed)
    later = np.flatnonzero(~table.first & ~table.terminated)
    num_initial = count - count // 2 if len(later) else count
    ends = np.concatenate([_draw(rng, table.begin[:-1], num_initial), _draw(rng, later, count - num_initial)])
    begins = np.maximum(ends - length + 1, table.begin[table.episode_of(ends)])
    positions = ends[:, None] + np.arange(1 - length, 1)  # (N, T)
    inside = positions >= begins[:, None]
    positions = np.where(inside, positions, ends[:, None])
    frames, actions = table.frames[table.index[positions]], table.action[positions]
    frames[~inside] = 0
    actions[~inside] = 0
    return Contexts(
        frames=frames,
        actions=actions,
        first=table.first[positions] & inside,
        valid=inside.sum(axis=1),
        initial=table.first[ends],
        elapsed=table.elapsed(begins),
    )


def _draw(rng: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    """`count` of the values at random, none twice while there are enough."""
    if len(values) == 0:
        return np.empty(0, np.int64)
    rounds = [rng.permutation(values) for _ in range(-(-count // len(values)))]
    return np.concatenate([np.empty(0, np.int64), *rounds])[:count]


def save_contexts(path: str | Path, contexts: Contexts) -> None:
    """Write contexts to one small file, all or nothing."""
    file = io.BytesIO()
    arrays = {f.name: getattr(contexts, f.name) for f in fields(contexts)}
    np.savez_compressed(file, format_version=np.array(FORMAT_VERSION), **arrays)
    write_atomically(path, file.getvalue())


def load_contexts(path: str | Path) -> Contexts:
    """Read what `save_contexts` wrote.

    Raises:
        UserError: the file is missing, damaged, or of a newer version.
    """
    try:
        with np.load(path) as arrays:
            version = int(arrays["format_version"])
            if version > FORMAT_VERSION:
                raise UserError(f"{path} has format version {version}; this worldmodel reads {FORMAT_VERSION}")
            known = dict(arrays)
            if version == 1:
                known["elapsed"] = np.zeros_like(known["valid"])
            return Contexts(**{f.name: known[f.name] for f in fields(Contexts)})
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a dream begins at the contexts that training stores there") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged and cannot be read: {error}") from error


def burn_in(model: WorldModel, contexts: Contexts, seed: int = 0) -> tuple[DreamState, StepOutput]:
    """Let the model see each context, frame by frame.

    Args:
        model: that is to dream on from there.
        contexts: at least one.
        seed: of the posterior's samples.

    Returns:
        state: one row a context, after its last frame.
        out: what `observe` returned for the last frames.
    """
    device = model.device
    frames, actions = torch.from_numpy(contexts.frames).to(device), torch.from_numpy(contexts.actions).to(device)
    first = torch.from_numpy(contexts.first).to(device)
    length = contexts.frames.shape[1]
    begin = torch.from_numpy(length - contexts.valid).to(device)
    state = model.initial_state(len(contexts), seed=seed, elapsed=torch.from_numpy(contexts.elapsed))
    for t in range(length - int(contexts.valid.max()), length):
        begun = begin <= t
        seen, out = model.observe(state, actions[:, t], frames[:, t], first[:, t])
        state = seen.where(begun, state)  # what a row saw before it began is forgotten, its noise not used up
    return state, out
