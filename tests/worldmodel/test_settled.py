"""Encoder, boundaries and slots come to rest behind the pictures: in the model, its average, and for every frame."""

from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, LEARNED, STRIDE, random_batch, random_frames, random_model
from test_training import Noise

from worldmodel.checkpoint import load_model, save_config
from worldmodel.config import TimeConfig
from worldmodel.model import WorldModel
from worldmodel.training import TrainConfig, Trainer

PICTURES = 5
MASKED = replace(LEARNED, frame=replace(LEARNED.frame, mask=0.3))


def trainer(run, config=LEARNED, **settings):
    torch.manual_seed(0)
    save_config(run, config, {"id": None})
    training = TrainConfig(**{"warmup": 2, "pictures_first": PICTURES, "average": 0.9} | settings)
    return Trainer(WorldModel(config), Noise(config), run, training)


def scores(model):
    """How much each place of some frames wants to start a chunk."""
    stage = model.frame_stage
    with torch.no_grad():
        h = stage.encoder(stage.look(stage.patches(random_frames(LEARNED, 30, 7))))
        return stage.cutting.router.raw_logit(h[:, :-1], h[:, 1:])


def test_behind_the_pictures_scores_never_change_again_and_the_average_has_the_same(tmp_path):
    learner = trainer(tmp_path)
    learner.train(updates=PICTURES, progress=False)
    painted = scores(learner.model)
    learner.train(updates=PICTURES + 6, progress=False)
    assert torch.equal(scores(learner.model), painted)
    assert torch.equal(scores(learner.averaged_model()), painted)
    assert torch.equal(scores(load_model(tmp_path)), painted)
    taus = [model.frame_stage.cutting.router.logit_tau for model in (learner.model, learner.averaged_model())]
    assert torch.equal(*taus)
    assert learner.model.frame_stage.cutting.router.passes == 6  # tau is the mean of what these passes found


@pytest.mark.parametrize("settings", [{"settle": False}, {"pictures_first": 0}])
def test_they_move_on_where_that_is_asked_for_or_nothing_was_painted_before(tmp_path, settings):
    learner = trainer(tmp_path, **settings)
    learner.train(updates=PICTURES, progress=False)
    painted = scores(learner.model)
    learner.train(updates=PICTURES + 3, progress=False)
    assert not torch.equal(scores(learner.model), painted)


@pytest.mark.parametrize("name", ["learned", "tried", "stride", "none", "change", "vector", "slotted"])
def test_what_codes_frames_stands_still_and_what_reads_codes_goes_on_learning(tmp_path, name):
    learner = trainer(tmp_path, config=CONFIGS[name])
    learner.train(updates=PICTURES + 1, progress=False)
    before = {n: value.clone() for n, value in learner.model.frame_stage.named_parameters()}
    learner.train(updates=PICTURES + 4, progress=False)
    after = learner.model.frame_stage.named_parameters()
    still = {n for n, value in after if torch.equal(value, before[n])}
    slots = {"code.posterior.weight", "code.posterior.bias"} if name == "slotted" else set()
    assert {n for n in still if n.startswith("code.")} == slots  # a whole chunk's code goes on learning
    still = {n.split(".")[0] for n in still} - {"code"}
    assert still - {"cutting"} == {"embed", "place", "encoder"}
    assert ("cutting" in still) == (name in ("learned", "tried", "slotted"))


SEES_PAST = replace(STRIDE, frame=replace(STRIDE.frame, sees_past=True))
THROUGH_TIME = replace(STRIDE, time=TimeConfig(layers="m1", changes=3.0))


LEARNED_IN_TIME = replace(
    LEARNED, frame=replace(LEARNED.frame, sees_past=True), time=TimeConfig(layers="m1", changes=3.0, boundary="learned")
)


@pytest.mark.parametrize("config", [SEES_PAST, LEARNED_IN_TIME])
def test_an_encoder_that_sees_the_order_goes_on_learning_it(tmp_path, config):
    """The pictures alone do not show it any."""
    learner = trainer(tmp_path, config=config)
    learner.train(updates=PICTURES + 1, progress=False)
    before = learner.model.frame_stage.embed.weight.clone()
    learner.train(updates=PICTURES + 3, progress=False)
    assert not torch.equal(learner.model.frame_stage.embed.weight, before)


def test_patches_that_are_followed_through_time_rest_behind_the_pictures(tmp_path):
    """Clips have shown what a patch is that stood still, and nothing is learned about what moves."""
    learner = trainer(tmp_path, config=THROUGH_TIME)
    learner.train(updates=PICTURES, progress=False)
    before = {n: value.clone() for n, value in learner.model.frame_stage.named_parameters()}
    learner.train(updates=PICTURES + 3, progress=False)
    for name, value in learner.model.frame_stage.named_parameters():
        if name.startswith(("embed", "place", "encoder", "time")):
            assert torch.equal(value, before[name]), name
    assert learner.model.frame_stage.time.router.passes == 3  # what moves in the mean, rows alone can tell


@pytest.mark.parametrize("config", [SEES_PAST, LEARNED_IN_TIME])
def test_once_the_order_has_been_learned_it_rests_too(tmp_path, config):
    learner = trainer(tmp_path, config=config, past_first=4)
    learner.train(updates=PICTURES + 4, progress=False)
    averaged = {n: value.clone() for n, value in learner.averaged_model().frame_stage.named_parameters()}
    learner.train(updates=PICTURES + 8, progress=False)
    resting = ("embed", "place", "encoder", "cutting", "past", "time")
    for stage in (learner.model.frame_stage, learner.averaged_model().frame_stage):
        for name, value in stage.named_parameters():
            if name.startswith(resting):
                assert torch.equal(value, averaged[name]), name
        assert not torch.equal(stage.paint.weight, averaged["paint.weight"])
    assert all(router.passes == 4 for router in learner.model.frame_stage.routers)


def test_without_an_encoder_that_sees_it_the_past_cannot_come_first(tmp_path):
    with pytest.raises(ValueError, match=r"training\.past_first is of an encoder that learns from the order"):
        trainer(tmp_path, past_first=4)


@pytest.mark.parametrize("stopped", [PICTURES + 2, PICTURES + 4, PICTURES + 6])  # before it rests, just then, and after
@pytest.mark.parametrize(("config", "past_first"), [(LEARNED_IN_TIME, 4), (THROUGH_TIME, 0)])
def test_a_run_whose_order_comes_to_rest_is_resumed_to_the_bit(tmp_path, stopped, config, past_first):
    whole, first, again = (
        trainer(tmp_path / name, config=config, past_first=past_first) for name in ("whole", "broken", "broken")
    )
    whole.train(updates=PICTURES + 9, progress=False)
    first.train(updates=stopped, progress=False)
    again.resume()
    again.train(updates=PICTURES + 9, progress=False)
    weights = [(tmp_path / name / "world_model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_the_rate_is_held_among_scores_that_stand_still(tmp_path):
    learner = trainer(tmp_path)
    learner.train(updates=PICTURES + 40, progress=False)
    model = learner.averaged_model()
    counts = []
    for seed in range(1000, 1006):  # batches that it has not seen
        with torch.no_grad():
            counts.append(model(random_batch(LEARNED, seed=seed, distinct=20), torch.arange(3)).chunks.valid.sum(1))
    assert torch.cat(counts).float().mean() == pytest.approx(4.0, rel=0.15)


def test_tau_is_found_anew_behind_the_pictures_where_frames_count_by_their_occurrence(tmp_path):
    learner = trainer(tmp_path, config=CONFIGS["change"])
    learner.train(updates=PICTURES, progress=False)
    assert learner.model.frame_stage.cutting.router.passes == PICTURES
    learner.train(updates=PICTURES + 2, progress=False)
    assert learner.model.frame_stage.cutting.router.passes == 2


def test_from_what_stands_still_nothing_is_hidden():
    model = random_model(MASKED).train()
    stage = model.frame_stage
    patches = stage.patches(random_frames(MASKED, 8, 0))
    with torch.no_grad():
        plain, masked = (stage.look(patches, None, key) for key in (None, torch.tensor(3)))
        assert plain.shape != masked.shape or not torch.equal(plain, masked)
        stage.settle()
        assert torch.equal(plain, stage.look(patches, None, torch.tensor(3)))
