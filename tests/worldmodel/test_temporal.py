"""Temporal merging where it is known what moves: that is new, nothing else is, and dreams are as true as without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moving_dot import CONFIG, Ring
from small_models import LEARNED, STRIDE, random_batch, random_model
from test_training import QUICK, open_loop

from worldmodel.checkpoint import load_model, save_config
from worldmodel.config import LatentConfig, TimeConfig
from worldmodel.cutting import New
from worldmodel.model import WorldModel
from worldmodel.seeing import CLIP, initial_sight, see_clips, see_step
from worldmodel.side import action_width
from worldmodel.training import Trainer

MERGED = replace(CONFIG, time=TimeConfig(layers="m1", changes=1.0))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_trained_model_renews_what_moves_and_dreams_it(tmp_path: Path, rounds: int) -> None:
    torch.manual_seed(0)
    config = replace(MERGED, time=replace(MERGED.time, rounds=rounds))
    save_config(tmp_path, config, {"id": None})
    Trainer(WorldModel(config), Ring(), tmp_path, replace(QUICK, level=150)).train(updates=900, progress=False)
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
    halves = moved.unflatten(-1, (2, 2)).any(-1).sum(-1)  # of the frame in which something moves: a chunk each
    assert torch.equal(chunks[~begins], halves[~begins])
    dreamed = open_loop(model)
    assert dreamed.pictures > 0.95
    assert dreamed.rewards > 0.97
    assert dreamed.ends > 0.97


def test_only_two_questions_can_be_asked() -> None:
    with pytest.raises(ValueError, match="boundary must be one of 'change', 'learned'"):
        TimeConfig(layers="m1", boundary="random")


def test_what_is_new_in_a_later_round_was_new_in_the_one_before() -> None:
    config = replace(
        LEARNED, time=TimeConfig(layers="m1", boundary="learned", changes=2.0, rounds=3, changes_outer=8.0)
    )
    model = random_model(config)
    batch = random_batch(config, rows=3, length=12)
    rounds = [model.frame_stage.time, model.frame_stage.time.inner, model.frame_stage.time.inner.inner]
    assert rounds[2].inner is None
    assert [round.router.rate.item() * 12 for round in rounds] == pytest.approx([8, 4, 2])
    seen = []
    for round in rounds:  # each says what is new behind it, the inner ones first
        round.register_forward_hook(lambda _, __, changes: seen.append(changes.changed))
    with torch.no_grad():
        model(batch, torch.arange(3))
    innermost, middle, outermost = seen[:3]  # then come the loose frames
    assert torch.equal(innermost & outermost, outermost) and torch.equal(middle & outermost, outermost)
    assert outermost.sum() < innermost.sum()


def test_patches_that_stand_still_are_not_looked_at_in_the_space_between_two_rounds() -> None:
    config = replace(LEARNED, time=TimeConfig(layers="m1", changes=2.0, rounds=2))
    stage = random_model(config).frame_stage.time
    g = torch.Generator().manual_seed(0)
    h, changed = torch.randn(6, 12, 16, generator=g), torch.rand(6, 12, generator=g) < 0.4
    with torch.no_grad():
        after = stage._among_the_new(h, changed)
        other = stage._among_the_new(torch.where(changed.unsqueeze(-1), h, 9.0), changed)
    assert torch.equal(after[~changed], h[~changed])
    assert torch.equal(after[changed], other[changed])
    assert not torch.equal(after[changed], h[changed])


def test_one_round_is_the_last_one() -> None:
    for outer in (0.0, 8.0):
        stage = WorldModel(replace(LEARNED, time=TimeConfig(layers="m1", changes=2.0, changes_outer=outer))).frame_stage
        assert stage.time is not None and stage.time.router.rate.item() == pytest.approx(2 / 12)


FOLLOWED = replace(STRIDE, time=TimeConfig(layers="m1", changes=3.0))


def test_a_clip_is_seen_as_an_episode_of_its_frames_would_be() -> None:
    model = random_model(FOLLOWED)
    stage = model.frame_stage
    frames = random_batch(FOLLOWED, distinct=2 * CLIP).frames[: 2 * CLIP]
    frames[1] = frames[0]  # a patch that stands still is not new
    frames[1, :4] = frames[2, :4]
    with torch.no_grad():
        clips = see_clips(stage, frames, torch.tensor(0))
        for begin in (0, CLIP):
            memory = initial_sight(stage, 1)
            action = torch.zeros(1, action_width(FOLLOWED.action))
            for i in range(begin, begin + CLIP):
                chunks, posterior, changed = see_step(stage, frames[i : i + 1], action, memory)
                assert torch.equal(clips.changed[0, i], changed[0])
                K = int(chunks.valid.sum())
                assert torch.equal(clips.chunks.start[i][clips.chunks.valid[i]], chunks.start[0, :K])
                torch.testing.assert_close(clips.posterior[i, :K], posterior[0, :K], atol=1e-4, rtol=1e-4)
    assert 0 < clips.changed[0, 1].sum() < len(clips.changed[0, 1])


def test_what_stands_still_in_a_clip_is_painted_from_the_frame_in_which_it_was_new() -> None:
    frames = random_batch(FOLLOWED, distinct=CLIP).frames[:1].repeat(CLIP, 1, 1, 1)
    frames[1, :4] = 255 - frames[0, :4]  # the first row of patches is another one in frame 1, and as before in 2 and 3
    with torch.no_grad():
        clips = see_clips(random_model(FOLLOWED).frame_stage, frames, torch.tensor(0))
    since = clips.painted_by()[0] // clips.chunks.start.shape[1]  # (frames, patches)
    first_row = torch.arange(12) < 4
    assert (since[:, ~first_row] == 0).all()
    assert since[:, first_row].tolist() == [[0] * 4, [1] * 4, [2] * 4, [2] * 4]


@pytest.mark.parametrize("seed", range(5))
def test_no_two_new_patches_of_a_chunk_share_a_slot(seed: int) -> None:
    config = replace(
        STRIDE, time=TimeConfig(layers="m1", changes=3.0), latent=LatentConfig(groups=6, classes=4, slots=3)
    )
    stage = WorldModel(config).frame_stage
    g = torch.Generator().manual_seed(seed)
    changed = torch.rand(20, stage.patches.count, generator=g) < 0.4
    chunks, _ = stage.cutting(torch.zeros(20, 12, 16), torch.zeros(20, 12, 1), None, New.of(changed), None)
    own = stage.code.own.sum(-1)  # (patches, slots)
    for of_patch, new in zip(chunks.of_patch, changed, strict=True):
        assert torch.equal(of_patch >= 0, new)
        for k in range(int(of_patch.max()) + 1):
            assert own[of_patch == k].sum(0).max() <= 1


@pytest.mark.parametrize("boundary", ["stride", "learned", "change"])
def test_patches_that_are_not_new_are_masked_out_of_the_frames_attention(boundary: str) -> None:
    stage = random_model(replace(FOLLOWED, frame=replace(LEARNED.frame, boundary=boundary))).frame_stage
    g = torch.Generator().manual_seed(0)
    patches = stage.patches(random_batch(FOLLOWED, distinct=9).frames)
    x, changed = torch.randn(9, 12, 16, generator=g), torch.rand(9, 12, generator=g) < 0.4
    changed[0], changed[1] = True, False
    with torch.no_grad():
        chunks, posterior, _ = stage.encode(x, patches, None, changed)
        still = ~changed.unsqueeze(-1)
        others = stage.encode(torch.where(still, -3.0, x), torch.where(still, 0.5, patches), None, changed)
    assert torch.equal(chunks.start, others[0].start) and torch.equal(chunks.valid, others[0].valid)
    assert torch.equal(posterior[chunks.valid], others[1][chunks.valid])
    assert chunks.valid.sum(1)[1] == 0 and (chunks.valid.sum(1)[2:] > 0).all()
