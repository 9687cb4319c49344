"""The wheel holds the folders beside `worldmodel/` as its subpackages, and nothing at the top level but itself."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("envs", "agents", "kernels", "scripts")


def run(*words: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's content, built from a copy, because building litters."""
    folder = tmp_path_factory.mktemp("package")
    source, target = folder / "source", folder / "target"
    ignored = shutil.ignore_patterns(".*", "runs", "data", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel), cwd=folder)
    return target


def test_every_folder_is_in_the_wheel(installed, tmp_path):
    names = ["worldmodel", *(f"worldmodel.{folder}" for folder in FOLDERS), "worldmodel.scripts.cli"]
    code = "import importlib, json, sys; print(json.dumps([importlib.import_module(n).__file__ for n in sys.argv[1:]]))"
    files = json.loads(run(sys.executable, "-c", code, *names, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert all(Path(file).is_relative_to(installed) for file in files), files
    assert (installed / "worldmodel" / "py.typed").exists()


def test_every_module_is_in_the_wheel(installed):
    for folder in FOLDERS:
        here = {path.name for path in (ROOT / folder).glob("*.py")}
        there = installed / "worldmodel" / folder
        assert {path.name for path in there.glob("*.py")} == here
        assert not there.is_symlink()


def test_nothing_else_at_the_top_level(installed):
    packages = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} - {"bin", "__pycache__"}
    assert packages == {"worldmodel"}


def test_the_command_is_installed(installed, tmp_path):
    text = run(str(installed / "bin" / "worldmodel"), "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "evaluate" in text


def test_importing_is_instant_and_leaves_torch_alone(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(sys.executable, "-c", "import sys, worldmodel; assert 'torch' not in sys.modules", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, because the tests may share their machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
