"""What a model expects of each win that it was trained on, had it come earlier or later, as docs/images/hnet_clock.png.

    worldmodel train --data data/doorkey --out runs/doorkey_stride --updates 12000
    worldmodel train --data data/doorkey --out runs/doorkey_stride_plain --updates 12000 --set outcome.clock=false
    python benchmarks/clock.py runs/doorkey_stride_plain runs/doorkey_stride

Each win is shown to the model from eight frames before its last one on, as if the episode had lasted any other time.
Who knows the time has one curve for all wins, who does not has a level line for each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from timing import ROOT

from worldmodel.checkpoint import load_model
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.model import WorldModel
from worldmodel.scripts.train import read_record

CONTEXT = 8  # frames before the last one
EARLY = 10  # about when a good player wins DoorKey-5x5, and random play never does


@dataclass
class Options:
    """What to compare, and where the picture and the figures go."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, all trained on the same episodes."""
    picture: Path = ROOT / "docs" / "images" / "hnet_clock.png"
    """The picture."""
    figures: Path = ROOT / "benchmarks" / "results" / "clock.json"
    """The figures, as JSON."""


def main(options: Options) -> None:
    """Draw and write."""
    figure = Figure(figsize=(4.4 * len(options.runs), 3.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(options.runs), sharey=True, squeeze=False)[0]
    results = {}
    for axes, run in zip(panels, options.runs):
        model = load_model(run)
        table = FrameTable.from_store(EpisodeStore.open(run / read_record(run)["data"]))
        wins = np.flatnonzero(table.terminated & (table.reward > 0))
        if not len(wins):
            raise SystemExit(f"no episode that {run} was trained on was won: collect more")
        came, paid = table.elapsed(wins), table.reward[wins]
        times = np.arange(1, int(came.max()) + 20)  # column t - 1 is time t
        told = expected(model, table, wins, times)
        axes.plot(times, told.T, color="#0072b2", linewidth=0.8, alpha=0.8)
        axes.plot(came, paid, "o", color="#d55e00", markersize=4)
        clock = model.config.outcome.clock
        axes.set_title(f"{'with' if clock else 'without'} a clock", fontsize=10)
        axes.set_xlabel("actions since the episode began")
        early, here = told[:, EARLY - 1], told[np.arange(len(wins)), came - 1]
        results[run.name] = {
            "clock": clock,
            "wins": len(wins),
            "error_when_they_came": float(np.abs(here - paid).mean()),
            f"mean_at_{EARLY}": float(early.mean()),
            f"deviation_at_{EARLY}": float(early.std()),
        }
        print(run.name, json.dumps(results[run.name]))
    panels[0].set_ylabel("reward of a win")
    panels[0].set_ylim(0, 1.1)
    panels[-1].plot([], [], "o", color="#d55e00", markersize=4, label="paid, in training")
    panels[-1].plot([], [], color="#0072b2", label="expected of each of them")
    panels[-1].legend(fontsize=8, loc="lower left")
    figure.savefig(options.picture)
    options.figures.write_text(json.dumps(results, indent=1) + "\n")


@torch.no_grad()
def expected(model: WorldModel, table: FrameTable, wins: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The reward that the model expects of each win, had it come at each of the times: `(wins, times)`."""
    told = np.zeros((len(wins), len(times)), np.float32)
    for row, win in enumerate(wins):
        begin = max(win - CONTEXT, table.begin[table.episode_of(win)])
        rows = len(times)
        state = model.initial_state(rows, elapsed=torch.from_numpy(times - (win - begin)))
        for at in range(begin, win + 1):
            action = torch.from_numpy(np.repeat(table.action[at][None], rows, axis=0))
            frame = torch.from_numpy(np.repeat(table.frames[table.index[at]][None], rows, axis=0))
            state, out = model.observe(state, action, frame, torch.zeros(rows, dtype=torch.bool))
        told[row] = out.reward_mean.numpy()
    return told


if __name__ == "__main__":
    main(tyro.cli(Options))
