"""Pictures of what the frames of an episode cost: tokens of each frame, and loops on each token.

Shape suffixes: T frames, M tokens of the main network, N those of the fullest frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from worldmodel.envs.pictures import last_steps, to_rgb
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.test_set import TestSet
from worldmodel.model import WorldModel

WIDTH, LEFT, RIGHT = 9.6, 0.6, 0.1  # inches: of a picture, and beside its axes
PLOT, LABELS, TOP = 2.0, 0.5, 0.5  # inches from bottom to top: the thumbnails, their labels, the plot, a line of text
THUMBNAILS = 12  # at most
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#e6e6e6"


@dataclass(frozen=True)
class EpisodeTokens:
    """What the frames of one episode took.

    Attributes:
        frames: `(T, H, W, 3)` uint8.
        chunks: `(T,)` chunk tokens of each frame, as the model sees it.
        main: `(T,)` tokens of each frame that the main network took.
        patches: how many patches a frame has.
    """

    frames: np.ndarray
    chunks: np.ndarray
    main: np.ndarray
    patches: int


def liveliest_episode(test_set: TestSet, context: int = 8, steps: int = 16) -> int:
    """The episode whose last steps `worldmodel.envs.pictures` shows first.

    Raises:
        UserError: none has a step.
    """
    return int(test_set.table.episode_of(last_steps(test_set, 1, context, steps).begin[0]))


def watch_episode(model: WorldModel, table: FrameTable, episode: int, seed: int = 0) -> EpisodeTokens:
    """Let the model see an episode from its first frame to its last, and count.

    Raises:
        UserError: there is nothing to show in the observations.
    """
    at = np.arange(table.begin[episode], table.begin[episode + 1])
    frames = table.frames[table.index[at]]
    pictures = to_rgb(frames, model.config.observation)
    actions, first = torch.from_numpy(table.action[at]), torch.from_numpy(table.first[at])
    state, chunks, main = model.initial_state(1, seed=seed), [], [0]
    for t, frame in enumerate(torch.from_numpy(frames)):
        state, out = model.observe(state, actions[t : t + 1], frame[None], first[t : t + 1])
        chunks.append(int(out.chunks))
        main.append(int(state.main_tokens))
    return EpisodeTokens(pictures, np.array(chunks), np.diff(main), model.frame_stage.patches.count)


def watch_loops(model: WorldModel, table: FrameTable, episode: int, seed: int = 0) -> np.ndarray:
    """How often the looped core runs on each main token of an episode: `(T, N)` int64, 0 where a frame has no more.

    Raises:
        ValueError: the model has no looped core.
    """
    if model.core is None:
        raise ValueError("this model has no looped core, so there are no loops to count")
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_core: nn.Module, args: tuple[Any, ...], result: tuple[Any, ...]) -> None:
        seen.append((args[1].frames, result[1].each))  # which frame a token is of, only the core is told

    at = np.arange(table.begin[episode], table.begin[episode + 1])
    handle = model.core.register_forward_hook(note)
    try:
        with torch.no_grad():
            model(table.gather(at[None]).to(model.device), torch.tensor([seed], device=model.device))
    finally:
        handle.remove()
    (frames, loops) = (t[0].cpu().numpy() for t in seen[0])
    of_frame = [loops[frames == number] for number in range(1, len(at) + 1)]
    most = max(map(len, of_frame))
    return np.stack([np.pad(each, (0, most - len(each))) for each in of_frame])


def draw_tokens(path: str | Path, episode: EpisodeTokens) -> None:
    """Draw a curve of the chunks, one of the main network's tokens, and some of the frames below."""
    counts = {"chunks": episode.chunks, "main network": episode.main}
    draw_counts(path, counts, episode.frames, f"frames of {episode.patches} patches")


def draw_counts(path: str | Path, counts: Mapping[str, np.ndarray], frames: np.ndarray, caption: str) -> None:
    """Draw two curves of what frames take, and some of the frames below; grey where a frame is the one before again.

    Args:
        path: of the new PNG.
        counts: `(T,)` by the name of the curve, whole numbers.
        frames: `(T, H, W, 3)` uint8.
        caption: above the curves.
    """
    figure, axes = _over_thumbnails(frames)
    frame = np.arange(len(frames))
    for (name, count), colour in zip(counts.items(), (BLUE, ORANGE)):
        axes.step(frame, count, where="mid", color=colour, linewidth=1.8, label=f"{name}: {count.mean():.2f} a frame")
    still = 1 + np.flatnonzero((frames[1:] == frames[:-1]).all((1, 2, 3)))
    if len(still):
        across = axes.get_xaxis_transform()
        axes.bar(still, 1, width=1, transform=across, color=GREY, zorder=0, label="same frame again")
    axes.set_ylim(0, 1.15 * max(count.max() for count in counts.values()))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylabel("tokens of a frame")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.02), ncols=3, frameon=False, borderaxespad=0)
    _caption(axes, caption)
    figure.savefig(path)


def draw_loops(path: str | Path, loops_TN: np.ndarray, frames: np.ndarray) -> None:
    """Draw how often the core of the main network ran on each token, and some of the frames below.

    Args:
        path: of the new PNG.
        loops_TN: loops of the main network's tokens, those of a frame from the first on; 0 where a frame has no more.
        frames: `(T, H, W, 3)` uint8.
    """
    figure, axes = _over_thumbnails(frames)
    T, N = loops_TN.shape
    shown = np.ma.masked_equal(loops_TN, 0)
    most = int(loops_TN.max())
    image = axes.imshow(
        shown.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=0.5,
        vmax=most + 0.5,
        extent=(-0.5, T - 0.5, 0.5, N + 0.5),
    )
    axes.hlines(np.arange(1, N) + 0.5, -0.5, T - 0.5, color="white", linewidth=1.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylabel("token of its frame")
    taken = loops_TN[loops_TN > 0]
    _caption(axes, f"loops on each token, {taken.mean():.2f} in the mean")
    bar = axes.inset_axes((0.75, 1.06, 0.25, 0.05))
    figure.colorbar(image, cax=bar, orientation="horizontal", ticks=MaxNLocator(integer=True, nbins=5))
    bar.xaxis.set_ticks_position("top")
    bar.tick_params(length=0, pad=2)
    figure.savefig(path)


def _caption(axes: Axes, text: str) -> None:
    axes.text(0, 1.06, text, transform=axes.transAxes, fontsize=10)


def _over_thumbnails(frames: np.ndarray) -> tuple[Figure, Axes]:
    """A figure with axes over the frames' numbers, and below them as many evenly spaced frames as there is room for."""
    T, height, width, _ = frames.shape
    across = WIDTH - LEFT - RIGHT
    room = across / min(T, THUMBNAILS)  # inches for each
    side = 0.94 * room
    total = side * height / width + LABELS + PLOT + TOP
    figure = Figure(figsize=(WIDTH, total), dpi=160)
    below = figure.add_axes((LEFT / WIDTH, 0, across / WIDTH, side * height / width / total))
    above = figure.add_axes((LEFT / WIDTH, (side * height / width + LABELS) / total, across / WIDTH, PLOT / total))
    # A thumbnail stands in the middle of its part of the axis, and shows the frame that is there.
    parts = (np.arange(min(T, THUMBNAILS)) + 0.5) * T / min(T, THUMBNAILS) - 0.5
    shown = parts.round().astype(np.int64)
    half = 0.47 * T / len(shown)
    for place, t in zip(parts, shown):
        below.imshow(frames[t], interpolation="nearest", aspect="auto", extent=(place - half, place + half, 0, 1))
    below.set_ylim(0, 1)
    below.axis("off")
    for axes in (above, below):
        axes.set_xlim(-0.5, T - 0.5)
    above.set_xticks(shown)
    above.set_xlabel("frame", fontsize=10, labelpad=1)
    above.spines[["top", "right"]].set_visible(False)
    return figure, above
