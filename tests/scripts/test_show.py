"""`worldmodel show` leaves pictures where it was told to."""

from __future__ import annotations

import matplotlib.image

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


def test_a_core_gets_a_picture_of_its_loops(copy, capsys):
    data, run = copy / "data", copy / "looped"
    brief = ["--updates", "1", "--batch-size", "2", "--length", "8", "--pictures-first", "0", "--device", "cpu"]
    core = ["--set", "main.loop.layers=t1", "--set", "main.loop.loops=2"]
    assert main(["train", "--data", str(data), "--out", str(run), *brief, *core]) == 0
    assert main(["show", "--run", str(run), "--device", "cpu"]) == 0
    assert "and loops.png" in capsys.readouterr().out
    picture = matplotlib.image.imread(run / "pictures" / "loops.png")
    assert picture.shape[1] > 1000 and picture.std() > 0.05


def test_what_cannot_be_shown_is_one_sentence(tmp_path, fails):
    fails(["show", "--run", tmp_path / "nothing"], "no run folder", str(tmp_path / "nothing"))
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["collect", "--env", "CartPole-v1", "--steps", "60", "--out", str(data)]) == 0
    brief = ["--updates", "1", "--batch-size", "2", "--length", "8", "--pictures-first", "0", "--device", "cpu"]
    assert main(["train", "--data", str(data), "--out", str(run), *brief]) == 0
    fails(["show", "--run", run, "--device", "cpu"], "no pictures of these observations")
