"""How many bits a frame costs somebody who has the model: what a fair comparison of models is made of.

The sender sees the true frames and sends, of each frame, where its chunks start and, if patches are followed through
time, which are new (`start`), their codes (`code`, by the
prior that the receiver computes from all frames before) and what the painter got wrong (`pixels`, as a Gaussian of
sigma 0.05 around what it painted). Values of pixels are multiples of 1/255, so the density times 1/255 is a
probability, over all multiples it sums to 1, and the three parts together are a real code's length. Even a frame that
is painted perfectly costs `floor` bits, 5 a value; what lies above it is what the painter got wrong.

Shape suffixes: B rows, T frames, K chunks, P patches, V values of a patch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from worldmodel.envs.segments import FrameTable
from worldmodel.losses import canvas_of, change_loss, latent_kl, start_loss
from worldmodel.model import WorldModel
from worldmodel.outputs import Pass

SIGMA = 0.05  # in units of the full range of a pixel
LEVELS = 255
VALUE_NATS = math.log(SIGMA * LEVELS * math.sqrt(2 * math.pi))  # of a value that is painted right
LENGTH = 128  # frames a row: a row's first frame cannot be foretold, so rows are long
ROWS = 4  # at a time


@torch.no_grad()
def bits_a_frame(model: WorldModel, table: FrameTable) -> dict[str, float]:
    """Mean over the frames of a table, closed loop: every frame is foretold from the true ones before it.

    Args:
        model: of images, in evaluation mode.
        table: the test set's frames. Cut into rows of 128; frames that begin a row in mid-episode do not count.

    Returns:
        `total` = `code` + `start` + `pixels`, `above_floor` = `total` - `floor`, all in bits a frame; and `frames`.

    Raises:
        ValueError: the observations are no images, or there are not enough of them for one row.
    """
    if model.config.observation.kind != "image":
        raise ValueError(f"bits are defined for images, not for observations of kind {model.config.observation.kind!r}")
    count = len(table) // LENGTH
    if count == 0:
        raise ValueError(f"{len(table)} frames are not enough for a row of {LENGTH}")
    positions = np.arange(count * LENGTH).reshape(count, LENGTH)
    sums, frames = {"code": 0.0, "start": 0.0, "pixels": 0.0}, 0
    for begin in range(0, count, ROWS):
        batch = table.gather(positions[begin : begin + ROWS])
        seen = model(batch, torch.arange(begin, begin + len(batch.index)) << 32)
        counts = ~batch.start | batch.first
        parts = {"code": latent_kl(model, seen, 0.0)[0], "pixels": pixel_nats(model, seen, batch.frames, batch.index)}
        if model.predicts_starts:
            parts["start"] = start_loss(model, seen)[0]
        if seen.seen.changed is not None:  # all of a first frame is new, nobody has to be told
            parts["start"] = parts.get("start", 0.0) + change_loss(model, seen) * ~batch.start
        for name, part_BT in parts.items():
            sums[name] += float(part_BT[counts].double().sum())
        frames += int(counts.sum())
    bits = {name: total / frames / math.log(2) for name, total in sums.items()}
    total, floor = sum(bits.values()), float(np.prod(table.frames.shape[1:])) * VALUE_NATS / math.log(2)
    return {**bits, "total": total, "floor": floor, "above_floor": total - floor, "frames": frames}


def pixel_nats(model: WorldModel, seen: Pass, frames: Tensor, index_BT: Tensor) -> Tensor:
    """Nats a frame to correct what the painter painted, `(B, T)`."""
    B, T = index_BT.shape
    patches, rows = model.frame_stage.patches, torch.arange(B * T, device=index_BT.device)
    canvas = canvas_of(model, seen, rows, torch.ones_like(rows, dtype=torch.bool))
    painted = model.frame_stage.paint_canvas(*canvas).clamp(0, 1)
    real = patches(torch.full_like(frames[:1], LEVELS)) > 0  # (1, P, V); what is padded is not sent
    wrong = (painted - patches(frames)[index_BT.flatten()]).square() * real
    nats = wrong.sum((1, 2)) / (2 * SIGMA**2) + VALUE_NATS * real.sum()
    return nats.view(B, T)
