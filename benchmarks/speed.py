"""How fast a trained model is on one thread: frames trained, frames dreamed with pixels, latent dream steps.

    python benchmarks/speed.py --run runs/doorkey                 # a run and the episodes it was trained on
    python benchmarks/speed.py --run runs/doorkey --quick         # a minute, for before and after a change

Every figure is per CPU-second of one thread, the median of several repeats, beside the machine's own matrix product in
the same minute. A fast model that dreams badly has no speed, so the table says how true the model's dreams are. The
JSON goes to benchmarks/results/.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.training import AgentTrainer
from worldmodel.checkpoint import load_environment, load_model
from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import load_test_set
from worldmodel.model import WorldModel
from worldmodel.state import DreamState
from worldmodel.training import TrainConfig, Trainer

RESULTS = Path(__file__).parent / "results"
# The peers at their default Atari configuration, random weights, one thread, 64x64x3.
PEERS = {
    "DIAMOND": (3.4, 2.3, None),
    "IRIS": (4.4, 13, None),
    "Delta-IRIS": (5.5, 21, None),
    "DreamerV3 1M (sheeprl)": (122, None, 16_900),
    "DreamerV3 XS (sheeprl)": (95, None, 7_100),
}
GOALS = {"trained": 600, "trained, every frame distinct": 300, "dreamed with pixels": 400, "latent dream steps": 3_000}


@dataclass
class Options:
    """What to measure."""

    run: Path
    """A run folder with a trained world model."""
    data: Path | None = None
    """Its episodes; those that it was trained on if not given."""
    quick: bool = False
    """Fewer repeats and fewer windows: a minute in all."""
    out: Path | None = None
    """Where the JSON goes; benchmarks/results/speed_ENV.json if not given."""


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def matmul_rate(repeats: int) -> float:
    """GFLOP per CPU-second of a 1024^3 product in fp32."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / cpu_seconds(lambda: a @ b, repeats) / 1e9


def all_distinct(table: FrameTable, seed: int = 0) -> FrameTable:
    """The same episodes with no two frames alike: a few pixels of each are changed by one grey level."""
    rng = np.random.default_rng(seed)
    frames = table.frames[table.index].copy()
    flat = frames.reshape(len(frames), -1)
    places = rng.integers(flat.shape[1], size=(len(flat), 8))
    flat[np.arange(len(flat))[:, None], places] ^= 1
    return dataclasses.replace(table, frames=frames, index=np.arange(len(frames)))


def trained_frames(model: WorldModel, table: FrameTable, repeats: int) -> dict[str, float]:
    """Frames trained per CPU-second by the trainer as it is after its first, pictures-only updates."""
    config = TrainConfig()
    batches = Segments(table, config.batch_size, config.length, end_share=config.end_share, loose=config.loose)
    copy = WorldModel(model.config)
    copy.load_state_dict(model.state_dict())
    trainer = Trainer(copy.train(), batches, Path("unused"), config)
    trainer.update = config.pictures_first
    shares = []

    def update() -> None:
        batch = batches.sample()
        shares.append(len(torch.unique(batch.index)) / batch.index.numel())
        trainer.step(batch)

    seconds = cpu_seconds(update, repeats)
    frames = config.batch_size * config.length
    return {"per_cpu_second": frames / seconds, "distinct_share": statistics.mean(shares), "seconds": seconds}


def agent_seconds(model: WorldModel, starts: DreamState, repeats: int) -> float:
    """CPU-seconds of one update of the agent: 256 dreams of 15 steps, actor and critic."""
    agent = ActorCritic(model.feature_width, model.config.action)
    trainer = AgentTrainer(model, agent)
    return cpu_seconds(lambda: trainer.update(starts), repeats)


def dream_state(model: WorldModel, table: FrameTable, rows: int) -> DreamState:
    """A state that has seen eight real frames."""
    rng = np.random.default_rng(0)
    begin = rng.integers(0, len(table) - 8, size=rows)
    state = model.initial_state(rows)
    for t in range(8):
        at = begin + t
        frame, action = torch.from_numpy(table.frames[table.index[at]]), torch.from_numpy(table.action[at])
        state, _ = model.observe(state, action, frame, torch.from_numpy(table.first[at]))
    return state


def dreamed_frames(model: WorldModel, table: FrameTable, batch: int, steps: int, pixels: bool, repeats: int) -> float:
    """Dreamed steps per CPU-second, with or without their pictures."""
    state = dream_state(model, table, batch)
    high = model.config.action.sizes[0] if model.config.action.kind == "discrete" else 1
    actions = torch.randint(high, (steps, batch, *model.config.action.shape))

    def dream() -> None:
        now = state
        for action in actions:
            now, out = model.imagine(now, action)
            if pixels:
                model.decode(out)

    return batch * steps / cpu_seconds(dream, repeats)


def main(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    repeats = 5 if options.quick else 15
    model, environment = load_model(options.run), load_environment(options.run)
    recorded = json.loads((options.run / "training.json").read_text())["data"] if options.data is None else None
    table = FrameTable.from_store(EpisodeStore.open(options.data or options.run / recorded))

    fidelity = measure_fidelity(model, load_test_set(environment), table.frames, windows=64 if options.quick else 256)
    classes = fidelity["horizons"].get("15", {}).get("frames", {}).get("dream", {})
    exact = {name: classes.get(name, {}).get("exact") for name in ("all", "changed", "changed_seen")}

    rates = {"trained": trained_frames(model, table, repeats)}
    rates["trained, every frame distinct"] = trained_frames(model, all_distinct(table), repeats)
    starts = dream_state(model, table, 256)
    agent = agent_seconds(model, starts, max(3, repeats // 3))
    # As in sheeprl's figure: one agent's update over as many dreams as the batch has frames, 15 steps each.
    config = TrainConfig()
    frames = config.batch_size * config.length
    per_update = rates["trained"]["seconds"] + agent * frames / 256
    rates["trained, with the agent's update"] = {
        "per_cpu_second": frames / per_update,
        "distinct_share": rates["trained"]["distinct_share"],
    }
    rates["dreamed with pixels"] = {"per_cpu_second": dreamed_frames(model, table, 16, 15, True, repeats)}
    rates["latent dream steps"] = {"per_cpu_second": dreamed_frames(model, table, 1024, 5, False, max(3, repeats // 3))}

    result = {
        "format_version": 1,
        "environment": environment["id"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "matmul_gflops_per_cpu_second": matmul_rate(repeats),
        "chunks_a_frame": fidelity["chunks"],
        "exact_at_15": exact,
        "agent_update_cpu_seconds": agent,
        "rates": rates,
        "goals": GOALS,
        "commit": _output("git", "rev-parse", "HEAD"),
        "machine": {"processor": _processor(), "python": platform.python_version(), "torch": torch.__version__},
        "quick": options.quick,
    }
    print(report(result))
    short = str(environment["id"]).replace("/", "-")
    path = options.out or RESULTS / f"speed_{short}{'_quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    print(f"\nwritten to {path}")


def report(result: dict[str, Any]) -> str:
    """The table, for the terminal and for documents."""
    chunks = result["chunks_a_frame"].get("dream")
    exact = result["exact_at_15"]["changed"]
    lines = [
        f"{result['environment']}, {result['parameters'] / 1e6:.2f}M parameters, one thread, per CPU-second; "
        f"a 1024^3 product runs at {result['matmul_gflops_per_cpu_second']:.0f} GFLOP/s",
        "",
        "| | rate | goal | chunks a frame | distinct frames | exact@15, changed |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in result["rates"].items():
        goal = result["goals"].get(name)
        distinct = f"{entry['distinct_share']:.0%}" if "distinct_share" in entry else "-"
        lines.append(
            f"| {name} | {entry['per_cpu_second']:,.0f} | {f'{goal:,}' if goal else '-'} | "
            f"{f'{chunks:.1f}' if chunks else '-'} | {distinct} | {'-' if exact is None else f'{exact:.1%}'} |"
        )
    lines += [
        "",
        "Peers at 64x64 with random weights, measured on another machine (73 GFLOP/s in the same product):",
        "",
    ]
    lines += ["| | trained | dreamed with pixels | latent dream steps |", "|---|---|---|---|"]
    for name, row in PEERS.items():
        lines.append(f"| {name} | " + " | ".join("-" if v is None else f"{v:,g}" for v in row) + " |")
    return "\n".join(lines)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor()


if __name__ == "__main__":
    main(tyro.cli(Options))
