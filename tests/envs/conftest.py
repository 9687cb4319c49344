"""Run folders to dream in, written once for all tests."""

from __future__ import annotations

import pytest
from tiny_run import write_run

MINIGRID = "MiniGrid-Empty-Random-6x6-v0"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dreams of MiniGrid that end after twenty steps or so."""
    return str(write_run(tmp_path_factory.mktemp("minigrid"), MINIGRID))


@pytest.fixture(scope="session")
def always(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dreams of MiniGrid whose every step is terminal."""
    return str(write_run(tmp_path_factory.mktemp("always"), MINIGRID, end_bias=50.0, steps=60))


@pytest.fixture(scope="session")
def compass(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dreams of what a MiniGrid agent sees and of which way it looks: dicts of two modalities."""
    return str(write_run(tmp_path_factory.mktemp("compass"), MINIGRID, wrappers=["minigrid_rgb_direction"]))


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dreams of a world in which an observation is one number of sixteen."""
    return str(write_run(tmp_path_factory.mktemp("lake"), "FrozenLake-v1"))


@pytest.fixture(scope="session")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dreams of vectors."""
    return str(write_run(tmp_path_factory.mktemp("cartpole"), "CartPole-v1"))
