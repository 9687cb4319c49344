"""What a model dreams while it is trained, for TensorBoard: a short film beside the truth, and chunks a frame."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from worldmodel.envs.observations import modalities_of
from worldmodel.envs.open_loop import closed_loop, observe_context, open_loop, truth
from worldmodel.envs.pictures import to_rgb, truth_dream_error
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.windows import Windows
from worldmodel.model import WorldModel

FRAMES_PER_SECOND = 5
LEAST_SIDE = 56  # pixels that a frame is at least shown with


class Reporter:
    """Called by `Trainer.train` now and then.

    The films are of the training data: they show what the model is learning, not how well it does on anything new.

    Args:
        table: the training data.
        seed: of the posterior's samples in the context.
    """

    def __init__(self, table: FrameTable, seed: int = 0) -> None:
        self.table, self.seed = table, seed
        self.windows = lively_windows(table)

    def __call__(self, model: WorldModel, writer: SummaryWriter, update: int) -> None:
        """Write the scalars and the film of this update."""
        spec, windows = model.config.observation, self.windows
        state = observe_context(model, self.table, windows, seed=self.seed)
        real = truth(self.table, windows)
        dream, seen = open_loop(model, state, self.table, windows), closed_loop(model, state, self.table, windows)
        for (part, dreamed), (_, true) in zip(modalities_of(spec, dream.frames), modalities_of(spec, real.frames)):
            error = np.abs(dreamed.astype(np.float32) - true).mean() / part.value_range
            writer.add_scalar(f"open_loop/error{part.name and '_' + part.name}", float(error), update)
        writer.add_scalar("chunks/open_loop", dream.chunks, update)
        writer.add_scalar("chunks/closed_loop", seen.chunks, update)
        writer.add_scalar("chunks/start_entropy_open_loop", dream.start_entropy, update)
        if spec.shown is None:
            return
        true_frames, dream_frames = to_rgb(real.frames, spec), to_rgb(dream.frames, spec)
        rows = [truth_dream_error(t, d) for t, d in zip(true_frames, dream_frames)]
        frames = np.concatenate(rows, axis=1)
        enlarge = max(1, LEAST_SIDE // spec.shown.shape[0])  # for grids, a pixel a cell
        frames = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
        summary = film("open_loop/truth_dream_error", frames)
        writer._get_file_writer().add_summary(summary, update)


def lively_windows(table: FrameTable, count: int = 4, context: int = 8, steps: int = 15) -> Windows:
    """The windows in which most frames change, from different episodes.

    Most steps of a random player change nothing, and a film of that says little.

    Args:
        table: the data; some episode must have two frames.
        count: windows, or fewer if there are not so many episodes.
        context: real frames before each dream; fewer where no episode is long enough.
        steps: to dream; fewer where no episode is long enough.
    """
    longest = int(np.diff(table.begin).max())
    if longest < context + steps:
        context = max(1, min(context, longest // 3))
        steps = min(steps, longest - context)
    changes = np.concatenate([[0], np.cumsum(table.index[1:] != table.index[:-1])])
    best: list[tuple[int, int]] = []  # of each episode: changed frames in its best window, and where that begins
    for begin, end in zip(table.begin[:-1], table.begin[1:]):
        places = np.arange(begin, end - context - steps + 1)
        if len(places):
            moved = changes[places + context - 1 + steps] - changes[places + context - 1]
            best.append((int(moved.max()), int(places[moved.argmax()])))
    begins = np.array([place for _, place in sorted(best, key=lambda b: -b[0])[:count]])
    everywhere = np.ones((len(begins), steps), bool)
    return Windows(
        begin=begins,
        context=context,
        horizons=tuple(range(1, steps + 1)),
        steps=np.full(len(begins), steps),
        sampled=everywhere,
        eventful=everywhere,
    )


def film(tag: str, frames: np.ndarray) -> Summary:
    """Frames `(T, H, W, 3)` uint8 as TensorBoard shows them.

    A GIF made here, because TensorBoard's own `add_video` asks for a whole movie editor to be installed.
    """
    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    duration = 1000 // FRAMES_PER_SECOND
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    height, width = frames.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])
