"""Peak memory of each piece of work in a process of its own, beside what the import alone takes.

python benchmarks/memory.py --run runs/doorkey --data data/doorkey --work latent      # one process
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rates import dream_state, dreaming, training

from worldmodel.checkpoint import load_model
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.state import DreamState
from worldmodel.training import TrainConfig

Name = Literal["import", "load", "train", "dream", "latent"]
WORKS: dict[Name, str] = {
    "import": "import alone",
    "load": "model and episodes loaded",
    "train": "training",
    "dream": "16 dreams with pixels",
    "latent": "1,024 latent dreams",
}


@dataclass
class Options:
    """What one process does."""

    run: Path
    """A run folder with a trained world model."""
    data: Path
    """Its episodes."""
    work: Name
    """The work whose peak is taken."""


def peak_bytes() -> int:
    """The most memory that this process ever held.

    Linux hands `ru_maxrss` of the parent on to a child, so there its own high-water mark is read.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # not everywhere there is

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def measure(run: Path, data: Path) -> dict[str, int]:
    """Peak bytes of each piece of work."""
    peaks = {}
    for name, label in WORKS.items():
        command = [sys.executable, __file__, "--run", str(run), "--data", str(data), "--work", name]
        peaks[label] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return peaks


def main(options: Options) -> None:
    """Do the work and print this process's peak."""
    torch.set_num_threads(1)
    if options.work != "import":
        model, table = load_model(options.run), FrameTable.from_store(EpisodeStore.open(options.data))
        if options.work == "train":
            update = training(model, table, TrainConfig())
            for _ in range(3):
                update()
        elif options.work == "dream":
            dreaming(model, dream_state(model, table, 16), 15, pixels=True)()
        elif options.work == "latent":
            # Seeing 1,024 frames at once would take more than dreaming them.
            state = DreamState.cat([dream_state(model, table, 64)] * 16)
            dreaming(model, state, 5, pixels=False)()
    print(peak_bytes())


if __name__ == "__main__":
    main(tyro.cli(Options))
