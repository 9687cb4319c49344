"""sheeprl in an environment of its own, made once, so that its DreamerV3 is measured in the same minutes as ours.

    python benchmarks/sheeprl_venv.py            # make it and measure; `speed.py` does the same

It lies in the user's cache, never in the repository: sheeprl pins versions that are not ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHEEPRL = "sheeprl==0.8.4"
# What it asks for, with the headless build of OpenCV in place of the one that needs a display's libraries.
NEEDS = (
    "gymnasium>=1.1,<2",
    "hydra-core>=1.3.2,<1.4",
    "lightning>=2.6.1",
    "torchmetrics>=1.0",
    "opencv-python-headless>=4.10",
    "rich>=13.5",
    "python-dotenv>=1.0",
    "moviepy>=2",
    "tensorboard>=2.10",
    "numpy>=1.26,<3",
)
HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"  # pins torch: only of that version is a CPU build found
READY = ".installed"


class NoPeer(Exception):
    """Why sheeprl could not be installed or measured, in one line."""


def default_place() -> Path:
    """Where the environment lies if nothing else is said."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "worldmodel" / "sheeprl"


def ensure(place: Path | None = None) -> Path:
    """The interpreter of sheeprl's environment, which is made if it is not there.

    Raises:
        NoPeer: a step failed, for want of a network for instance; what was made is removed.
    """
    place = place or default_place()
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (place / READY).exists():
        return python
    print(f"installing {SHEEPRL} into {place}, once: about 3 minutes and 1.5 GB", flush=True)
    began = time.monotonic()
    if (place / "pyvenv.cfg").exists():  # one that was broken off
        shutil.rmtree(place)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    try:
        _run(sys.executable, "-m", "venv", place)
        _run(*pip, torch)
        _run(*pip, "--constraint", CONSTRAINTS, *NEEDS)
        _run(*pip, "--no-deps", SHEEPRL)
    except NoPeer:
        shutil.rmtree(place, ignore_errors=True)
        raise
    (place / READY).touch()
    print(f"installed in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return python


def measure(python: Path) -> dict[str, Any]:
    """What `sheeprl_dreamer.py` says, in about a minute.

    Raises:
        NoPeer: it does not run.
    """
    out = _run(python, HERE / "sheeprl_dreamer.py", "--json")
    return json.loads(out.splitlines()[-1])


def _run(*command: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise NoPeer(f"{command[0]}: {error}") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise NoPeer(f"{errors[-1].strip() if errors else 'no message'} (exit code {done.returncode})")
    return done.stdout


def main() -> None:
    """Measure and print."""
    try:
        print(json.dumps(measure(ensure()), indent=1))
    except NoPeer as error:
        sys.exit(f"sheeprl's DreamerV3 was not measured: {error}")


if __name__ == "__main__":
    main()
