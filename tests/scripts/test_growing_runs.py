"""`worldmodel train --grow`: from a trained run on 8 pixels a cell to one on 16, stopped, gone on with, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from worldmodel.checkpoint import load_config, load_model
from worldmodel.scripts.cli import main

FEW = ("--batch-size", "2", "--length", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def large(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of the environment of `made`, twice as high and wide."""
    data = tmp_path_factory.mktemp("large") / "data"
    argv = ["collect", "--env", "MiniGrid-Empty-5x5-v0", "--steps", "100", "--out", str(data)]
    assert main([*argv, "--wrappers", "minigrid_rgb16"]) == 0
    return data


def same(one: Path, other: Path) -> bool:
    a, b = (safetensors.torch.load_file(run / "world_model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_grows_and_is_gone_on_with(made, large, tmp_path):
    grow = ["train", "--data", str(large), "--grow", str(made / "run"), *FEW]
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert main([*grow, "--out", str(run), "--updates", "1"]) == 0
    record = json.loads((run / "training.json").read_text())
    assert record["options"]["pictures_first"] == 200
    assert (run / record["grow"]).resolve() == (made / "run").resolve()
    assert load_config(run).observation.shape == (112, 112, 3)
    averaged = load_model(run).frame_stage.embed.weight  # a first update is small: a thousandth of the rate
    assert torch.allclose(averaged, load_model(made / "run").frame_stage.embed.weight, atol=1e-3)

    assert main([*grow, "--out", str(run), "--resume", "--updates", "3"]) == 0
    assert main(["train", "--data", str(large), "--out", str(run), "--resume", "--updates", "4", *FEW]) == 0
    assert main([*grow, "--out", str(unbroken), "--updates", "4"]) == 0
    assert same(run, unbroken)
    assert main(["dream", "--run", str(run), "--updates", "1", "--starts", "4", "--horizon", "2", *FEW[-2:]]) == 0


def test_it_is_trained_as_the_run_that_it_grows_from_was(made, large, tmp_path):
    small, run = tmp_path / "small", tmp_path / "run"
    settings = ["--set", "training.weight_decay=0.01", "--set", "training.losses.representation=0.05"]
    settings += ["--set", "frame.boundary=change", "--set", "frame.chunks_first=8", "--set", "training.anneal=5"]
    argv = ["train", "--data", str(made / "data"), "--out", str(small), "--updates", "1", "--learning-rate", "1e-4"]
    assert main([*argv, *settings, "--pictures-first", "7", *FEW]) == 0
    argv = ["train", "--data", str(large), "--out", str(run), "--updates", "1", "--grow", str(small)]
    assert main([*argv, "--set", "training.weight_decay=0.02", "--device", "cpu"]) == 0
    options = json.loads((run / "training.json").read_text())["options"]
    assert options == {
        "pictures_first": 200,
        "batch_size": 2,
        "length": 8,
        "learning_rate": 1e-4,
        "weight_decay": "0.02",
        "losses.representation": "0.05",
    }
    assert load_config(run).frame.chunks_first == 0


def test_killed_before_its_first_checkpoint_it_grows_again(made, large, tmp_path):
    grow = ["train", "--data", str(large), "--grow", str(made / "run"), *FEW, "--updates", "2"]
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    for out in (run, unbroken):
        assert main([*grow, "--out", str(out)]) == 0
    for name in ("trainer.pt", "world_model.safetensors"):
        (run / name).unlink()
    assert main(["train", "--data", str(large), "--out", str(run), "--resume", "--updates", "2", *FEW]) == 0
    assert same(run, unbroken)


def test_runs_that_cannot_grow_so(made, large, copy, tmp_path, fails):
    out, run = tmp_path / "out", copy / "run"
    grow = ["train", "--out", out, "--updates", 1, *FEW, "--grow"]
    fails([*grow, run, "--data", made / "data"], "grows to (112, 112, 3)", "have (56, 56, 3)")
    fails([*grow, tmp_path / "nothing", "--data", large], "is not a run folder")
    fails([*grow, run, "--data", large, "--boundary", "learned"], "keeps its boundary")
    other = tmp_path / "other"
    shutil.copytree(made / "run", other)
    argv = ["train", "--data", made / "data", "--out", other, "--resume", "--updates", 3, "--device", "cpu"]
    fails([*argv, "--grow", run], "was not begun with --grow")

    content = json.loads((run / "config.json").read_text())
    content["model"]["action"]["sizes"] = [5]
    (run / "config.json").write_text(json.dumps(content))
    fails([*grow, run, "--data", large], "has learned the actions", "with the same actions")
    content["model"]["observation"] |= {"kind": "vector", "shape": [5], "dtype": "float32"}
    (run / "config.json").write_text(json.dumps(content))
    fails([*grow, run, "--data", large], "cannot grow", "only models of images")
    assert not out.exists()
