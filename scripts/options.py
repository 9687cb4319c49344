"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from worldmodel.errors import UserError

# Nothing heavy is imported at the top of these files: `worldmodel --help` has to answer at once.

# Options that may be left out: the sentence below each says what happens then.
MaybeInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
MaybeFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
MaybeStr = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
MaybeNames = Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[STR ...]", help_behavior_hint="")]


@dataclass(kw_only=True)
class Common:
    """Options of every command."""

    seed: int = 0
    """Everything left to chance follows from it."""
    device: str = "auto"
    """Where networks run: cpu, cuda, cuda:1, or auto for a GPU if there is one."""


def choose_device(name: str) -> str:
    """The device called `name`, tried out.

    Raises:
        UserError: there is no such device here, or it does not compute.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).sum().item()  # "meta" knows shapes alone, and says so when asked for a number
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]  # some go on for a page
        raise UserError(f"--device {name} cannot be used here ({reason}): try --device cpu") from error
    return name


def require_positive(args: Common, *names: str) -> None:
    """Refuse options that count something and are not above zero; None is no number and passes.

    Raises:
        UserError: naming the option.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value}")


def require_seed(args: Common) -> None:
    """Refuse a seed that not everything here can be drawn from.

    Raises:
        UserError: saying which can.
    """
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed must be between 0 and {2**31 - 1}, not {args.seed}")


def begun_seed(args: Common, record: dict[str, Any], folder: Path) -> int:
    """The seed that the record of a run names, if there is one: it holds without being given again.

    Raises:
        UserError: another one is given.
    """
    seed = int(record.get("seed", args.seed))
    if args.seed not in (0, seed):
        raise UserError(f"{folder} was begun with --seed {seed}, not {args.seed}: leave it out to resume")
    return seed


def given(args: Common, cls: type) -> dict[str, Any]:
    """Those options (not None) that have the name of a field of the dataclass `cls`."""
    return {f.name: v for f in fields(cls) if (v := getattr(args, f.name, None)) is not None}


def require_out_folder(option: str, path: Path) -> None:
    """Refuse a file where a folder is to be written, or where one of the folders around it should be.

    Raises:
        UserError: naming option and file.
    """
    there = next((part for part in (path, *path.parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise UserError(f"{option} {path} cannot be a folder, because {there} is a file: give another one")


def require_out_file(option: str, path: Path) -> None:
    """Refuse a folder where a file is to be written, and a file in a folder that is not there.

    Raises:
        UserError: naming option and folder.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the name of a file, such as {path / 'report.json'}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")


def require_run(run: Path) -> None:
    """Refuse a folder that is not there before anything slow begins.

    Raises:
        UserError: naming it.
    """
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}: make one with `worldmodel train --data DIR --out {run}`")
