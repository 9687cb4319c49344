"""Does each part earn its place? Variants of the `tiny` model, trained alike and measured alike.

    python benchmarks/ablation.py --list                  # what there is, and what is on record
    python benchmarks/ablation.py --jobs 2                # everything on DoorKey-5x5, two runs side by side
    python benchmarks/ablation.py --env pong              # boundary sources on an Atari game
    python benchmarks/ablation.py --only 'loops_*' --only plain --seeds 0

Every run trains until both U updates and T CPU-minutes of training are behind it and is measured at each of the two, so
one run says how variants compare at equal updates and at equal time. A run is one JSON in
benchmarks/results/ablation/ENV; what is on record with the same plan is passed over, and a run that was killed goes on
where it stopped (runs/ablation/ENV). Then `python benchmarks/tables.py` writes the tables.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from ablation_run import Plan, open_data
from variants import EDITION, ENVIRONMENTS, VARIANTS, variants_of


@dataclass
class Options:
    """What to run."""

    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Variants whose names match one of these patterns; all if not given."""
    env: str = "doorkey"
    """Where: doorkey or pong."""
    seeds: tuple[int, ...] | None = None
    """Seeds of every variant; 0, 1, 2 or 0, as its groups ask for, if not given."""
    updates: int = 5000
    """Compared at equal updates: after so many, those of the pictures among them."""
    cpu_minutes: float = 5.0
    """Compared at equal time: after so many CPU-minutes of training."""
    windows: int = 1000
    """Places at which dreamed frames are compared, at each number of steps."""
    jobs: int = 1
    """Runs side by side, with one thread each."""
    list: bool = False
    """Only say what there is."""


def plans(options: Options) -> list[Plan]:
    """The runs that are asked for, seed by seed, so that a table fills evenly."""
    if options.env not in ENVIRONMENTS:
        raise SystemExit(f"there is no environment {options.env!r}; known are {', '.join(ENVIRONMENTS)}")
    counts = variants_of(ENVIRONMENTS[options.env])
    chosen = [name for name in counts if not options.only or any(fnmatch.fnmatch(name, p) for p in options.only)]
    if not chosen:
        raise SystemExit(f"no variant is called {' or '.join(options.only)}; known are {', '.join(counts)}")
    wanted = [(seed, name) for name in chosen for seed in options.seeds or range(counts[name])]
    return [
        Plan(
            environment=options.env,
            variant=name,
            settings=VARIANTS[name],
            seed=seed,
            updates=options.updates,
            cpu_minutes=options.cpu_minutes,
            windows=options.windows,
            edition=EDITION,
        )
        for seed, name in sorted(wanted, key=lambda pair: pair[0])
    ]


def standing(plan: Plan) -> str:
    """What became of a plan so far."""
    found = plan.on_record()
    if found == plan:
        return "on record"
    if found is not None:
        other = [name for name, value in vars(plan).items() if getattr(found, name) != value]
        return f"on record with another {', '.join(other)}: runs again"
    return "begun" if plan.folder.exists() else "to be run"


def main(options: Options) -> int:
    """Run what is not on record; how many runs failed."""
    asked = plans(options)
    for plan in asked:
        print(f"{plan.name}: {standing(plan)}   {' '.join(plan.settings)}", flush=True)
    left = [plan for plan in asked if plan.on_record() != plan]
    if options.list or not left:
        return 0
    open_data(ENVIRONMENTS[options.env])  # once, before several ask for it
    failed = side_by_side([command(plan) for plan in left], [plan.folder for plan in left], options.jobs)
    for plan, code in zip(left, failed):
        if code:
            print(f"{plan.name} failed with exit code {code}, see {plan.folder}.log")
    return sum(map(bool, failed))


def command(plan: Plan) -> list[str]:
    """What runs one plan in a process of its own."""
    return [sys.executable, str(Path(__file__).with_name("ablation_run.py")), json.dumps(dataclasses.asdict(plan))]


def side_by_side(commands: Sequence[list[str]], folders: Sequence[Path], jobs: int) -> list[int]:
    """Run commands, `jobs` at a time with one thread each; their exit codes.

    What they print goes into FOLDER.log. Ctrl-C ends them too.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    codes, running, waiting = [0] * len(commands), dict[int, subprocess.Popen[bytes]](), list(range(len(commands)))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                i = waiting.pop(0)
                log = folders[i].with_name(f"{folders[i].name}.log")
                log.parent.mkdir(parents=True, exist_ok=True)
                with open(log, "ab") as file:
                    running[i] = subprocess.Popen(commands[i], stdout=file, stderr=file, env=environment)
                print(f"{folders[i].name} runs", flush=True)
            for i in [i for i, process in running.items() if process.poll() is not None]:
                codes[i] = running.pop(i).returncode
                print(f"{folders[i].name} {'failed' if codes[i] else 'is done'}", flush=True)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return codes


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)) > 0)
