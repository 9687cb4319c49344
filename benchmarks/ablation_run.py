"""One run of the ablation: a variant trained under the clock, measured on the way, resumed where it was killed.

    python benchmarks/ablation_run.py '{"environment": "doorkey", "variant": "plain", ...}'     # a `Plan` as JSON

`ablation.py` starts these. The run folder is an ordinary one, which `worldmodel evaluate` takes, too. What was measured
is kept there until all of it is there and the result is written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from code_length import bits_a_frame
from timing import ROOT, machine, revision
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from variants import ENVIRONMENTS, Environment

from worldmodel.batch import Batch
from worldmodel.checkpoint import save_config, write_atomically
from worldmodel.envs.collect import collect
from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import TestSet, load_test_set
from worldmodel.kernels.backend import VARIABLE
from worldmodel.losses import world_model_loss
from worldmodel.model import WorldModel
from worldmodel.overrides import override
from worldmodel.presets import preset
from worldmodel.training import TRAINER_FILE, TrainConfig, Trainer

RESULTS = ROOT / "benchmarks" / "results" / "ablation"
RUNS = ROOT / "runs" / "ablation"
PROGRESS_FILE = "ablation.json"
ROWS, STEPS = 16, 64  # episodes, and frames of each, over which main tokens and their loops are counted
MAIN_TOKENS = "main.count"  # what a state calls the main tokens that its row has had
PATIENCE = 6  # times the CPU time that a slow variant may take to come to its updates


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, for how long, and how it is measured. Equal plans are the same run."""

    environment: str
    variant: str
    settings: tuple[str, ...]
    seed: int
    updates: int  # where all variants are compared at equal updates
    cpu_minutes: float  # of training alone, where they are compared at equal time
    windows: int  # of the fidelity
    edition: int = 1  # see variants.EDITION

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `json.dumps(vars(plan))`."""
        fields = json.loads(text)
        return cls(**fields | {"settings": tuple(fields["settings"])})

    @property
    def name(self) -> str:
        """Of the run folder and of the result."""
        return f"{self.variant}_seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it trains."""
        return RUNS / self.environment / self.name

    @property
    def result(self) -> Path:
        """Where the figures go."""
        return RESULTS / self.environment / f"{self.name}.json"

    def on_record(self) -> Plan | None:
        """The plan of the result that is there, if there is one."""
        if not self.result.exists():
            return None
        return Plan.from_json(json.dumps(json.loads(self.result.read_text())["plan"]))


def open_data(environment: Environment) -> tuple[EpisodeStore, TestSet]:
    """Episodes to learn from and to be measured on, made if they are not there."""
    bars = sys.stderr.isatty()
    store = collect(environment.id, environment.folder, environment.steps, seed=0, progress=bars)
    folder = environment.folder.with_name(f"{environment.folder.name}_test")
    return store, load_test_set(store.environment, folder, episodes=environment.test_episodes, progress=bars)


def run(plan: Plan, environment: Environment) -> dict[str, Any]:
    """Train what is left to train, measure on the way, write the result, return it."""
    torch.set_num_threads(1)
    store, test_set = open_data(environment)
    table = FrameTable.from_store(store)
    training = override(TrainConfig(), *_about_training(plan, True), prefix="training.")
    config = preset("tiny", observation_spec(store.observation_space), action_spec(store.action_space))
    config = override(config, *_about_training(plan, False))
    torch.manual_seed(plan.seed)
    model = WorldModel(config)

    progress = Progress.of(plan)
    trainer = Trainer(
        model, Segments.for_training(table, config, training, plan.seed), plan.folder, training, seed=plan.seed
    )
    if (plan.folder / TRAINER_FILE).exists():
        trainer.resume()
    else:
        save_config(plan.folder, config, store.environment)
    train(plan, trainer, progress, lambda: measure(trainer.averaged_model(), table, test_set, plan))
    result = {
        "format_version": 1,
        "plan": dataclasses.asdict(plan),
        "environment": environment.id,
        "parameters": sum(p.numel() for p in model.parameters()),
        # Of the trained model: before, a learned router does not keep to its number of chunks.
        "flops_a_frame": flops_a_frame(
            trainer.averaged_model(), Segments.for_training(table, config, training).sample(), training
        ),
        **revision(),
        "machine": machine(),
        "evaluations": progress.evaluations,
    }
    write_atomically(plan.result, json.dumps(result, indent=1).encode())
    return result


def _about_training(plan: Plan, wanted: bool) -> list[str]:
    return [setting for setting in plan.settings if setting.startswith("training.") == wanted]


class Progress:
    """What a run knows beside its checkpoint: CPU seconds by the update they were spent until, and what was measured.

    Written before each checkpoint, so whatever update that is of, its time is known.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.seconds: dict[str, list[float]] = {"0": [0.0, 0.0]}  # in all, and since the pictures
        self.evaluations: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, plan: Plan) -> Progress:
        """That of the run folder; a folder that was made by another plan is emptied."""
        path = plan.folder / PROGRESS_FILE
        progress = cls(path, plan)
        if path.exists() and (found := json.loads(path.read_text()))["plan"] == json.loads(json.dumps(vars(plan))):
            progress.seconds, progress.evaluations = found["seconds"], found["evaluations"]
        elif plan.folder.exists():
            shutil.rmtree(plan.folder)
        plan.folder.mkdir(parents=True, exist_ok=True)
        progress.save()
        return progress

    def save(self) -> None:
        """Write it."""
        content = {"plan": vars(self.plan), "seconds": self.seconds, "evaluations": self.evaluations}
        write_atomically(self.path, json.dumps(content).encode())


def train(plan: Plan, trainer: Trainer, progress: Progress, measured: Callable[[], dict[str, Any]]) -> None:
    """Train until the updates and the CPU time are both reached, and measure at each of the two.

    A variant that is so slow that the updates take six times the CPU time stops there, without that measurement.
    """
    config, source, budget = trainer.config, iter(trainer.batches), 60 * plan.cpu_minutes
    total, full = progress.seconds[str(trainer.update)]

    def due() -> list[str]:
        reached = {"updates": trainer.update >= plan.updates, "cpu": total >= budget}
        return [name for name in ("updates", "cpu") if reached[name] and name not in progress.evaluations]

    def save() -> None:
        progress.seconds[str(trainer.update)] = [total, full]
        progress.save()
        trainer.save()

    trainer.model.train()
    with tqdm(total=plan.updates, initial=trainer.update, desc=plan.name, disable=None) as bar:
        while True:
            for name in due():
                save()  # what is measured is a checkpoint that can be gone back to
                frames = config.batch_size * config.length * (trainer.update - config.pictures_first)
                progress.evaluations[name] = {
                    "update": trainer.update,
                    "cpu_seconds": total,
                    "frames_per_cpu_second": frames / full if full else None,
                    **measured(),
                }
                progress.save()
                print(f"{plan.name}: update {trainer.update}, {total:.0f} CPU-seconds, measured", flush=True)
            if len(progress.evaluations) == 2 or total >= PATIENCE * budget:
                break
            began, pictures = time.process_time(), trainer.update < config.pictures_first
            trainer.step(next(source))
            spent = time.process_time() - began
            total, full = total + spent, full + (0.0 if pictures else spent)
            bar.update()
            if trainer.update % config.save_every == 0:
                save()
    save()


def measure(model: WorldModel, table: FrameTable, test_set: TestSet, plan: Plan) -> dict[str, Any]:
    """How good a model is: bits a frame, how true its dreams are, and what it makes of a frame."""
    fidelity = measure_fidelity(model, test_set, table.frames, windows=plan.windows)
    # Where ground can be out of sight, only frames on ground that the context showed can be foretold.
    label = "changed" if test_set.shown is None else "changed_seen"
    horizons = {}
    for horizon, entry in fidelity["horizons"].items():
        frames = entry["frames"]
        scores = {name: frames[name][label].get("exact", frames[name][label].get("psnr")) for name in frames}
        horizons[horizon] = {"frames": frames["dream"][label]["frames"], **scores}
    first = next(iter(fidelity["horizons"].values()))["frames"]["dream"]["all"]
    return {
        "bits": bits_a_frame(model, test_set.table),
        "score": "exact" if "exact" in first else "psnr",
        "horizons": horizons,
        "chunks": fidelity["chunks"],
        "start_entropy": fidelity["start_entropy"],
        "main_tokens_a_frame": main_tokens_a_frame(model, test_set.table),
        "loops_a_token": loops_a_token(model, test_set.table),
    }


def main_tokens_a_frame(model: WorldModel, table: FrameTable) -> float:
    """How often the main network runs in a frame, over the first frames of some of the table's episodes."""
    begin, lengths = table.begin[:-1][:ROWS], np.diff(table.begin)[:ROWS]
    steps = min(STEPS, int(lengths.min()))
    state = model.initial_state(len(begin))
    for t in range(steps):
        at = begin + t
        frame, action = torch.from_numpy(table.frames[table.index[at]]), torch.from_numpy(table.action[at])
        state, _ = model.observe(state, action, frame, torch.from_numpy(table.first[at]))
    return float(state.tensors[MAIN_TOKENS].float().mean()) / steps


@torch.no_grad()
def loops_a_token(model: WorldModel, table: FrameTable) -> float | None:
    """How often the core runs for a main token, over the same frames; None without a core."""
    begin, lengths = table.begin[:-1][:ROWS], np.diff(table.begin)[:ROWS]
    batch = table.gather(begin[:, None] + np.arange(min(STEPS, int(lengths.min()))))
    seen = model(batch, torch.arange(len(begin)) << 32)
    return None if seen.loops is None else float(seen.loops.loops)


def flops_a_frame(model: WorldModel, batch: Batch, config: TrainConfig) -> float:
    """FLOPs of the loss of one real batch, forward, by its frames; going back takes about twice as many.

    Counted are products of matrices: linear layers, attention, and the scans as torch computes them. Not counted is
    what goes number by number: norms, activations, convolutions, the EMA, routing, gathering.
    """
    key, generator = torch.arange(len(batch.index)) << 32, torch.Generator().manual_seed(0)
    before, counter = os.environ.get(VARIABLE), FlopCounterMode(display=False)
    os.environ[VARIABLE] = "torch"  # what runs in C is not seen
    try:
        with torch.no_grad(), counter:
            world_model_loss(model, batch, config.losses, key=key, generator=generator)
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
    return counter.get_total_flops() / batch.index.numel()


if __name__ == "__main__":
    the_plan = Plan.from_json(sys.argv[1])
    run(the_plan, ENVIRONMENTS[the_plan.environment])
