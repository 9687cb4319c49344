"""How fast a trained model is on one thread, beside sheeprl's DreamerV3 in the same minutes, and how its cost grows.

    python benchmarks/speed.py --run runs/doorkey                 # a run and the episodes it was trained on
    python benchmarks/speed.py --run runs/doorkey --quick         # only our rates, half a minute, for a change at hand

Every rate is per CPU-second of one thread, the median of several repeats, beside the machine's own matrix product in
the same minute. A fast model that dreams badly has no speed, so the table says how true the model's dreams are. The
JSON goes to benchmarks/results/; `tables.py` writes its tables into the documents.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import floor
import growth
import memory
import rates
import sheeprl_venv
import speed_report
import torch
import tyro
from timing import machine, matmul_rate, revision

from worldmodel.checkpoint import load_environment, load_model
from worldmodel.envs.fidelity import measure_fidelity
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import load_test_set

RESULTS = Path(__file__).parent / "results"


@dataclass
class Options:
    """What to measure."""

    run: Path
    """A run folder with a trained world model."""
    data: Path | None = None
    """Its episodes; those that it was trained on if not given."""
    quick: bool = False
    """Fewer repeats and windows, and neither DreamerV3 nor growth, threads and memory."""
    peer: bool = True
    """Measure sheeprl's DreamerV3 too (not if --quick); it is installed once, outside of the repository."""
    out: Path | None = None
    """Where the JSON goes; benchmarks/results/speed_ENV.json if not given."""


def main(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    python = sheeprl_python() if options.peer and not options.quick else None
    repeats = 5 if options.quick else 15
    model, environment = load_model(options.run), load_environment(options.run)
    recorded = json.loads((options.run / "training.json").read_text())["data"] if options.data is None else None
    data = options.data or options.run / recorded
    table = FrameTable.from_store(EpisodeStore.open(data))
    result: dict[str, Any] = {
        "format_version": 1,
        "environment": environment["id"],
        "parameters": sum(p.numel() for p in model.parameters()),
        **revision(),
        "machine": machine(),
        "quick": options.quick,
    }
    result |= truth(model, environment, table, windows=64 if options.quick else 256)

    before = matmul_rate(repeats)
    result["rates"] = rates.measure(model, table, repeats)
    result["matmul_gflops_per_cpu_second"] = statistics.mean((before, matmul_rate(repeats)))
    if python:
        result |= sheeprl(python)
    if not options.quick:
        few = repeats // 3
        result["floor"] = floor.measure(model, table, few)
        result["acting"] = rates.acting(model, table, environment, repeats)
        result["growth"] = growth.measure(model, table, few)
        result["load_before_threads"] = os.getloadavg()[0]
        result["threads"] = growth.threads(model, table, few)
        result["peak_memory_bytes"] = memory.measure(options.run, data)

    print(speed_report.everything(result))
    short = str(environment["id"]).replace("/", "-")
    path = options.out or RESULTS / f"speed_{short}{'_quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    print(f"\nwritten to {path}")


def truth(model: Any, environment: dict[str, Any], table: FrameTable, windows: int) -> dict[str, Any]:
    """Chunks a frame, and the share of frames that are exact after 15 dreamed steps."""
    fidelity = measure_fidelity(model, load_test_set(environment), table.frames, windows=windows)
    classes = fidelity["horizons"].get("15", {}).get("frames", {}).get("dream", {})
    exact = {name: classes.get(name, {}).get("exact") for name in ("all", "changed", "changed_seen")}
    return {"chunks_a_frame": fidelity["chunks"], "exact_at_15": exact}


def sheeprl_python() -> Path | None:
    """The interpreter that has sheeprl, or None if it cannot be had."""
    try:
        return sheeprl_venv.ensure()
    except sheeprl_venv.NoPeer as error:
        print(f"sheeprl cannot be installed, its earlier figures stand in ({error})", flush=True)
        return None


def sheeprl(python: Path) -> dict[str, Any]:
    """DreamerV3's figures, or nothing if it does not run."""
    try:
        return {"sheeprl": sheeprl_venv.measure(python)}
    except sheeprl_venv.NoPeer as error:
        print(f"sheeprl does not run, its earlier figures stand in ({error})", flush=True)
        return {}


if __name__ == "__main__":
    main(tyro.cli(Options))
