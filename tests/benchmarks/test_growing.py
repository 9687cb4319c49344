"""The benchmark of growing, in seconds: all three models get their points, and a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import growing
import pytest

FIELDS = {"update", "cpu_seconds", "squared_error", "kl_nats", "bits", "seen_exact", "dreamed_exact", "dreamed_tiles"}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> growing.Options:
    make = growing.load_test_set
    monkeypatch.setattr(growing, "load_test_set", lambda environment, folder, _: make(environment, folder, 2, False))
    monkeypatch.setattr(growing, "RESULTS", tmp_path)
    monkeypatch.setattr(growing, "IMAGES", tmp_path)
    return growing.Options(seconds=0.4, points=2, steps=300, pictures=2, folder=tmp_path / "runs")


def test_all_three_are_trained_measured_and_gone_on_with(options: growing.Options) -> None:
    growing.main(options)
    result = json.loads((growing.RESULTS / "growing.json").read_text())
    assert result["models"].keys() == {"small", "grown", "scratch"}
    for name, points in result["models"].items():
        assert all(point.keys() == FIELDS for point in points)
        assert points[-1]["cpu_seconds"] >= (0.8 if name == "scratch" else 0.4) - 0.1
        assert points[0]["update"] == 0 < points[-1]["update"]
    assert (growing.IMAGES / "growing.png").stat().st_size > 10_000
    # What a model has just grown from paints as sharply as before, but for what the finer picture shows.
    assert result["models"]["grown"][0]["squared_error"] < 2 * result["models"]["small"][-1]["squared_error"] + 0.01

    grown, scratch = (growing.load_model(options.place / name).config for name in ("grown", "scratch"))
    assert grown == scratch

    growing.main(options)  # nothing is left to do
    assert json.loads((growing.RESULTS / "growing.json").read_text())["models"] == result["models"]
    options.seconds = 0.8
    options.points = 4
    growing.train("small", options)
    points = json.loads((options.place / "small" / "points.json").read_text())
    assert points[: len(result["models"]["small"])] == result["models"]["small"]
    assert points[-1]["cpu_seconds"] > 0.7


def test_pictures_without_tiles_are_measured_in_decibels(
    options: growing.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = ("render", "resize64"), ("render", "resize128")
    car = growing.Scene("growing_car", "MountainCar-v0", small, large, 100, 2, 0.4)
    monkeypatch.setitem(growing.SCENES, "pong", car)
    monkeypatch.setattr(growing, "PAINTED", 8)
    options.steps = None
    options.env, options.models, options.points = "pong", ("small", "grown"), 1
    growing.main(options)
    models = json.loads((growing.RESULTS / "growing_car.json").read_text())["models"]
    assert all(point["seen_psnr"] > 0 and point["dreamed_psnr"] > 0 for points in models.values() for point in points)
    # What has just grown paints as the small one does.
    assert models["grown"][0]["seen_psnr"] == pytest.approx(models["small"][-1]["seen_psnr"], abs=0.5)
    assert growing.load_model(options.place / "grown").config.observation.shape == (128, 128, 3)
    assert growing.load_model(options.place / "small").config.observation.shape == (64, 64, 3)
    assert (growing.IMAGES / "growing_car.png").stat().st_size > 10_000


def test_a_run_whose_files_disagree_is_begun_again(options: growing.Options) -> None:
    growing.train("small", options)
    path = options.place / "small" / "points.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    growing.train("small", options)
    seconds = [point["cpu_seconds"] for point in json.loads(path.read_text())]
    assert seconds[0] == 0 and len(seconds) == 3
