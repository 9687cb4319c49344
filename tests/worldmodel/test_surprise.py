"""A router by surprise: what has been seen before it in a frame is all it knows, and chunks say about as much each."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CONFIGS, random_frames

from worldmodel.config import MambaConfig
from worldmodel.losses import foresight_loss
from worldmodel.model import WorldModel
from worldmodel.surprise import LEAST, Foresight, Surprise

CONFIG = CONFIGS["surprise"]
MAMBA = MambaConfig(d_state=4, headdim=8, chunk_size=8)


def test_a_patch_is_foretold_from_those_before_it_alone():
    torch.manual_seed(0)
    foresight = Foresight(12, 5, MAMBA)
    patches = torch.randn(3, 12, 5)
    said = foresight(patches)
    for changed in range(12):
        other = patches.clone()
        other[:, changed] += 1
        moved = (foresight(other) - said).abs().amax(0) > 1e-6
        assert not moved[:changed].any() and moved[changed]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), patches=st.integers(4, 40), tau=st.floats(0.5, 20.0))
def test_between_two_boundaries_no_more_comes_together_than_tau(seed, patches, tau):
    g = torch.Generator().manual_seed(seed)
    said = torch.rand(5, patches, generator=g) ** 4 * 4
    router = Surprise(0.2).eval()
    router.logit_tau.fill_(torch.tensor(tau).log())
    free = torch.ones(5, patches)
    free[:, 0] = 0
    boundary = router(said.unsqueeze(-1), free, None).boundary
    assert not boundary[:, 0].any()
    for row in range(5):
        since = 0.0
        for p in range(1, patches):
            since = 0.0 if boundary[row, p] else since + float(said[row, p]) + LEAST
            assert since <= tau * 1.001
        assert boundary[row].sum() <= (said[row, 1:] + LEAST).sum() / tau + 1e-3


def test_without_any_surprise_a_frame_is_cut_at_a_stride():
    router = Surprise(3 / 12).train()
    free = torch.ones(4, 13)
    free[:, 0] = 0
    boundary = router(torch.zeros(4, 13, 1), free, torch.ones(4, 13)).boundary
    place = boundary[0].nonzero().squeeze(1)
    assert len(place) == 3 and set(place.diff().tolist()) <= {3, 4}
    assert (boundary == boundary[0]).all()


def test_what_can_be_foretold_is_passed_over_and_what_cannot_is_cut_at():
    """Every place has a colour of its own, but for one patch of each frame, anywhere, of any colour."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    usual = torch.rand(12, 8, generator=g)
    foresight, router = Foresight(12, 8, MAMBA), Surprise(1 / 11)

    def frames(n):
        odd = torch.randint(1, 12, (n,), generator=g)
        patches = usual.repeat(n, 1, 1)
        patches[torch.arange(n), odd] = torch.rand(n, 8, generator=g)
        return patches, odd

    optimizer = torch.optim.AdamW(foresight.parameters(), 1e-2)
    for _ in range(300):
        loss = foresight(frames(32)[0]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    free = torch.ones(200, 12)
    free[:, 0] = 0
    for _ in range(20):
        patches, odd = frames(200)
        boundary = router(foresight(patches).unsqueeze(-1), free, torch.ones(200, 12)).boundary
    assert boundary.sum(1).float().mean() == pytest.approx(1, abs=0.1)
    assert boundary[torch.arange(200), odd].float().mean() > 0.85


def test_its_loss_teaches_nothing_else_and_ends_when_the_encoder_rests():
    model = WorldModel(CONFIG).train()
    patches = model.frame_stage.patches(random_frames(CONFIG, 5, 0))
    foresight_loss(model, patches).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if ".foresight." in name} != set()


def test_the_same_frame_is_cut_alike_whatever_lies_beside_it():
    model = WorldModel(replace(CONFIG, frame=replace(CONFIG.frame, order="hilbert"))).eval()
    model.frame_stage.cutting.router.logit_tau.fill_(0.5)
    stage = model.frame_stage
    frames = random_frames(CONFIG, 9, 0)
    with torch.no_grad():
        together, _, _ = stage.encode(stage.look(stage.patches(frames)), stage.patches(frames), None)
        for i in range(9):
            patches = stage.patches(frames[i : i + 1])
            alone, _, _ = stage.encode(stage.look(patches), patches, None)
            assert together.start[i, together.valid[i]].tolist() == alone.start[0, alone.valid[0]].tolist()
    assert len({tuple(row.tolist()) for row in together.start}) > 1
