"""What each change was worth: the same pieces of work at several commits, in turns, on one thread.

    python benchmarks/history.py --run runs/doorkey           # the commits of benchmarks/results/history.json again
    python benchmarks/history.py --run runs/doorkey --commits 59bf767 HEAD

Each commit is checked out beside the repository and measured in a process of its own by this version of the benchmark,
round after round, so that a slow minute hits all of them. The JSON keeps the commits' subjects.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from timing import ROOT, machine, revision

RESULT = ROOT / "benchmarks" / "results" / "history.json"
WORK = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
import rates
from timing import cpu_seconds, matmul_rate
from worldmodel.checkpoint import load_model
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.training import TrainConfig

run, data, repeats = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
model, table, config = load_model(run), FrameTable.from_store(EpisodeStore.open(data)), TrainConfig()
works = {
    "update": rates.training(model, table, config),
    "update, all distinct": rates.training(model, rates.all_distinct(table), config),
    "agent's update": rates.agent_update(model, table),
    "16 steps with pictures": rates.dreaming(model, rates.dream_state(model, table, 16), 1, True),
    "1,024 latent steps": rates.dreaming(model, rates.dream_state(model, table, 1024), 1, False),
    "observe 16": rates.observing(model, table, 16),
}
result = {name: 1e3 * cpu_seconds(work, repeats if "agent" not in name else 3) for name, work in works.items()}
print(json.dumps(result | {"matmul": matmul_rate(repeats)}))
"""


@dataclass
class Options:
    """What to measure."""

    run: Path
    """A run folder with a trained world model, and with its episodes where they were."""
    commits: list[str] = field(default_factory=list)
    """What `git` understands, the oldest first; those of the last result if not given."""
    rounds: int = 3
    """How often each commit has its turn."""
    repeats: int = 10
    """Repeats of each piece of work in a turn."""


def main(options: Options) -> None:
    """Measure and write."""
    known = json.loads(RESULT.read_text())["commits"] if RESULT.exists() else []
    commits = [git("rev-parse", "--short", name) for name in options.commits or [entry["commit"] for entry in known]]
    data = options.run / json.loads((options.run / "training.json").read_text())["data"]
    with tempfile.TemporaryDirectory() as folder:
        trees = {commit: Path(folder) / commit for commit in commits}
        for commit, tree in trees.items():
            git("worktree", "add", "--detach", str(tree), commit)
        try:
            turns = [
                (commit, measure(tree, options.run.resolve(), data.resolve(), options.repeats))
                for _ in range(options.rounds)
                for commit, tree in trees.items()
            ]
        finally:
            for tree in trees.values():
                git("worktree", "remove", "--force", str(tree))
    entries = []
    for commit in commits:
        mine = [figures for name, figures in turns if name == commit]
        medians = {key: statistics.median(figures[key] for figures in mine) for key in mine[0]}
        entries.append({"commit": commit, "subject": git("log", "-1", "--format=%s", commit), "ms": medians})
        print(commit, entries[-1]["subject"], {key: round(value, 1) for key, value in medians.items()}, flush=True)
    result: dict[str, Any] = {"format_version": 1, **revision(), "machine": machine(), "commits": entries}
    RESULT.write_text(json.dumps(result, indent=1))
    print(f"written to {RESULT}")


def measure(tree: Path, run: Path, data: Path, repeats: int) -> dict[str, float]:
    """CPU milliseconds of each piece of work by the package as it is in `tree`."""
    paths = os.pathsep.join((str(tree), str(ROOT / "benchmarks")))
    command = [sys.executable, "-c", WORK, str(run), str(data), str(repeats)]
    done = subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree.name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def git(*arguments: str) -> str:
    """What git prints."""
    return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(Options))
