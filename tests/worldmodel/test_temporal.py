"""Temporal merging where it is known what moves: that is new, nothing else is, and dreams are as true as without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moving_dot import CONFIG, Ring
from test_training import QUICK, open_loop

from worldmodel.checkpoint import load_model, save_config
from worldmodel.config import TimeConfig
from worldmodel.model import WorldModel
from worldmodel.training import Trainer

MERGED = replace(CONFIG, time=TimeConfig(layers="m1", changes=1.0))


def test_a_trained_model_renews_what_moves_and_dreams_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_config(tmp_path, MERGED, {"id": None})
    Trainer(WorldModel(MERGED), Ring(), tmp_path, replace(QUICK, level=150)).train(updates=900, progress=False)
    model = load_model(tmp_path)
    batch = Ring(rows=16, seed=7).sample()
    with torch.no_grad():
        run = model(batch, torch.arange(16))
    patches = model.frame_stage.patches(batch.frames)[batch.index]
    moved = (patches[:, 1:] != patches[:, :-1]).any(-1)
    begins = batch.start[:, 1:]
    new = run.seen.changed[:, 1:]
    assert torch.equal(new[~begins], moved[~begins])
    assert new[begins].all()
    chunks = run.chunks.valid.sum(1).view(16, -1)[:, 1:]
    assert (chunks[~begins & ~moved.any(-1)] == 0).all()  # where nothing moves a frame is its own token, and no more
    assert (chunks[~begins & moved.any(-1)] == 1).all()
    dreamed = open_loop(model)
    assert dreamed.pictures > 0.95
    assert dreamed.rewards > 0.97
    assert dreamed.ends > 0.97


def test_only_two_questions_can_be_asked() -> None:
    with pytest.raises(ValueError, match="boundary must be one of 'change', 'learned'"):
        TimeConfig(layers="m1", boundary="random")
