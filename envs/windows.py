"""Where in a test set the dream is compared with the truth: some context frames, and how far to dream on from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldmodel.envs.segments import FrameTable
from worldmodel.errors import UserError


@dataclass(frozen=True)
class Windows:
    """N windows, those with most steps first, so that the ones still running are always a prefix.

    Attributes:
        begin: `(N,)` position of the first context frame in the `FrameTable`.
        context: frames of context, C.
        horizons: the H steps after the context at which dream and truth are compared.
        steps: `(N,)` how far each window is dreamed.
        sampled: `(N, H)` bool, the windows whose frames count at each horizon.
        eventful: `(N, H)` bool, those whose rewards and ends count: the sampled ones, and every window whose episode
            terminates at just that step, for in a sample of hundreds there would be next to none.
    """

    begin: np.ndarray
    context: int
    horizons: tuple[int, ...]
    steps: np.ndarray
    sampled: np.ndarray
    eventful: np.ndarray

    def __len__(self) -> int:
        return len(self.begin)

    def running(self, step: int) -> int:
        """How many windows, the first ones, are dreamed for at least `step` steps."""
        return int((self.steps >= step).sum())

    def at(self, step: int, rows: int | None = None) -> np.ndarray:
        """Positions of the frames `step` steps after the context, of the first `rows` windows."""
        return self.begin[:rows] + self.context - 1 + step


def fitting_context(table: FrameTable, context: int) -> int:
    """Frames of context that leave something to dream: `context`, or a third of the longest episode that has no more.

    Args:
        table: the episodes.
        context: as it should be.

    Raises:
        UserError: no episode has a step.
    """
    longest = int(np.diff(table.begin).max())
    if longest < 2:
        raise UserError("no episode of the test set has more than one frame, so there is nothing to dream")
    return context if longest > context else max(1, longest // 3)


def choose_windows(
    table: FrameTable,
    succeeding: np.ndarray,
    *,
    context: int = 8,
    horizons: tuple[int, ...] = (1, 5, 15, 50),
    count: int = 256,
    seed: int = 0,
) -> Windows:
    """Choose the windows of a test set.

    At each horizon the sample is drawn evenly from all places that leave enough steps, half of it from succeeding
    episodes and half from the others (as far as they go). One order serves all horizons, so most windows are dreamed
    once and looked at several times.

    Args:
        table: the test set's frames.
        succeeding: `(E,)` bool, a mark on each episode.
        context: real frames before each dream.
        horizons: rising numbers of steps.
        count: size of the sample at each horizon; fewer where there are no more.
        seed: of the sample.
    """
    last = table.begin[1:] - 1  # of each episode
    # Every place of a first context frame that leaves at least one step.
    starts = np.concatenate([np.arange(begin, end - context + 1) for begin, end in zip(table.begin[:-1], last)])
    episode = table.episode_of(starts)
    left = last[episode] - (starts + context - 1)
    success, ending = succeeding[episode], table.terminated[last[episode]]

    order = np.random.default_rng(seed).permutation(len(starts))
    sampled = np.zeros((len(starts), len(horizons)), dtype=bool)
    eventful = np.zeros_like(sampled)
    for column, horizon in enumerate(horizons):
        good = order[success[order] & (left[order] >= horizon)]
        other = order[~success[order] & (left[order] >= horizon)]
        share = min(len(good), max(count // 2, count - len(other)))
        sampled[good[:share], column] = True
        sampled[other[: count - share], column] = True
        eventful[:, column] = sampled[:, column] | (ending & (left == horizon))
    steps = (eventful * np.asarray(horizons)).max(axis=1)
    longest = np.argsort(-steps, kind="stable")[: (steps > 0).sum()]
    return Windows(
        begin=starts[longest],
        context=context,
        horizons=tuple(horizons),
        steps=steps[longest],
        sampled=sampled[longest],
        eventful=eventful[longest],
    )
