"""A router that learns by trying: it begins at what is unlike, and what paints better becomes more likely."""

import pytest
import torch
from small_models import CONFIGS, random_frames, random_model

from worldmodel.boundaries import Change
from worldmodel.kernels.noise import row_hash, uniform
from worldmodel.losses import TRIAL, trial_loss
from worldmodel.seeing import see_loose
from worldmodel.trying import Trying

TRIED = CONFIGS["tried"]
KEY = torch.tensor(5)


def test_it_begins_where_a_patch_is_unlike_the_last():
    g = torch.Generator().manual_seed(0)
    patches, h = torch.rand(30, 49, 12, generator=g), torch.rand(30, 49, 16, generator=g)
    free = torch.ones(30, 49)
    free[:, 0] = 0
    trying, change = Trying(0.2, 49, 16), Change(0.2, 49)
    tried = trying(torch.cat([h, patches], dim=-1), free, free)
    same = tried.boundary == change(patches, free, free).boundary
    assert same.float().mean() > 0.97  # the smallest differences count alike
    assert tried.hard_rate == pytest.approx(0.2, abs=0.02)


def test_draws_come_as_often_as_they_are_likely():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 49, 28, generator=g)
    free = torch.ones(1, 49)
    free[:, 0] = 0
    router = Trying(0.3, 49, 16)
    router(x, free, free)
    many = 4000
    routing = router(x.expand(many, -1, -1), free.expand(many, -1), None, torch.rand(many, 49, generator=g))
    torch.testing.assert_close(routing.boundary.float().mean(0), routing.probability[0], atol=0.04, rtol=0)
    assert not routing.boundary[:, 0].any()
    p, b = routing.probability[:, 1:], routing.boundary[:, 1:]
    torch.testing.assert_close(routing.log_probability, torch.where(b, p, 1 - p).log().sum(1), atol=1e-3, rtol=1e-4)


def ways(model, frames):
    """The two ways of each frame that `trial_loss` draws, and the errors `(2, U)` with which they are painted."""
    n, stage = len(frames), model.frame_stage
    drawn = uniform(row_hash(KEY.expand(2 * n), torch.arange(2 * n), TRIAL), stage.patches.count)
    target, chunks, posterior, routing = see_loose(stage, torch.cat([frames, frames]), None, drawn)
    painted = stage.decode(model.latent.mode(posterior), None, chunks)
    return routing.boundary, (painted - target).square().sum((1, 2)).view(2, n)


def test_the_way_that_paints_better_becomes_more_likely_and_nothing_else_learns():
    model = random_model(TRIED).train()
    frames = random_frames(TRIED, 24, 3)
    model.frame_stage.cutting.router(*scored(model, frames), torch.ones(24, 12))  # finds tau
    model.zero_grad()
    trial_loss(model, frames, KEY).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved and all(name.startswith("frame_stage.cutting.router.") for name in moved)

    boundary, error = ways(model, frames)
    before = likely(model, frames, boundary)
    with torch.no_grad():
        for p in model.frame_stage.cutting.router.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad
    after = likely(model, frames, boundary)
    gain = (error[1] - error[0]) * ((after[0] - after[1]) - (before[0] - before[1]))
    assert gain.mean() > 0


def scored(model, frames):
    """What the router is shown of some frames, and where it may decide."""
    stage = model.frame_stage
    patches = stage.patches(frames)
    with torch.no_grad():
        h = stage.encoder(stage.look(patches))
    free = torch.ones(patches.shape[:2])
    free[:, 0] = 0
    return torch.cat([h, patches], dim=-1), free


def likely(model, frames, boundary):
    """Log-probabilities of two ways of each frame, `(2, U)`."""
    x, free = scored(model, frames)
    routing = model.frame_stage.cutting.router(x, free, None)
    p = routing.certainty[:, 1:]
    b = boundary.view(2, len(frames), -1)[:, :, 1:]
    return torch.where(b, p, 1 - p).log().sum(-1)


def test_trials_leave_tau_alone_and_follow_from_the_key():
    model = random_model(TRIED).train()
    frames = random_frames(TRIED, 8, 3)
    tau = model.frame_stage.cutting.router.logit_tau.clone()
    losses = [trial_loss(model, frames, torch.tensor(key)).item() for key in (1, 1, 2)]
    assert torch.equal(model.frame_stage.cutting.router.logit_tau, tau)
    assert losses[0] == losses[1] != losses[2]
