"""`worldmodel show` leaves pictures where it was told to."""

from __future__ import annotations

import gymnasium
import matplotlib.image
import pytest
import torch

import worldmodel
from worldmodel.scripts.cli import main


def test_pictures_are_made(copy, tmp_path, capsys):
    argv = ["show", "--run", str(copy / "run"), "--device", "cpu"]
    assert main(argv) == 0
    assert str(copy / "run" / "pictures") in capsys.readouterr().out
    assert main([*argv, "--out", str(tmp_path / "new" / "here")]) == 0
    for folder in (copy / "run" / "pictures", tmp_path / "new" / "here"):
        assert sorted(path.name for path in folder.iterdir()) == ["boundaries.png", "tokens.png"]
    for name in ("boundaries.png", "tokens.png"):
        one, two = (matplotlib.image.imread(f / name) for f in (copy / "run" / "pictures", tmp_path / "new" / "here"))
        assert one.shape[1] > 1000 and (one == two).all()


@pytest.fixture(scope="module")
def looped(made, tmp_path_factory):
    """A run with a core of two loops."""
    run = tmp_path_factory.mktemp("looped") / "run"
    brief = ["--updates", "1", "--batch-size", "2", "--length", "8", "--pictures-first", "0", "--device", "cpu"]
    core = ["--set", "main.loop.layers=t1", "--set", "main.loop.loops=2"]
    assert main(["train", "--data", str(made / "data"), "--out", str(run), *brief, *core]) == 0
    return run


def test_a_core_gets_a_picture_of_its_loops(looped, capsys):
    assert main(["show", "--run", str(looped), "--device", "cpu"]) == 0
    assert "and loops.png" in capsys.readouterr().out
    picture = matplotlib.image.imread(looped / "pictures" / "loops.png")
    assert picture.shape[1] > 1000 and picture.std() > 0.05


def test_loops_are_chosen_when_it_runs(looped, tmp_path, fails, made):
    """Everywhere: shown, measured, dreamed as an environment, loaded; and each for itself."""
    assert main(["show", "--run", str(looped), "--device", "cpu", "--loops", "9", "--out", str(tmp_path)]) == 0
    assert main(["show", "--run", str(looped), "--device", "cpu"]) == 0
    two, nine = (matplotlib.image.imread(folder / "loops.png") for folder in (looped / "pictures", tmp_path))
    assert two.shape != nine.shape or (two != nine).any()

    features = []
    for loops in (None, 2, 9, None):
        env = gymnasium.make("worldmodel/Dream-v0", checkpoint=looped, loops=loops)
        env.reset(seed=0)
        env.step(0)
        features.append(env.unwrapped.get_state().state.feature)
        assert worldmodel.load(looped, loops=loops).core.loops == loops
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[3])
    assert not torch.allclose(features[0], features[2], atol=1e-4)

    fails(["evaluate", "--run", looped, "--loops", "99", "--episodes", "1"], "cannot loop 99 times", "max_loops", "16")
    fails(["show", "--run", made / "run", "--loops", "3"], "cannot loop 3 times", "no looped core")


def test_what_cannot_be_shown_is_one_sentence(tmp_path, fails):
    fails(["show", "--run", tmp_path / "nothing"], "no run folder", str(tmp_path / "nothing"))
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["collect", "--env", "CartPole-v1", "--steps", "60", "--out", str(data)]) == 0
    brief = ["--updates", "1", "--batch-size", "2", "--length", "8", "--pictures-first", "0", "--device", "cpu"]
    assert main(["train", "--data", str(data), "--out", str(run), *brief]) == 0
    fails(["show", "--run", run, "--device", "cpu"], "no pictures of these observations")
