"""Pictures of where a model starts its chunks: every chunk tinted, its number at its first patch.

Shape suffixes: T frames, R rows and C columns of patches, K chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from worldmodel.envs.chunk_maps import chunk_edges, chunk_map, patch_order
from worldmodel.envs.open_loop import closed_loop, observe_context, open_loop, truth
from worldmodel.envs.pictures import last_steps, to_rgb
from worldmodel.envs.test_set import TestSet
from worldmodel.model import WorldModel

# Colours that can be told apart by everybody (Okabe and Ito 2008), in an order in which neighbours are far apart.
COLOURS = np.array(
    [(230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (240, 228, 66), (86, 180, 233), (213, 94, 0)]
)
TINT = 0.3  # how much of a patch's colour is its chunk's
SIDE = 1.8  # inches of a frame


def tinted(frame: np.ndarray, chunks_RC: np.ndarray, patch: int) -> np.ndarray:
    """A frame `(H, W, 3)` uint8 with each chunk in its own colour; `chunks_RC` from `chunk_map`."""
    colour = COLOURS[chunks_RC % len(COLOURS)].repeat(patch, axis=0).repeat(patch, axis=1)
    mixed = (1 - TINT) * frame + TINT * colour[: frame.shape[0], : frame.shape[1]]
    return mixed.round().astype(np.uint8)


def first_patches(starts: np.ndarray, order_RC: np.ndarray) -> dict[int, tuple[int, int]]:
    """Row and column of each chunk's first patch, by the chunk's number from 0."""
    here = starts[(starts >= 0) & (starts < order_RC.size)]  # not of the modalities beside the picture
    return {k: divmod(int((order_RC == s).argmax()), order_RC.shape[1]) for k, s in enumerate(here)}


def boundary_picture(
    path: str | Path,
    rows: dict[str, tuple[np.ndarray, np.ndarray]],
    order_RC: np.ndarray,
    *,
    patch: int,
    labels: Sequence[str],
) -> None:
    """Draw frames with their chunks, rows below one another.

    Args:
        path: of the new PNG.
        rows: by name, frames `(T, H, W, 3)` uint8 and the first patches of their chunks `(T, K)`, -1 where absent.
        order_RC: from `worldmodel.envs.chunk_maps.patch_order`.
        patch: side of a patch in pixels.
        labels: what is written over each column.
    """
    T, height, width, _ = next(iter(rows.values()))[0].shape
    figure = Figure(figsize=(0.35 + SIDE * T, 0.25 + SIDE * height / width * len(rows)), dpi=160, layout="constrained")
    grid = figure.subplots(len(rows), T, squeeze=False)
    for axes_T, (name, (frames, starts)) in zip(grid, rows.items()):
        axes_T[0].set_ylabel(name, fontsize=11)
        for axes, frame, start in zip(axes_T, frames, starts):
            draw_frame(axes, frame, start, order_RC, patch)
    for axes, label in zip(grid[0], labels):
        axes.set_title(label, fontsize=10)
    figure.savefig(path)


def draw_frame(axes: Axes, frame: np.ndarray, starts: np.ndarray, order_RC: np.ndarray, patch: int) -> None:
    """Draw one frame `(H, W, 3)` uint8 in pixels, with the chunks that start at `starts` `(K,)`, -1 where absent."""
    height, width, _ = frame.shape
    chunks = chunk_map(starts, order_RC)
    axes.imshow(tinted(frame, chunks, patch), interpolation="nearest", extent=(0, width, height, 0))
    edges = chunk_edges(chunks, height, width, patch)
    axes.add_collection(LineCollection(list(edges), colors="white", linewidths=1.6))
    points = min(10.0, 0.55 * 72 * SIDE / order_RC.shape[1])  # in a corner, so that what is in the patch can be seen
    for number, (row, column) in first_patches(starts, order_RC).items():
        axes.text(
            (column + 0.1) * patch,
            (row + 0.08) * patch,
            str(number + 1),
            ha="left",
            va="top",
            fontsize=points,
            fontweight="bold",
            color="white",
            path_effects=[withStroke(linewidth=points / 4, foreground="black")],
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


@dataclass(frozen=True)
class WatchedSteps:
    """Some steps of an episode, as a model sees them and as it dreams them.

    Attributes:
        steps: `(T,)` int64, how many frames behind the context they lie, from 1.
        seen, dreamed: frames `(T, H, W, 3)` uint8 (the true ones where they are seen), and the first patches of their
            chunks `(T, K)`, -1 where absent.
    """

    steps: np.ndarray
    seen: tuple[np.ndarray, np.ndarray]
    dreamed: tuple[np.ndarray, np.ndarray]


def watch_steps(
    model: WorldModel, test_set: TestSet, *, context: int = 8, steps: int = 16, columns: int = 5, seed: int = 0
) -> WatchedSteps:
    """Let a model see, and dream, the last steps of an eventful episode.

    Args:
        model: the world model.
        test_set: of the same environment.
        context: real frames before the dream; fewer where no episode is longer.
        steps: of the dream, at most; it ends with the episode.
        columns: steps that are kept, evenly spaced.
        seed: of the model's noise.

    Raises:
        UserError: there is nothing to show in the observations, or no episode has a step.
    """
    spec, table = model.config.observation, test_set.table
    windows = last_steps(test_set, 1, context, steps)
    state = observe_context(model, table, windows, seed=seed)
    seen, dream = closed_loop(model, state, table, windows), open_loop(model, state, table, windows)
    assert seen.starts is not None and dream.starts is not None
    length = int(windows.steps[0])
    shown = np.unique(np.linspace(0, length - 1, min(columns, length)).round().astype(np.int64))
    return WatchedSteps(
        shown + 1,
        seen=(to_rgb(truth(table, windows).frames[0, shown], spec), seen.starts[0, shown]),
        dreamed=(to_rgb(dream.frames[0, shown], spec), dream.starts[0, shown]),
    )


def draw_boundaries(
    model: WorldModel,
    test_set: TestSet,
    path: str | Path,
    *,
    context: int = 8,
    steps: int = 16,
    columns: int = 5,
    seed: int = 0,
) -> None:
    """Draw the last steps of an eventful episode at `path`: true frames, as the model sees them, and dreamed ones.

    The other arguments and the errors are those of `watch_steps`.
    """
    watched = watch_steps(model, test_set, context=context, steps=steps, columns=columns, seed=seed)
    patches = model.frame_stage.patches.shown
    boundary_picture(
        path,
        {"seen": watched.seen, "dreamed": watched.dreamed},
        patch_order(patches),
        patch=patches.ph,
        labels=[f"step {step}" for step in watched.steps],
    )
