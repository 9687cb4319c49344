"""Pictures of dreams: film strips truth | dream | error with the chunks drawn on them, and a video of the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from worldmodel.envs.chunk_maps import chunk_edges, chunk_map, patch_order
from worldmodel.envs.fidelity_metrics import EVENT
from worldmodel.envs.observations import first_modality, modalities_of
from worldmodel.envs.open_loop import closed_loop, observe_context, open_loop, truth
from worldmodel.envs.test_set import TestSet
from worldmodel.envs.video import write_viewable
from worldmodel.envs.windows import Windows, fitting_context
from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.specs import ObservationSpec

GAP = 4  # pixels between frames
AWAKE, DREAMING = (90, 90, 90), (230, 130, 0)  # colours of the bars in a video


def to_rgb(frames: np.ndarray, spec: ObservationSpec) -> np.ndarray:
    """Frames `(..., *shape)` as uint8 colours `(..., H, W, 3)`: one channel is grey, of two one stays black.

    Of several modalities the first one is shown.

    Raises:
        UserError: there is nothing to show in them.
    """
    if spec.shown is None:
        raise UserError("there are no pictures of these observations; choose the wrapper 'render' to get images")
    frames, spec = first_modality(spec, frames), spec.shown
    if spec.dtype != "uint8" or spec.kind == "grid":
        frames = ((frames.astype(np.float32) - spec.offset) / spec.scale * 255).round().clip(0, 255).astype(np.uint8)
    channels = frames.shape[-1]
    if channels == 1:
        return frames.repeat(3, axis=-1)
    return np.concatenate([frames[..., :3], np.zeros_like(frames[..., : max(0, 3 - channels)])], axis=-1)


def notes_beside(frames: np.ndarray, spec: ObservationSpec) -> list[str] | None:
    """What frames `(T, *shape)` say beside their picture, a line a modality; None where that is all there is."""
    if not spec.parts:
        return None
    lines: list[list[str]] = [[] for _ in frames]
    for part, values in list(modalities_of(spec, frames))[1:]:
        for line, value in zip(lines, values):
            said = str(value.argmax()) if part.kind == "choice" else _few(value)
            line.append(f"{part.name} {said}")
    return ["\n".join(line) for line in lines]


def _few(value: np.ndarray, most: int = 4) -> str:
    flat = value.flatten()
    return " ".join(f"{x:.2g}" for x in flat[:most]) + (" …" if len(flat) > most else "")


def film_strip(
    path: str | Path,
    true: np.ndarray,
    dream: np.ndarray,
    *,
    true_chunks: np.ndarray | None = None,
    dream_chunks: np.ndarray | None = None,
    true_reward: np.ndarray | None = None,
    dream_reward: np.ndarray | None = None,
    true_notes: list[str] | None = None,
    dream_notes: list[str] | None = None,
    patch: int = 8,
    title: str = "",
) -> None:
    """Draw truth, dream and their difference below one another, frame by frame.

    Args:
        path: of the new PNG.
        true, dream: `(T, H, W, 3)` uint8.
        true_chunks, dream_chunks: `(T, R, C)` the chunk of each patch, from `chunk_map`; edges are drawn if given.
        true_reward, dream_reward: `(T,)`; rewards that are events are written under their frames.
        true_notes, dream_notes: T texts that are written under the frames if given.
        patch: side of a patch in pixels.
        title: over the strip.
    """
    if true.shape != dream.shape:
        raise ValueError(f"the truth has the shape {true.shape}, the dream {dream.shape}")
    T, height, width, _ = true.shape
    error = np.abs(true.astype(np.int16) - dream).astype(np.uint8)
    beside = max((note.count("\n") + 1 for note in true_notes or ()), default=0)
    inches = 0.75 + 0.8 * T, 1.4 + 3 * 0.8 * height / width + 0.3 * beside
    figure = Figure(figsize=inches, dpi=120, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=9)
    rows = [
        ("truth", true, true_chunks, true_reward, true_notes),
        ("dream", dream, dream_chunks, dream_reward, dream_notes),
        ("error", error, None, None, None),
    ]
    for axes, (name, frames, chunks, reward, notes) in zip(figure.subplots(3, 1), rows):
        axes.imshow(_side_by_side(frames), interpolation="nearest", extent=(0, T * (width + GAP) - GAP, height, 0))
        labels = [str(n) for n in range(1, T + 1)]
        if reward is not None:
            labels = [f"{n}\n{r:+.2f}" if abs(r) > EVENT else n for n, r in zip(labels, reward)]
        if notes is not None:
            labels = [f"{label}\n{note}" for label, note in zip(labels, notes)]
        axes.set_xticks([t * (width + GAP) + width / 2 for t in range(T)], labels, fontsize=7)
        axes.set_yticks([height / 2], [name], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if chunks is not None:
            shift = np.array([width + GAP, 0])
            edges = [chunk_edges(c, height, width, patch) + t * shift for t, c in enumerate(chunks)]
            axes.add_collection(LineCollection(list(np.concatenate(edges)), colors="#ffb000", linewidths=0.9))
    figure.savefig(path)


def truth_dream_error(true: np.ndarray, dream: np.ndarray, dreaming: np.ndarray | None = None) -> np.ndarray:
    """Frames `(T, H, 3 * W + 2 * gap, 3)` uint8 that show truth, dream and error side by side.

    Args:
        true, dream: `(T, H, W, 3)` uint8.
        dreaming: `(T,)` bool, where the model no longer sees the truth: there the bars between them change colour.
    """
    T, height, _, _ = true.shape
    dreaming = np.ones(T, dtype=bool) if dreaming is None else dreaming
    bar = np.where(dreaming[:, None], np.array(DREAMING), np.array(AWAKE)).astype(np.uint8)
    bar = np.broadcast_to(bar[:, None, None], (T, height, GAP, 3))
    error = np.abs(true.astype(np.int16) - dream).astype(np.uint8)
    return np.concatenate([true, bar, dream, bar, error], axis=2)


def draw_dreams(
    model: WorldModel,
    test_set: TestSet,
    folder: str | Path,
    *,
    count: int = 4,
    context: int = 8,
    steps: int = 16,
    seed: int = 0,
) -> list[Path]:
    """Dream the last steps of the most eventful episodes of a test set, succeeding ones if it has any, and draw them.

    Args:
        model: the world model.
        test_set: of the same environment.
        folder: for `dream_0.png` and so on, and `dreams.mp4`.
        count: how many episodes, at most.
        context: real frames before each dream; fewer where no episode is longer.
        steps: of each dream, at most; it ends with the episode.
        seed: of the model's noise.

    Returns:
        The files written.

    Raises:
        UserError: there is nothing to show in the observations, or no episode has a step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec, table = model.config.observation, test_set.table
    windows, order = last_steps(test_set, count, context, steps), patch_order(model.frame_stage.patches.shown)
    context = windows.context
    real = truth(table, windows)
    state = observe_context(model, table, windows, seed=seed)
    dream, seen = open_loop(model, state, table, windows), closed_loop(model, state, table, windows)
    true_frames, dream_frames = to_rgb(real.frames, spec), to_rgb(dream.frames, spec)
    files, video = [], []
    for row, length in enumerate(windows.steps):
        files.append(folder / f"dream_{row}.png")
        film_strip(
            files[-1],
            true_frames[row, :length],
            dream_frames[row, :length],
            true_chunks=None if seen.starts is None else chunk_map(seen.starts[row, :length], order),
            dream_chunks=None if dream.starts is None else chunk_map(dream.starts[row, :length], order),
            true_reward=real.reward[row, :length],
            dream_reward=dream.reward[row, :length],
            true_notes=notes_beside(real.frames[row, :length], spec),
            dream_notes=notes_beside(dream.frames[row, :length], spec),
            patch=model.frame_stage.patches.shown.ph,
            title=f"{test_set.environment.get('id')}: {context} real frames, then the recorded actions open loop",
        )
        positions = windows.begin[row] + np.arange(context)
        before = to_rgb(table.frames[table.index[positions]], spec)
        pause = [length - 1] * 8
        shown = np.concatenate([np.arange(length), pause])
        left, right = (np.concatenate([before, part[row, shown]]) for part in (true_frames, dream_frames))
        video.append(truth_dream_error(left, right, dreaming=np.arange(len(left)) >= context))
    files.append(folder / "dreams.mp4")
    write_viewable(files[-1], np.concatenate(video), fps=5)
    return files


def last_steps(test_set: TestSet, count: int, context: int, steps: int) -> Windows:
    """Windows that end with their episodes: of the long enough ones, those in which most happens.

    Args:
        test_set: succeeding episodes are taken if it has any.
        count: windows, at most.
        context: real frames before the first step; fewer where no episode is longer.
        steps: of each window, at most; its horizons are all of them.

    Raises:
        UserError: no episode has a step.
    """
    table = test_set.table
    context = fitting_context(table, context)
    last = table.begin[1:] - 1
    length = np.minimum(last - table.begin[:-1] - context + 1, steps)
    good = np.flatnonzero(test_set.succeeding & (length == steps))
    for wider in (length == steps, length > 0):
        good = good if len(good) else np.flatnonzero(wider)
    changes = [np.count_nonzero(np.diff(table.index[last[e] - length[e] : last[e] + 1])) for e in good]
    chosen = good[np.argsort(changes, kind="stable")[::-1][:count]]
    chosen = chosen[np.argsort(-length[chosen], kind="stable")]
    reaches = length[chosen][:, None] >= np.arange(1, steps + 1)
    return Windows(
        begin=last[chosen] - length[chosen] - context + 1,
        context=context,
        horizons=tuple(range(1, steps + 1)),
        steps=length[chosen],
        sampled=reaches,
        eventful=reaches,
    )


def _side_by_side(frames: np.ndarray) -> np.ndarray:
    """`(T, H, W, 3)` frames in one row, white gaps between them."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return padded.transpose(1, 0, 2, 3).reshape(frames.shape[1], -1, 3)[:, :-GAP]
