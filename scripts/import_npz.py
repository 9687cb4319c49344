"""`worldmodel import`: your own trajectories, one `.npz` an episode, into an episode store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worldmodel.errors import UserError
from worldmodel.scripts.options import Common, require_out_folder


@dataclass(kw_only=True)
class ImportNpz(Common):
    """Turn your own trajectories into an episode store: one .npz file an episode.

    Each file holds `frames` (T+1, H, W, C) uint8 or (T+1, D) float, `actions` (T,) or (T, n) whole numbers or (T, n)
    floats, `rewards` (T,), and the flags `terminated` and, if need be, `truncated`, one bool or one a step. Frame t+1
    is what action t led to.
    """

    npz: tuple[Path, ...]
    """The files, in order."""
    out: Path
    """Folder of the new store."""


def run(args: ImportNpz) -> None:
    """Import, and say what was imported."""
    require_out_folder("--out", args.out)
    if (args.out / "index.json").exists():  # before all files are read
        raise UserError(f"{args.out} holds a store already: give another --out")
    from worldmodel.envs.import_npz import import_npz

    store = import_npz(args.npz, args.out, progress=True)
    print(
        f"{args.out} holds {len(store)} episodes, {store.steps} steps.\n"
        f"Next: worldmodel train --data {args.out} --out runs/NAME"
    )


def go_on(args: ImportNpz) -> str:
    """What to do after Ctrl-C."""
    return f"{args.out} holds the files read so far: delete it and import again."
