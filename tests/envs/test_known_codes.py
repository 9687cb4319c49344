"""Once all that says of a frame where its chunks start and what their codes are stands still, a frame is coded once;
nothing else changes by it."""

from dataclasses import replace

import last_action_env
import pytest
import torch

from worldmodel import training
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


@pytest.mark.parametrize("boundary", ["stride", "learned", "tried", "surprise", "change", "random"])
def test_known_codes_are_what_the_frame_stage_says(table, boundary):
    model = settled(boundary=boundary, max_chunks=7)
    for batch in (Segments.for_training(table, model.config, TRAINING, seed=0).sample() for _ in range(3)):
        model(batch, torch.arange(3))  # tau comes to rest
    model.frame_stage.fix()
    one, other = (Segments.for_training(table, model.config, TRAINING, seed=1) for _ in range(2))
    one.settle(model.frame_stage)
    fullest = []
    for _ in range(5):
        known, plain = one.sample(), other.sample()
        assert plain.codes is None and len(known.codes.start) == len(known.frames) - TRAINING.loose
        action = torch.zeros(*known.index.shape, 1)
        ours, theirs = (see_rows(model.frame_stage, batch, action, torch.arange(3)) for batch in (known, plain))
        torch.testing.assert_close(ours.posterior, theirs.posterior)
        assert torch.equal(model.latent.mode(ours.posterior), model.latent.mode(theirs.posterior))
        for name in ("start", "valid", "of_patch"):
            assert torch.equal(getattr(ours.chunks, name), getattr(theirs.chunks, name))
        assert torch.equal(ours.loose(), theirs.loose())
        fullest.append(ours.chunks.valid.sum(1))
    assert boundary == "stride" or len(torch.cat(fullest).unique()) > 1  # frames have chunks of their own


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
    tau_moves = settled(boundary="change")
    assert not tau_moves.frame_stage.fixed
    tau_moves.frame_stage.fix()
    assert tau_moves.frame_stage.fixed
    assert not settled(sees_past=True).frame_stage.fixed
    through_time = WorldModel(replace(config(), time=TimeConfig(layers="m1", changes=3.0)))
    through_time.frame_stage.settle()
    through_time.frame_stage.fix()
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
    assert source.sample().codes is None


def trained(run, table, boundary, *updates):
    """A run that is broken off after each of these updates but the last, and resumed."""
    for resumes, until in enumerate(updates):
        torch.manual_seed(0)
        model = WorldModel(config(boundary=boundary))
        source = Segments.for_training(table, model.config, TRAINING)
        trainer = Trainer(model, source, run, TRAINING)
        if resumes:
            trainer.resume()
        else:
            save_config(run, model.config, {"id": None})
        trainer.train(updates=until, progress=False)
    return trainer


# Before the codes are known, as they become so, and later; with a router that is three updates after all else rests.
@pytest.mark.parametrize(
    ("boundary", "broken"), [("stride", n) for n in (3, 4, 5, 9)] + [("learned", n) for n in (4, 5, 7, 8, 9)]
)
def test_a_resumed_run_has_the_bits_of_one_that_was_not(tmp_path, table, boundary, broken, monkeypatch):
    monkeypatch.setattr(training, "FIXED", 3)
    whole = trained(tmp_path / "a", table, boundary, 12)
    pieces = trained(tmp_path / "b", table, boundary, broken, 12)
    assert whole.batches.codes is not None and pieces.batches.codes is not None
    for one, other in zip(whole.model.state_dict().values(), pieces.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.batches.sample().codes, pieces.batches.sample().codes, strict=True):
        assert torch.equal(one, other)


def test_tau_moves_until_it_is_fixed(tmp_path, table, monkeypatch):
    monkeypatch.setattr(training, "FIXED", 3)
    taus = [
        trained(tmp_path / str(n), table, "learned", n).model.frame_stage.cutting.router.logit_tau.item()
        for n in (5, 6, 7, 8, 10)
    ]
    assert len(set(taus[:3])) == 3 and len(set(taus[2:])) == 1
