"""The pictures of docs/hnet.md: drawn of the models that are there, with a sentence for those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hnet_pictures
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from part_pictures import draw_masks, silenced
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
    """A plain model after one update, one with a budget after two, and one that hides patches after three."""
    folder = tmp_path_factory.mktemp("runs")
    spaces = [space_from_json(ENVIRONMENT[name]) for name in ("observation_space", "action_space")]
    for updates, name in enumerate(("plain", "budget", "mask"), 1):
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
    names = ("orders", "boundaries", "tokens", "paddings", "parts", "masks", "loops_budget")
    assert drawn.keys() == {f"hnet_{name}.png" for name in names}
    assert all(picture.shape[1] > 1000 and picture.std() > 0.05 for picture in drawn.values())
    said = capsys.readouterr().out
    for name in ("learned", "change", "time", "certainty", "extra", "path"):
        assert f"{name} is left out" in said
    assert "plain is" not in said and "budget is" not in said
    with pytest.raises(SystemExit, match="no trained run"):
        hnet_pictures.main(replace(options, seed=4))


def test_a_model_is_named_with_its_updates(runs: Path) -> None:
    assert [hnet_pictures.trained(runs / f"{name}_seed3").updates for name in ("plain", "budget")] == [1, 2]


def test_a_silenced_part_adds_nothing_and_the_model_keeps_it(runs: Path, test_set: TestSet) -> None:
    model, action = hnet_pictures.trained(runs / "plain_seed3").model, "*.widen.action.weight"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quiet = silenced(model, (action,))
    batch = test_set.table.gather(np.arange(6)[None])
    other = replace(batch, action=(batch.action + 1) % 7)
    with torch.no_grad():
        said, said_of_others, loud, loud_of_others = (
            m(b, torch.tensor([0])).y for m in (quiet, model) for b in (batch, other)
        )
    assert torch.equal(said, said_of_others) and not torch.equal(loud, loud_of_others)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"called 'main\.rest'"):
        silenced(model, ("main.rest",))


def test_as_many_patches_are_drawn_hidden_as_training_hides(
    runs: Path, test_set: TestSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, picture, **_: shown.append(picture))
    model = hnet_pictures.trained(runs / "mask_seed3").model
    frames = test_set.table.frames[:2]
    draw_masks(model, frames, tmp_path / "masks.png")
    for frame, seen, drawn in zip(frames, shown[:2], shown[2:4]):
        assert np.array_equal(frame, seen)
        grey = (drawn.reshape(7, 8, 7, 8, 3) == 127).all(axis=(1, 3, 4))
        assert grey.sum() == round(0.25 * 49)
