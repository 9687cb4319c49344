"""Two pictures of a run's report: how model and agent learned, and the agent's play, real and dreamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from worldmodel.envs.pictures import to_rgb
from worldmodel.envs.rollout import Episode
from worldmodel.envs.video import write_viewable
from worldmodel.specs import ObservationSpec

SIDE = 280  # pixels that a frame of the video has at least
HEAD, MARGIN = 28, 8  # pixels of a line of text, and around a frame
INK, PAPER = (40, 40, 40), (255, 255, 255)
PAUSE = 5  # frames that the video stands still between two episodes
CURVES = {
    "model: reconstruction loss": "loss/reconstruction",
    "model: latent KL, nats a frame": "latent/kl",
    "model: reward loss": "loss/reward",
    "agent: return of its dreams": "agent/return",
    "agent: entropy, nats": "agent/entropy",
    "agent: critic's value at the start": "agent/value",
}
LOGARITHMIC = ("loss/reconstruction", "latent/kl", "loss/reward")


def learning_curves(run: Path, path: Path) -> None:
    """What TensorBoard has of the model and the agent of a run, in one picture."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, list] = {}
    for part in ("model", "agent"):  # apart, for each counts its own updates
        if not (run / "tensorboard" / part).is_dir():  # what was never trained has no curve
            continue
        events = EventAccumulator(str(run / "tensorboard" / part), size_guidance={"scalars": 0, "images": 1})
        events.Reload()
        curves |= {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (title, tag) in zip(figure.subplots(2, 3).flat, CURVES.items()):
        points = curves.get(tag, [])
        axes.plot([p.step for p in points], [p.value for p in points], linewidth=1, color="#3465a4")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("update", fontsize=8)
        axes.grid(alpha=0.3)
        if points and tag in LOGARITHMIC:
            axes.set_yscale("log")
    figure.savefig(path, dpi=100)


def play_video(real: Sequence[Episode], dreamed: Sequence[Episode], spec: ObservationSpec, path: Path) -> None:
    """Episodes of the agent, in the real environment to the left and dreamed from the same first frame to the right.

    The agent chooses its actions on either side, so the two part ways where the dream errs or chance falls differently.

    Args:
        real, dreamed: as many of each.
        spec: what an observation looks like.
        path: of the MP4.
    """
    pages = []
    for number, pair in enumerate(zip(real, dreamed), start=1):
        length = max(episode.length for episode in pair)
        for t in [*range(length + 1), *[length] * PAUSE]:
            frames = [_large(to_rgb(e.observations[min(t, e.length)], spec)) for e in pair]
            titles = [_title(name, e, t) for name, e in zip(("real", "dream"), pair)]
            pages.append(_page(frames, titles, f"episode {number} of {len(real)}"))
    write_viewable(path, np.stack(pages), fps=5, least_side=1)


def _large(picture: np.ndarray) -> np.ndarray:
    factor = max(1, -(-SIDE // picture.shape[0]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _title(name: str, episode: Episode, t: int) -> str:
    if t < episode.length:
        return f"{name}: step {t}"
    end = "over" if episode.terminated else "time is up"
    return f"{name}: {end} after {episode.length} steps, return {episode.total_reward:.2f}"


def _page(frames: list[np.ndarray], titles: list[str], caption: str) -> np.ndarray:
    height, width = frames[0].shape[:2]
    page = Image.new("RGB", (2 * width + 3 * MARGIN, height + 2 * HEAD), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    for i, (frame, title) in enumerate(zip(frames, titles)):
        left = MARGIN + i * (width + MARGIN)
        page.paste(Image.fromarray(frame), (left, HEAD))
        draw.text((left, 6), title, fill=INK, font=font)
    draw.text((MARGIN, height + HEAD + 6), caption, fill=INK, font=font)
    return np.asarray(page)
