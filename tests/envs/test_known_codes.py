"""Once encoder and slots stand still a frame is coded once; nothing else changes by it."""

from dataclasses import replace

import last_action_env
import numpy as np
import pytest
import torch

from worldmodel.checkpoint import save_config
from worldmodel.config import MambaConfig, TimeConfig
from worldmodel.envs import segments
from worldmodel.envs.known_codes import BLOCK
from worldmodel.envs.make import make_vector_env
from worldmodel.envs.random_policy import RandomPolicy
from worldmodel.envs.rollout import episode_seeds, rollout
from worldmodel.envs.segments import FrameTable, Segments
from worldmodel.envs.spaces import action_spec, observation_spec
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.seeing import see_rows
from worldmodel.training import TrainConfig, Trainer

TRAINING = TrainConfig(batch_size=3, length=8, warmup=2, pictures_first=4, average=0.9, loose=3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def table():
    venv = make_vector_env(last_action_env.ID, 3)
    policy = RandomPolicy(venv.single_action_space, episode_seeds(0))
    played = list(rollout(venv, policy, seeds=episode_seeds(0), episodes=30))
    return FrameTable.from_episodes(played, venv.single_action_space)


def config(**frame):
    venv = make_vector_env(last_action_env.ID, 1)
    whole = preset("tiny", observation_spec(venv.single_observation_space), action_spec(venv.single_action_space))
    return replace(
        whole,
        frame=replace(whole.frame, width=16, heads=2, **frame),
        causal=(replace(whole.causal[0], width=24),),
        main=replace(whole.main, width=32, heads=2),
        mamba=MambaConfig(d_state=4, headdim=8, chunk_size=8),
    )


def settled(**frame):
    torch.manual_seed(0)
    model = WorldModel(config(**frame)).train()
    model.frame_stage.settle()
    return model


def test_known_codes_are_what_the_frame_stage_says(table):
    model = settled()
    one, other = (Segments.for_training(table, model.config, TRAINING, seed=1) for _ in range(2))
    one.settle(model.frame_stage)
    for _ in range(5):
        known, plain = one.sample(), other.sample()
        assert plain.posterior is None and len(known.posterior) == len(known.frames) - TRAINING.loose
        action = torch.zeros(*known.index.shape, 1)
        ours, theirs = (see_rows(model.frame_stage, batch, action, torch.arange(3)) for batch in (known, plain))
        torch.testing.assert_close(ours.posterior, theirs.posterior)
        assert torch.equal(model.latent.mode(ours.posterior), model.latent.mode(theirs.posterior))
        for name in ("start", "valid", "of_patch"):
            assert torch.equal(getattr(ours.chunks, name), getattr(theirs.chunks, name))
        assert torch.equal(ours.loose(), theirs.loose())


def test_a_frame_is_coded_once_and_always_with_the_same_others(table, monkeypatch):
    model, asked = settled(), []
    source = Segments.for_training(table, model.config, TRAINING, seed=1)
    encode = model.frame_stage.encode
    monkeypatch.setattr(model.frame_stage, "encode", lambda x, *rest: asked.append(len(x)) or encode(x, *rest))
    source.settle(model.frame_stage)
    for _ in range(200):
        source.sample()
    assert sum(asked) == len(table.frames)
    assert max(asked) <= BLOCK


def test_only_what_is_coded_the_same_forever_is_known():
    assert settled().frame_stage.fixed
    assert not WorldModel(config()).frame_stage.fixed
    assert not settled(boundary="change").frame_stage.fixed
    assert not settled(sees_past=True).frame_stage.fixed
    through_time = WorldModel(replace(config(), time=TimeConfig(layers="m1", changes=3.0)))
    through_time.frame_stage.settle()
    assert not through_time.frame_stage.fixed
    whole = WorldModel(replace(config(), latent=replace(config().latent, slots=0)))
    whole.frame_stage.settle()
    assert not whole.frame_stage.fixed


def test_another_models_codes_are_not_taken_for_its_own(table):
    one, other = settled(), settled()
    with torch.no_grad():
        other.frame_stage.embed.weight.neg_()
    source = Segments.for_training(table, one.config, TRAINING)
    for model in (one, other):
        source.settle(model.frame_stage)
        assert source.codes.stage is model.frame_stage


def test_codes_that_would_not_fit_are_not_kept(table, monkeypatch):
    model = settled()
    source = Segments.for_training(table, model.config, TRAINING)
    monkeypatch.setattr(segments, "CODES_BYTES", 1000)
    source.settle(model.frame_stage)
    assert source.sample().posterior is None


def trained(run, table, *updates):
    """A run that is broken off after each of these updates but the last, and resumed."""
    for resumes, until in enumerate(updates):
        torch.manual_seed(0)
        model = WorldModel(config())
        source = Segments.for_training(table, model.config, TRAINING)
        trainer = Trainer(model, source, run, TRAINING)
        if resumes:
            trainer.resume()
        else:
            save_config(run, model.config, {"id": None})
        trainer.train(updates=until, progress=False)
    return trainer


@pytest.mark.parametrize("broken", [3, 4, 5, 9])  # before the codes are known, as they become so, and later
def test_a_resumed_run_has_the_bits_of_one_that_was_not(tmp_path, table, broken):
    whole, pieces = trained(tmp_path / "a", table, 12), trained(tmp_path / "b", table, broken, 12)
    assert whole.batches.codes is not None and pieces.batches.codes is not None
    for one, other in zip(whole.model.state_dict().values(), pieces.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert np.array_equal(whole.batches.sample().posterior, pieces.batches.sample().posterior)
