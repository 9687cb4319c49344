"""The pictures of docs/hnet.md: drawn of the models that are there, with a sentence for those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hnet_pictures
import matplotlib.image
import pytest
import torch
from variants import VARIANTS

from worldmodel.checkpoint import save_config
from worldmodel.envs.make import spec_of
from worldmodel.envs.segments import Segments
from worldmodel.envs.spaces import action_spec, observation_spec, space_from_json
from worldmodel.envs.test_set import TestSet, load_test_set
from worldmodel.model import WorldModel
from worldmodel.overrides import override
from worldmodel.presets import preset
from worldmodel.training import TrainConfig, Trainer

ENVIRONMENT = spec_of("MiniGrid-DoorKey-5x5-v0", max_steps=40)
BRIEF = TrainConfig(batch_size=2, length=8, pictures_first=0)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> TestSet:
    return load_test_set(ENVIRONMENT, tmp_path_factory.mktemp("set") / "set", episodes=4, progress=False)


@pytest.fixture(scope="module")
def runs(test_set: TestSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model after one update, and one with a budget after two."""
    folder = tmp_path_factory.mktemp("runs")
    spaces = [space_from_json(ENVIRONMENT[name]) for name in ("observation_space", "action_space")]
    for updates, name in enumerate(("plain", "budget"), 1):
        torch.manual_seed(0)
        config = override(preset("tiny", observation_spec(spaces[0]), action_spec(spaces[1])), *VARIANTS[name])
        batches = Segments.for_training(test_set.table, config, BRIEF)
        trainer = Trainer(WorldModel(config), batches, folder / f"{name}_seed3", BRIEF)
        for _ in range(updates):
            trainer.step(batches.sample())
        save_config(trainer.run, config, ENVIRONMENT)
        trainer.save()
    return folder


def test_what_is_trained_is_drawn_and_what_is_not_is_said(
    runs: Path, test_set: TestSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hnet_pictures, "load_test_set", lambda environment: test_set)
    options = hnet_pictures.Options(runs=runs, seed=3, out=tmp_path / "new")
    hnet_pictures.main(options)
    drawn = {path.name: matplotlib.image.imread(path) for path in options.out.iterdir()}
    names = ("orders", "boundaries", "tokens", "loops_budget")
    assert drawn.keys() == {f"hnet_{name}.png" for name in names}
    assert all(picture.shape[1] > 1000 and picture.std() > 0.05 for picture in drawn.values())
    said = capsys.readouterr().out
    for name in ("learned", "change", "time", "certainty"):
        assert f"{name} is left out" in said
    assert "plain is" not in said and "budget is" not in said
    with pytest.raises(SystemExit, match="no trained run"):
        hnet_pictures.main(replace(options, seed=4))


def test_a_model_is_named_with_its_updates(runs: Path) -> None:
    assert [hnet_pictures.trained(runs / f"{name}_seed3").updates for name in ("plain", "budget")] == [1, 2]
