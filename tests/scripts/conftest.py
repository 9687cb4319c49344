"""A small trained run, made once by the commands themselves, and how a command is expected to fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from worldmodel.scripts.cli import main

ENV = "MiniGrid-Empty-5x5-v0"
SMALL = ("--batch-size", "2", "--length", "8", "--pictures-first", "1", "--device", "cpu")
BRIEF = ("--starts", "8", "--dreams", "8", "--horizon", "3", "--device", "cpu")


@pytest.fixture(scope="session", autouse=True)
def cache_in_a_temporary_folder(tmp_path_factory):
    """Test sets are cached in the user's home otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with `data` and `run`, not to be written into."""
    folder = tmp_path_factory.mktemp("made")
    data, run = str(folder / "data"), str(folder / "run")
    assert main(["collect", "--env", ENV, "--steps", "300", "--out", data]) == 0
    assert main(["train", "--data", data, "--out", run, "--updates", "2", *SMALL]) == 0
    assert main(["dream", "--run", run, "--updates", "2", *BRIEF]) == 0
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of `made` to do damage in."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def fails(capsys):
    """Call it with a command line and words: the command must end with exit code 2 and one sentence that has them."""

    def check(argv: list[object], *words: str) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("worldmodel: ")]
        assert len(lines) == 1, lines
        for word in words:
            assert word in lines[0]
        return lines[0]

    return check
