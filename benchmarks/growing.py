"""What growing is worth: a model of 56x56 pictures that goes on with 112x112 ones, beside one that starts there.

    python benchmarks/growing.py                   # collect, train all three, write the JSON and the figure
    python benchmarks/growing.py --models scratch  # only one of them; what is there already stays

DoorKey-5x5 by a random player, in 8 and in 16 pixels a cell. `small` learns the first; `grown` is what it becomes and
learns the second; `scratch` has the shape of `grown` and learns the second for as long as both together. All are
measured on held-out episodes by their averaged weights, outside of the clock. A run that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from timing import ROOT, machine, revision

from worldmodel.checkpoint import load_model, save_config, write_atomically
from worldmodel.config import ModelConfig
from worldmodel.envs.collect import collect
from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.make import spec_of
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import TestSet, load_test_set
from worldmodel.grow import grown_config
from worldmodel.losses import LossConfig, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.scripts.train import GROWN_PICTURES
from worldmodel.training import TrainConfig, Trainer

RESULT = ROOT / "benchmarks" / "results" / "growing.json"
FIGURE = ROOT / "docs" / "images" / "growing.png"
ENVIRONMENT = "MiniGrid-DoorKey-5x5-v0"
WRAPPERS = {"small": "minigrid_rgb", "grown": "minigrid_rgb16", "scratch": "minigrid_rgb16"}
COLOURS = {"small": "#888a85", "grown": "#cc0000", "scratch": "#3465a4"}
AHEAD = 15  # dreamed steps after which pictures are compared
CURVES = {
    "squared_error": "squared error of a pixel",
    "bits": "bits to foretell a frame's code",
    "seen_exact": "frames painted exactly",
    "dreamed_exact": f"exact after {AHEAD} dreamed steps",
}


@dataclass
class Options:
    """What to train, and for how long."""

    models: tuple[str, ...] = ("small", "grown", "scratch")
    """Which of them; `grown` needs `small` to be done."""
    seconds: float = 240.0
    """CPU-seconds of small and of grown; scratch gets twice as many."""
    points: int = 8
    """Measurements in so many seconds."""
    steps: int = 20_000
    """Of the random player."""
    folder: Path = ROOT / "runs" / "growing"
    """Where episodes and runs are kept."""


def main(options: Options) -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    for name in options.models:
        train(name, options)
    write(options)


def train(name: str, options: Options) -> None:
    """Train one of the models up to its seconds, a point after each slice of them."""
    run, wrapper = options.folder / name, WRAPPERS[name]
    store = collect(spec_of(ENVIRONMENT, [wrapper]), options.folder / wrapper, options.steps)
    tests = load_test_set(store.environment, options.folder / f"{wrapper}_test")
    trainer, points = begun(name, run, store, options.folder)
    held_out = Held(tests, trainer.averaged.config, FrameTable.from_store(store))
    limit, slice_seconds = options.seconds * (2 if name == "scratch" else 1), options.seconds / options.points
    if not points:
        points.append({"update": 0, "cpu_seconds": 0.0, **held_out.measure(trainer.averaged_model())})
    source: Iterator[Any] = iter(trainer.batches)
    while points[-1]["cpu_seconds"] < limit - slice_seconds / 2:
        trainer.model.train()
        began = time.process_time()
        while (spent := time.process_time() - began) < slice_seconds:
            trainer.step(next(source))
        spent += points[-1]["cpu_seconds"]
        point = {"update": trainer.update, "cpu_seconds": spent, **held_out.measure(trainer.averaged_model())}
        points.append(point)
        print(name, {key: round(value, 4) for key, value in point.items()}, flush=True)
        trainer.save()
        write_atomically(run / "points.json", json.dumps(points).encode())


def begun(name: str, run: Path, store: EpisodeStore, folder: Path) -> tuple[Trainer, list[dict[str, float]]]:
    """The trainer of a model and its points so far; what was stopped between its two files starts over."""
    torch.manual_seed(0)
    small = preset("tiny", observation_spec(store.observation_space), action_spec(store.action_space))
    if name == "grown":
        model = load_model(folder / "small").grow()
    else:
        model = WorldModel(small if name == "small" else of_grown_shape(small))
    config = TrainConfig(pictures_first=GROWN_PICTURES) if name == "grown" else TrainConfig()
    table = FrameTable.from_store(store)
    batches = Segments(table, config.batch_size, config.length, end_share=config.end_share, loose=config.loose)
    trainer = Trainer(model, batches, run, config)
    if (run / "points.json").exists():
        points = json.loads((run / "points.json").read_text())
        trainer.resume()
        if points[-1]["update"] == trainer.update:
            return trainer, points
        shutil.rmtree(run)
        return begun(name, run, store, folder)
    save_config(run, model.config, store.environment)
    return trainer, []


def of_grown_shape(large: ModelConfig) -> ModelConfig:
    """The config that a model of pictures half as large grows to."""
    height, width, channels = large.observation.shape
    half = dict(vars(large.observation)) | {"shape": (height // 2, width // 2, channels)}
    return grown_config(preset("tiny", type(large.observation)(**half), large.action))


class Held:
    """Held-out episodes, and how well a model does on them."""

    def __init__(self, tests: TestSet, config: ModelConfig, training: FrameTable) -> None:
        self.tests, self.training = tests, training.frames
        self.values = math.prod(config.observation.shape)
        source = Segments(tests.table, batch_size=6, length=24, seed=1)
        self.batches = [source.sample() for _ in range(8)]

    @torch.no_grad()
    def measure(self, model: WorldModel) -> dict[str, float]:
        """A point of the curves, without its place on them."""
        notes: list[dict[str, Any]] = []
        for number, batch in enumerate(self.batches):
            key, generator = torch.arange(len(batch.index)), torch.Generator().manual_seed(number)
            notes.append(world_model_loss(model, batch, LossConfig(), key=key, generator=generator)[1])
        mean = {name: sum(float(note[name]) for note in notes) / len(notes) for name in notes[0]}
        fidelity = measure_fidelity(model, self.tests, self.training, horizons=(1, AHEAD), windows=64)
        frames = fidelity["horizons"][str(AHEAD)]["frames"]
        return {
            "squared_error": mean["loss/reconstruction"] / self.values,
            "kl_nats": mean["latent/kl"],
            "bits": mean["latent/kl"] / math.log(2),
            "seen_exact": frames["closed_loop"]["all"]["exact"],
            "dreamed_exact": frames["dream"]["all"]["exact"],
            "dreamed_exact_changed": frames["dream"]["changed"]["exact"],
        }


def write(options: Options) -> None:
    """The JSON and the figure, of all models that have points."""
    found = {name: options.folder / name / "points.json" for name in WRAPPERS}
    models = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    result = {
        "format_version": 1,
        **revision(),
        "machine": machine(),
        "environment": ENVIRONMENT,
        "steps": options.steps,
        "seconds": options.seconds,
        "models": models,
    }
    write_atomically(RESULT, json.dumps(result, indent=1).encode())
    draw(models)
    print(f"written to {RESULT} and {FIGURE}")


def draw(models: dict[str, list[dict[str, float]]]) -> None:
    """Each curve against updates and against CPU-seconds; those of `grown` count what `small` had before."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    rows = figure.subplots(2, len(CURVES), sharey="col")
    for axes, x, label in zip(rows, ("update", "cpu_seconds"), ("update of the run", "CPU-seconds in all")):
        for ax, (curve, title) in zip(axes, CURVES.items()):
            for name, points in models.items():
                before = models["small"][-1][x] if name == "grown" and x == "cpu_seconds" else 0.0
                places, values = [before + p[x] for p in points], [p[curve] for p in points]
                ax.plot(places, values, ".-", color=COLOURS[name], linewidth=1, label=name)
            ax.set_title(title, fontsize=10)
            ax.set_xlabel(label, fontsize=8)
            ax.grid(alpha=0.3)
            if curve in ("squared_error", "bits"):
                ax.set_yscale("log")
    rows[0][0].legend(fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Options))
