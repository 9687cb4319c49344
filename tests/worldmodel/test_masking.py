"""Hidden patches: as many as asked for, others in every update and frame, in training only; painted all the same."""

from dataclasses import replace

import pytest
import torch
from small_models import LEARNED, STRIDE, random_batch, random_frames

from worldmodel.losses import LossConfig, picture_loss, world_model_loss
from worldmodel.model import WorldModel

MASKED = replace(STRIDE, frame=replace(STRIDE.frame, mask=0.3))
KEY = torch.tensor([11, 22, 33])


def model_of(config, seed=0):
    torch.manual_seed(seed)
    return WorldModel(config)


def hidden_patches(model, frames, key):
    """Which patches do not reach the encoder, by their gradient."""
    stage = model.frame_stage
    patches = stage.patches(frames).requires_grad_()
    _, posterior, _ = stage.encode(stage.look(patches, None, key), patches, torch.ones(len(frames)))
    (gradient,) = torch.autograd.grad(posterior.square().sum(), patches)
    return (gradient == 0).all(-1)


def test_every_frame_of_every_update_hides_as_many_patches_but_others():
    model = model_of(MASKED).train()
    frames = random_frames(MASKED, 1, 0).expand(20, -1, -1, -1)
    hidden = hidden_patches(model, frames, torch.tensor(5))
    assert (hidden.sum(1) == round(0.3 * 12)).all()
    assert len(hidden.unique(dim=0)) > 10
    assert torch.equal(hidden, hidden_patches(model, frames, torch.tensor(5)))
    assert torch.equal(hidden[:7], hidden_patches(model, frames[:7], torch.tensor(5)))
    assert not torch.equal(hidden, hidden_patches(model, frames, torch.tensor(6)))


def test_what_is_hidden_is_not_seen_in_the_frame_before_either():
    model = model_of(replace(MASKED, frame=replace(MASKED.frame, sees_past=True))).train()
    stage, frames = model.frame_stage, random_frames(MASKED, 6, 0)
    torch.nn.init.normal_(stage.past.patches.weight)
    before = stage.patches(frames).requires_grad_()
    past = stage.past(before, torch.zeros(6, 6), torch.ones(6, dtype=torch.bool))
    x = stage.look(stage.patches(frames), past, torch.tensor(5))
    (gradient,) = torch.autograd.grad(x.square().sum(), before)
    shown = (gradient != 0).any(-1)
    assert torch.equal(~shown, hidden_patches(model, frames, torch.tensor(5)))
    assert (shown.sum(1) == 12 - round(0.3 * 12)).all()


@pytest.mark.parametrize("training,key", [(False, torch.tensor(5)), (True, None)])
def test_nothing_is_hidden_outside_of_training(training, key):
    model = model_of(MASKED).train(training)
    assert not hidden_patches(model, random_frames(MASKED, 9, 0), key).any()


@pytest.mark.parametrize("base", [STRIDE, LEARNED])
def test_without_a_mask_there_is_no_parameter_and_with_one_evaluation_is_the_plain_model_bit_for_bit(base):
    plain = model_of(base).eval()
    masked = model_of(replace(base, frame=replace(base.frame, mask=0.5))).eval()
    assert plain.frame_stage.unseen is None
    extra = masked.state_dict().keys() - plain.state_dict().keys()
    assert extra == {"frame_stage.unseen"}
    batch = random_batch(base)
    with torch.no_grad():
        assert torch.equal(plain(batch, KEY).y, masked(batch, KEY).y)
    # With the same weights, also in training, as long as the same update hides nothing.
    masked.frame_stage.unseen = None
    assert torch.equal(plain.train()(batch, KEY).y, masked.train()(batch, KEY).y)


@pytest.mark.parametrize("loss", ["pictures", "everything"])
def test_all_patches_are_painted_and_the_stand_in_is_learned(loss):
    model = model_of(MASKED).train()
    batch = random_batch(MASKED, distinct=20)
    if loss == "pictures":
        total, _ = picture_loss(model, batch, LossConfig(), key=KEY)
    else:
        total, _ = world_model_loss(model, batch, LossConfig(), key=KEY, generator=torch.Generator().manual_seed(0))
    total.backward()
    assert model.frame_stage.unseen.grad.abs().sum() > 0
    seen = model(batch, KEY)
    assert torch.equal(seen.seen.patches, model.frame_stage.patches(batch.frames))


def test_another_update_sees_other_patches():
    model = model_of(MASKED).train()
    batch = random_batch(MASKED)
    with torch.no_grad():
        first, second, again = (model(batch, KEY + update).seen.posterior for update in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("mask", [1.5, 1.0, 0.99, 0.01, -0.1])
def test_a_share_that_hides_all_or_none_is_named(mask):
    with pytest.raises(ValueError, match=r"mask .*"):
        model_of(replace(STRIDE, frame=replace(STRIDE.frame, mask=mask)))
