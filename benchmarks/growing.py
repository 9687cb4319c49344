"""What growing is worth: a model of small pictures that goes on with large ones, beside one that starts with those.

    python benchmarks/growing.py                   # collect, train all three, write the JSON and the figure
    python benchmarks/growing.py --env pong        # 64x64 and 128x128, needs worldmodel[atari]
    python benchmarks/growing.py --models scratch  # only one of them; what is there already stays

DoorKey-5x5 in 8 and in 16 pixels a cell, or Pong in 64x64 and 128x128, by a random player. `small` learns the first;
`grown` is what it becomes and learns the second; `scratch` has the shape of `grown` and learns the second for as long
as both together. All are measured on held-out episodes by their averaged weights, outside of the clock. A run that was
stopped goes on.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from growing_picture import AHEAD, MODELS, draw
from timing import ROOT, machine, revision

from worldmodel.batch import Batch
from worldmodel.checkpoint import load_model, save_config, write_atomically
from worldmodel.config import ModelConfig
from worldmodel.envs.collect import collect
from worldmodel.envs.fidelity import TILED
from worldmodel.envs.fidelity_metrics import TileVocabulary, frame_scores
from worldmodel.envs.make import spec_of
from worldmodel.envs.open_loop import observe_context, open_loop, truth
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import TestSet, load_test_set
from worldmodel.envs.windows import choose_windows
from worldmodel.grow import grown_config
from worldmodel.losses import LossConfig, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.scripts.train import GROWN_PICTURES
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import TrainConfig, Trainer

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
PAINTED = 256  # held-out frames that are painted, evenly over all of them


@dataclass(frozen=True)
class Scene:
    """An environment that is seen in two sizes.

    Attributes:
        name: of the JSON and the figure.
        id: of the environment.
        small, large: wrappers of either size.
        steps: of the random player, to learn from.
        test_episodes: of each kind, to be measured on.
        seconds: CPU-seconds of the small and of the grown model.
    """

    name: str
    id: str
    small: tuple[str, ...]
    large: tuple[str, ...]
    steps: int
    test_episodes: int
    seconds: float

    def wrappers(self, model: str) -> tuple[str, ...]:
        """Of the pictures that a model learns."""
        return self.small if model == "small" else self.large


SCENES = {
    "doorkey": Scene("growing", "MiniGrid-DoorKey-5x5-v0", ("minigrid_rgb",), ("minigrid_rgb16",), 20_000, 50, 90.0),
    "pong": Scene("growing_pong", "ALE/Pong-v5", ("skip4", "resize64"), ("skip4", "resize128"), 10_000, 2, 300.0),
}


@dataclass
class Options:
    """What to train, and for how long."""

    env: Literal["doorkey", "pong"] = "doorkey"
    """What is played."""
    models: tuple[str, ...] = ("small", "grown", "scratch")
    """Which of them; `grown` needs `small` to be done."""
    seconds: float | None = None
    """CPU-seconds of small and of grown; scratch gets twice as many (default: 90 with DoorKey, 300 with Pong)."""
    points: int = 6
    """Measurements in so many seconds."""
    pictures: int = 1000
    """Updates of small and of scratch that only paint; a grown model has its own number."""
    steps: int | None = None
    """Of the random player (default: 20,000 of DoorKey, 10,000 of Pong)."""
    folder: Path | None = None
    """Where episodes and runs are kept (default: `runs/growing`, `runs/growing_pong`)."""

    @property
    def scene(self) -> Scene:
        """What `env` stands for."""
        return SCENES[self.env]

    @property
    def budget(self) -> float:
        """CPU-seconds of small and of grown."""
        return self.scene.seconds if self.seconds is None else self.seconds

    @property
    def place(self) -> Path:
        """The folder."""
        return ROOT / "runs" / self.scene.name if self.folder is None else self.folder


def main(options: Options) -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    for name in options.models:
        train(name, options)
    write(options)


def train(name: str, options: Options) -> None:
    """Train one of the models up to its seconds, a point after each slice of them."""
    run, scene, wrappers = options.place / name, options.scene, options.scene.wrappers(name)
    data = options.place / wrappers[-1]
    store = collect(spec_of(scene.id, wrappers), data, options.steps or scene.steps)
    tests = load_test_set(store.environment, data.with_name(f"{data.name}_test"), scene.test_episodes)
    table = FrameTable.from_store(store)
    trainer, points = begun(name, run, store, table, options)
    held_out = Held(tests, table, wrappers[-1])
    limit, slice_seconds = options.budget * (2 if name == "scratch" else 1), options.budget / options.points
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


def begun(
    name: str, run: Path, store: EpisodeStore, table: FrameTable, options: Options
) -> tuple[Trainer, list[dict[str, float]]]:
    """The trainer of a model and its points so far; what was stopped between its two files starts over."""
    torch.manual_seed(0)
    config = TrainConfig(pictures_first=GROWN_PICTURES if name == "grown" else options.pictures)
    if name == "grown":
        model = load_model(options.place / "small").grow()
    else:
        spec, action = observation_spec(store.observation_space), action_spec(store.action_space)
        model = WorldModel(preset("tiny", spec, action) if name == "small" else of_grown_shape(spec, action))
    batches = Segments.for_training(table, model.config, config)
    trainer = Trainer(model, batches, run, config)
    if (run / "points.json").exists():
        points = json.loads((run / "points.json").read_text())
        trainer.resume()
        if points[-1]["update"] == trainer.update:
            return trainer, points
        shutil.rmtree(run)
        return begun(name, run, store, table, options)
    save_config(run, model.config, store.environment)
    return trainer, []


def of_grown_shape(large: ObservationSpec, action: ActionSpec) -> ModelConfig:
    """The config that a model of pictures half as large grows to."""
    height, width, channels = large.shape
    return grown_config(preset("tiny", replace(large, shape=(height // 2, width // 2, channels)), action))


class Held:
    """Held-out episodes, and how well a model does on them."""

    def __init__(self, tests: TestSet, training: FrameTable, wrapper: str) -> None:
        self.table = tests.table
        self.vocabulary = TileVocabulary.of(training.frames, TILED[wrapper]) if wrapper in TILED else None
        self.frames = tests.table.frames[:: -(-len(tests.table.frames) // PAINTED)]
        self.windows = choose_windows(tests.table, tests.succeeding, horizons=(AHEAD,), count=64)
        source = Segments(tests.table, batch_size=6, length=24, seed=1)
        self.batches = [source.sample() for _ in range(4)]

    @torch.no_grad()
    def measure(self, model: WorldModel) -> dict[str, float]:
        """A point of the curves, without its place on them."""
        kl = statistics.mean(self.nats(model, batch) for batch in self.batches)
        seen = self.scores(model, painted(model, torch.from_numpy(self.frames)), self.frames)
        state = observe_context(model, self.table, self.windows)
        dream, real = open_loop(model, state, self.table, self.windows), truth(self.table, self.windows)
        rows = self.windows.sampled[:, 0]
        dreamed = self.scores(model, dream.frames[rows, 0], real.frames[rows, 0])
        point = {"squared_error": float(seen["squared_error"].mean()), "kl_nats": kl, "bits": kl / math.log(2)}
        if self.vocabulary is None:
            return point | {"seen_psnr": psnr(seen), "dreamed_psnr": psnr(dreamed)}
        return point | {
            "seen_exact": float(seen["exact"].mean()),
            "dreamed_exact": float(dreamed["exact"].mean()),
            "dreamed_tiles": float(dreamed["tile_rate"].mean()),
        }

    def scores(self, model: WorldModel, predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
        """Of each frame."""
        spec = model.config.observation
        return frame_scores(predicted, true, kind=spec.kind, scale=spec.scale, vocabulary=self.vocabulary)

    def nats(self, model: WorldModel, batch: Batch) -> float:
        """To foretell the code of a frame."""
        key, generator = torch.arange(len(batch.index)), torch.Generator().manual_seed(0)
        return float(world_model_loss(model, batch, LossConfig(paint=1), key=key, generator=generator)[1]["latent/kl"])


def psnr(scores: dict[str, np.ndarray]) -> float:
    """In dB, of the mean squared error."""
    return -10 * math.log10(max(float(scores["squared_error"].mean()), 1e-10))


def painted(model: WorldModel, frames: torch.Tensor) -> np.ndarray:
    """Frames as the model paints them from their own codes."""
    stage, pictures = model.frame_stage, []
    for some in frames.split(32):
        patches = stage.patches(some)
        chunks, posterior, _ = stage.encode(stage.look(patches), patches, None)
        pictures.append(stage.patches.inverse(stage.decode(model.latent.mode(posterior), None, chunks)))
    return torch.cat(pictures).numpy()


def write(options: Options) -> None:
    """The JSON and the figure, of all models that have points."""
    scene = options.scene
    found = {name: options.place / name / "points.json" for name in MODELS}
    models = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    result = {
        "format_version": 1,
        **revision(),
        "machine": machine(),
        "environment": scene.id,
        "steps": options.steps or scene.steps,
        "seconds": options.budget,
        "pictures": {"grown": GROWN_PICTURES, "others": options.pictures},
        "models": models,
    }
    path, picture = RESULTS / f"{scene.name}.json", IMAGES / f"{scene.name}.png"
    write_atomically(path, json.dumps(result, indent=1).encode())
    draw(models, picture)
    print(f"written to {path} and {picture}")


if __name__ == "__main__":
    main(tyro.cli(Options))
