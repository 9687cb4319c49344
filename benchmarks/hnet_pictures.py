"""The pictures of docs/hnet.md, drawn from the runs of the ablation.

    python benchmarks/ablation.py --jobs 2                           # trains what is drawn here
    python benchmarks/hnet_pictures.py                               # draws all of it anew
    python benchmarks/hnet_pictures.py --runs runs/ablation/doorkey  # the same, said in full
    python benchmarks/hnet_pictures.py --modalities RUN              # a dream of several modalities, nothing else

Every picture is of the environment's test set, which no run was trained on. A model that is not trained yet is left
out with a sentence. How many updates a model has had stands beside it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from part_pictures import PARTS, draw_masks, draw_paddings, draw_parts
from timing import ROOT

from worldmodel.checkpoint import load_environment, load_model
from worldmodel.curve import CURVES
from worldmodel.envs.boundary_pictures import boundary_picture, draw_frame, watch_steps
from worldmodel.envs.chunk_maps import patch_order
from worldmodel.envs.pictures import draw_dreams, to_rgb
from worldmodel.envs.test_set import TestSet, load_test_set
from worldmodel.envs.token_pictures import (
    draw_counts,
    draw_loops,
    draw_tokens,
    liveliest_episode,
    watch_episode,
    watch_loops,
)
from worldmodel.model import WorldModel
from worldmodel.patches import Patches
from worldmodel.training import TRAINER_FILE

SOURCES = {
    "plain": "fixed stride",
    "learned": "learned router",
    "tried": "tried",
    "surprise": "surprise",
    "change": "change",
}
COUNTED = {"plain": "plain", "time": "temporal merging"}
LOOPED = ("certainty", "budget")
DEEP, MASKED = "extra", "mask"
DRAWN = dict.fromkeys((*SOURCES, *COUNTED, *LOOPED, DEEP, MASKED, *(part.variant for part in PARTS.values())))
COLUMNS = 3  # frames that are drawn of each model, seen and dreamed
MASKS = 6  # frames that are drawn with some of their patches hidden
FRAMES = 60  # of an episode over which tokens are counted


@dataclass
class Options:
    """What to draw, and where to."""

    runs: Path = ROOT / "runs" / "ablation" / "doorkey"
    """Folder of the runs, named as the ablation names them: VARIANT_seedN."""
    seed: int = 0
    """Of the runs."""
    out: Path = ROOT / "docs" / "images"
    """Folder of the pictures."""
    modalities: Path | None = None
    """A run whose observations have several modalities: only its dream is drawn."""


@dataclass(frozen=True)
class Trained:
    """A model of the ablation, and how many updates it has had."""

    model: WorldModel
    updates: int


def main(options: Options) -> None:
    """Draw all that there are models for."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.modalities is not None:
        draw_modalities(options.modalities, options.out / "hnet_modalities.png")
        return
    folders = {name: options.runs / f"{name}_seed{options.seed}" for name in DRAWN}
    there = {name: folder for name, folder in folders.items() if (folder / TRAINER_FILE).exists()}
    for name in folders:
        if name not in there:
            print(f"{name} is left out: it is not trained yet, {folders[name]} holds no run")
    if not there:
        raise SystemExit(f"there is no trained run in {options.runs}: run benchmarks/ablation.py first")
    models = {name: trained(folder) for name, folder in there.items()}
    test_set = load_test_set(load_environment(next(iter(there.values()))))
    draw_orders(next(iter(models.values())).model, test_set, options.out / "hnet_orders.png")
    if some := {name: models[name] for name in SOURCES if name in models}:
        draw_sources(some, test_set, options.out / "hnet_boundaries.png")
    if some := {name: models[name] for name in COUNTED if name in models}:
        draw_both(some, test_set, options.out / "hnet_tokens.png")
    if "plain" in models:
        draw_paddings(models["plain"].model, options.out / "hnet_paddings.png")
    draw_parts({name: it.model for name, it in models.items()}, test_set.table, options.out / "hnet_parts.png")
    number = liveliest_episode(test_set)
    for name in (DEEP, MASKED, *LOOPED):
        if name not in models:
            continue
        model = models[name].model
        episode = watch_episode(model, test_set.table, number)
        if name == DEEP:
            draw_tokens(options.out / "hnet_depth.png", episode)
        elif name == MASKED:
            spread = np.linspace(0, len(episode.frames) - 1, MASKS).astype(int)
            draw_masks(model, episode.frames[spread], options.out / "hnet_masks.png")
        else:
            loops = watch_loops(model, test_set.table, number)
            draw_loops(options.out / f"hnet_loops_{name}.png", loops, episode.frames)
    print(f"the pictures are in {options.out}")


def draw_modalities(run: Path, path: Path) -> None:
    """A dream of the last steps of an eventful episode, and what each frame says beside its picture."""
    with tempfile.TemporaryDirectory() as folder:
        first, *_ = draw_dreams(load_model(run), load_test_set(load_environment(run)), folder, count=1, steps=12)
        shutil.copy(first, path)


def trained(folder: Path) -> Trained:
    """The averaged model of a run, and its age."""
    content = torch.load(folder / TRAINER_FILE, map_location="cpu", weights_only=True, mmap=True)
    return Trained(load_model(folder), content["update"])


def draw_sources(models: dict[str, Trained], test_set: TestSet, path: Path) -> None:
    """Where chunks start, a row a model: on true frames to the left, on the same frames dreamed to the right."""
    rows, labels = {}, []
    for name, it in models.items():
        watched = watch_steps(it.model, test_set, columns=COLUMNS)
        labels = [f"{what}, step {step}" for what in ("seen", "dreamed") for step in watched.steps]
        (seen, seen_starts), (dreamed, dreamed_starts) = watched.seen, watched.dreamed
        most = max(seen_starts.shape[1], dreamed_starts.shape[1])
        starts = [
            np.pad(s, ((0, 0), (0, most - s.shape[1])), constant_values=-1) for s in (seen_starts, dreamed_starts)
        ]
        rows[f"{SOURCES[name]}\n{it.updates:,} updates"] = np.concatenate([seen, dreamed]), np.concatenate(starts)
    patches = next(iter(models.values())).model.frame_stage.patches
    boundary_picture(path, rows, patch_order(patches), patch=patches.ph, labels=labels)


def draw_both(models: dict[str, Trained], test_set: TestSet, path: Path) -> None:
    """Tokens of each frame, F_t among them, over the beginning of an episode that stands still half of the time."""
    table = test_set.table
    changed = np.diff(table.index, prepend=-1) != 0
    random = np.flatnonzero(~test_set.succeeding)
    share = [changed[table.begin[e] : min(table.begin[e] + FRAMES, table.begin[e + 1])].mean() for e in random]
    number = int(random[np.abs(np.array(share) - 0.5).argmin()])
    counts, frames = {}, np.zeros(0)
    for name, it in models.items():
        episode = watch_episode(it.model, table, number)
        counts[f"{COUNTED[name]} ({it.updates:,} updates)"] = 1 + episode.chunks[:FRAMES]
        frames = episode.frames[:FRAMES]
    draw_counts(path, counts, frames, "")


def draw_orders(model: WorldModel, test_set: TestSet, path: Path) -> None:
    """A frame cut into chunks of equal length along each of the curves that its patches can follow."""
    spec, frame_config = model.config.observation, model.config.frame
    first = test_set.table.begin[liveliest_episode(test_set)]
    (frame,) = to_rgb(test_set.table.frames[test_set.table.index[first]][None], spec)
    figure = Figure(figsize=(3.4 * len(CURVES), 3.7), dpi=160, layout="constrained")
    for axes, order in zip(figure.subplots(1, len(CURVES)), CURVES):
        patches = Patches(spec, frame_config.patch, order)
        order_RC, side = patch_order(patches), patches.ph
        chunks = round(frame_config.chunks)
        draw_frame(axes, frame, np.arange(chunks) * patches.count // chunks, order_RC, side)
        row, column = np.divmod(order_RC.flatten().argsort(), patches.columns)
        axes.plot((column + 0.5) * side, (row + 0.5) * side, color="#f0e442", linewidth=1, marker=".", markersize=4)
        axes.set_title(f"{order} order, {chunks} chunks at a fixed stride", fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options))
