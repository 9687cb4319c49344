"""From a store to what the learner eats: all distinct frames in RAM, and segments cut from the episodes.

`FrameTable` lays all episodes end to end, in the timing of `worldmodel.batch.Batch`: whatever stands at position `i`
belongs to arriving at frame `i`. A segment is then a list of positions, and a batch is one gather.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space

from worldmodel.batch import Batch
from worldmodel.config import ModelConfig
from worldmodel.envs.known_codes import KnownCodes
from worldmodel.envs.observations import first_modality
from worldmodel.envs.rollout import Episode
from worldmodel.envs.spaces import action_spec, to_model_action
from worldmodel.envs.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.frames import FrameStage
from worldmodel.specs import ObservationSpec
from worldmodel.training import TrainConfig

CODES_BYTES = 1 << 30  # that known codes of frames may take
RARE = 0.1  # rewards on fewer than this share of all frames are events worth aiming at


@dataclass
class FrameTable:
    """Episodes end to end: `N` frames in all, `U` distinct ones, `E` episodes.

    Attributes:
        frames: `(U, *observation shape)` the distinct observations.
        index: `(N,)` which of them each frame is.
        action: `(N, *action shape)` the action that led to the frame, as the model takes it; zeros at first frames.
        reward: `(N,)` float32, paid on arrival; 0 at first frames.
        terminated: `(N,)` bool, the frame is terminal.
        first: `(N,)` bool, the frame begins an episode.
        begin: `(E + 1,)` the position where each episode begins, and `N` at the end.
    """

    frames: np.ndarray
    index: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    first: np.ndarray
    begin: np.ndarray

    @classmethod
    def from_store(cls, store: EpisodeStore) -> FrameTable:
        """Decode a whole store.

        Raises:
            UserError: it holds no readable episode.
        """
        if len(store) == 0:
            raise UserError(f"the store {store.root} holds no episodes yet")
        return cls.from_episodes(store.episodes(), store.action_space)

    @classmethod
    def from_episodes(cls, episodes: Iterable[Episode], action_space: Space) -> FrameTable:
        """Lay episodes end to end, keeping equal observations once."""
        seen: dict[bytes, int] = {}
        frames: list[np.ndarray] = []
        index, action, reward, terminated = [], [], [], []
        no_action = np.zeros((1, *action_spec(action_space).shape))
        for episode in episodes:
            for frame in episode.observations:
                key = hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
                if key not in seen:
                    seen[key] = len(frames)
                    frames.append(frame.copy())
                index.append(seen[key])
            taken = to_model_action(action_space, episode.actions)
            action.append(np.concatenate([no_action.astype(taken.dtype), taken]))
            reward.append(np.concatenate([[0.0], episode.rewards]).astype(np.float32))
            terminated.append(np.arange(episode.length + 1) == (episode.length if episode.terminated else -1))
        if not frames:
            raise UserError("none of the episodes can be read")
        begin = np.cumsum([0] + [len(r) for r in reward])
        first = np.zeros(begin[-1], bool)
        first[begin[:-1]] = True
        return cls(
            frames=np.stack(frames),
            index=np.array(index),
            action=np.concatenate(action),
            reward=np.concatenate(reward),
            terminated=np.concatenate(terminated),
            first=first,
            begin=begin,
        )

    def __len__(self) -> int:
        """The number of frames, repeated ones included."""
        return len(self.index)

    @property
    def num_episodes(self) -> int:
        """The number of episodes."""
        return len(self.begin) - 1

    def episode_of(self, position: int | np.ndarray) -> np.ndarray:
        """The episode that each position lies in."""
        return np.searchsorted(self.begin, position, side="right") - 1

    def elapsed(self, position: int | np.ndarray) -> np.ndarray:
        """How many actions of its episode lie before each position."""
        return position - self.begin[self.episode_of(position)]

    def gather(self, positions: np.ndarray, codes: KnownCodes | None = None) -> Batch:
        """The batch of the frames at `positions` `(B, T)`, with their codes if those are known.

        A row's first piece may begin anywhere in an episode, its others begin where an episode does.
        """
        distinct, index = np.unique(self.index[positions], return_inverse=True)
        first = self.first[positions]
        start = first.copy()
        start[:, 0] = True
        return Batch(
            frames=torch.from_numpy(self.frames[distinct]),
            index=torch.from_numpy(index.reshape(positions.shape).astype(np.int64)),
            action=torch.from_numpy(self.action[positions]),
            reward=torch.from_numpy(self.reward[positions]),
            terminated=torch.from_numpy(self.terminated[positions]),
            first=torch.from_numpy(first),
            start=torch.from_numpy(start),
            elapsed=torch.from_numpy(self.elapsed(positions)),
            codes=None if codes is None else codes.of(distinct),
        )


class Segments:
    """Endless random batches of a table. Iterate over it.

    A row is a window at a random place of an endless tape on which random episodes follow one another: it begins at a
    random frame, runs to the end of that episode, and goes on with whole other episodes until it is full. So every slot
    of a row holds every frame equally often, and short episodes are packed without padding.

    Args:
        table: the data.
        batch_size: rows, `B`.
        length: frames a row, `T`.
        seed: of the sampler.
        end_share: the share of rows that are made to hold a termination or a rare reward.
        rare_share: the share of rows that are made to hold a frame drawn evenly from the distinct ones. The others
            follow the tape.
        loose: distinct frames that come along in each batch, each as likely as any other: what is seen rarely is
            painted as often as what is seen all the time.
        mix: the share of loose frames into which a rectangle of another is pasted, so that the painter also sees what
            never was: a code that can paint those can paint what a better player will see.
        spec: what frames look like; needed to mix them, which is done where they have rows and columns.
        grain: side of the squares that such rectangles are made of.
    """

    def __init__(
        self,
        table: FrameTable,
        batch_size: int,
        length: int,
        seed: int = 0,
        end_share: float = 0.25,
        rare_share: float = 0.0,
        loose: int = 0,
        mix: float = 0.0,
        spec: ObservationSpec | None = None,
        grain: int = 1,
    ) -> None:
        self.table = table
        self.loose, self.mix, self.spec, self.grain = loose, mix, spec, grain
        self.batch_size = batch_size
        self.length = length
        self.end_share, self.rare_share = end_share, rare_share
        self.rng = np.random.default_rng(seed)
        self.codes: KnownCodes | None = None
        rewarded = table.reward != 0
        self.by_frame = np.argsort(table.index, kind="stable")  # positions, those of one distinct frame side by side
        self.last_of = np.cumsum(np.bincount(table.index, minlength=len(table.frames)))
        self.events = np.flatnonzero(table.terminated | (rewarded & (rewarded.mean() < RARE)))

    @classmethod
    def for_training(cls, table: FrameTable, model: ModelConfig, training: TrainConfig, seed: int = 0) -> Segments:
        """As the two configs have it."""
        return cls(
            table,
            training.batch_size,
            training.length,
            seed=seed,
            end_share=training.end_share,
            rare_share=training.rare_share,
            loose=training.loose,
            mix=training.mix,
            spec=model.observation,
            grain=model.frame.patch << model.frame.grown,
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches, without end."""
        while True:
            yield self.sample()

    def settle(self, stage: FrameStage) -> None:
        """From now on code each frame once and send its code along: `stage` says the same of it forever."""
        if self.codes is None or self.codes.stage is not stage:
            fits = KnownCodes.bytes_for(stage, self.table.frames) <= CODES_BYTES
            self.codes = KnownCodes(stage, self.table.frames) if fits else None

    def sample(self) -> Batch:
        """The next batch."""
        batch = self.table.gather(np.stack([self._row(begin) for begin in self._begins()]), self.codes)
        if self.loose:
            batch.frames = torch.cat([batch.frames, torch.from_numpy(self._loose_frames())])
        return batch

    def _loose_frames(self) -> np.ndarray:
        """`(loose, *frame shape)`, of which a share `mix` shows a piece of another frame."""
        table, n, grain = self.table, self.loose, self.grain
        frames = table.frames[self.rng.integers(len(table.frames), size=n)]
        if self.mix and self.spec is not None and self.spec.shown is not None:
            others = table.frames[self.rng.integers(len(table.frames), size=n)]
            pictures, pieces = (first_modality(self.spec, some) for some in (frames, others))
            rows, columns = (-(-side // grain) for side in pictures.shape[1:3])
            for i in np.flatnonzero(self.rng.random(n) < self.mix):
                (top, bottom), (left, right) = (_span(self.rng, side) for side in (rows, columns))
                part = np.s_[i, grain * top : grain * bottom, grain * left : grain * right]
                pictures[part] = pieces[part]
            if self.spec.parts:  # pictures were a copy
                frames[:, self.spec.places[0]] = pictures.reshape(n, -1).view(np.uint8)
        return frames

    def state_dict(self) -> dict[str, Any]:
        """The sampler's random state: with it, the same batches follow."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.rng.bit_generator.state = state["rng"]

    def _begins(self) -> np.ndarray:
        """Where each row begins: `(B,)` positions."""
        table, B = self.table, self.batch_size
        begins = self.rng.integers(len(table), size=B)
        lot = self.rng.random(B)
        if self.length > 1:
            to_an_end = (lot < self.end_share) & (len(self.events) > 0)
            to_a_rare_frame = ~to_an_end & (lot < self.end_share + self.rare_share)
            if to_an_end.any():
                begins[to_an_end] = self._before(self.events[self.rng.integers(len(self.events), size=B)])[to_an_end]
            if to_a_rare_frame.any():
                frame = self.rng.integers(len(table.frames), size=B)
                first = np.where(frame, self.last_of[frame - 1], 0)
                position = self.by_frame[self.rng.integers(first, self.last_of[frame])]
                begins[to_a_rare_frame] = self._before(position)[to_a_rare_frame]
        return begins

    def _before(self, position: np.ndarray) -> np.ndarray:
        """Where rows begin that hold these: on any slot but the first, whose losses are masked in mid-episode."""
        back = self.rng.integers(1, self.length, size=len(position))
        return np.maximum(position - back, self.table.begin[self.table.episode_of(position)])

    def _row(self, begin: int) -> np.ndarray:
        """The `(T,)` positions of the row that begins there."""
        table = self.table
        pieces = [np.arange(begin, table.begin[table.episode_of(begin) + 1])]
        missing = self.length - len(pieces[0])
        while missing > 0:
            episode = self.rng.integers(table.num_episodes)
            pieces.append(np.arange(table.begin[episode], table.begin[episode + 1]))
            missing -= len(pieces[-1])
        return np.concatenate(pieces)[: self.length]


def _span(rng: np.random.Generator, cells: int) -> tuple[int, int]:
    """A random stretch of `cells`, at least one of them long."""
    one, other = np.sort(rng.choice(cells + 1, 2, replace=False))
    return int(one), int(other)
