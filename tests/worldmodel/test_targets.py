"""Targets on their way: deeper stages arrive earlier, boundaries follow, and the number of the update says it all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import CONFIGS, EXTRA, LEARNED, STRIDE, random_batch, random_frames
from test_training import Noise, everything

from worldmodel.checkpoint import load_model, save_config
from worldmodel.config import CausalConfig, ModelConfig, TimeConfig
from worldmodel.model import WorldModel
from worldmodel.router import on_the_way
from worldmodel.training import TrainConfig, Trainer

MOVING = replace(
    EXTRA,
    frame=replace(EXTRA.frame, chunks=4.0, chunks_first=8.0, max_chunks=10),
    causal=(replace(EXTRA.causal[0], extra=0.5, extra_first=2.0),),
)


def wanted(model):
    """Chunks a frame, and boundaries a frame in the causal stage."""
    chunks = 1 + model.frame_stage.cutting.router.rate.item() * (model.frame_stage.patches.count - 1)
    return chunks, model.causal_stage.router.rate.item() * chunks


def test_targets_move_by_equal_factors_and_deeper_stages_arrive_earlier():
    model = WorldModel(MOVING)
    assert wanted(model) == pytest.approx((4.0, 0.5))  # nobody anneals: the last targets hold
    seen = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0, 7.0):
        model.anneal(frames=progress, causal=progress)
        seen.append(wanted(model))
    chunks, extra = zip(*seen)
    assert chunks == pytest.approx([8, 8 / 2**0.25, 8 / 2**0.5, 8 / 2**0.75, 4, 4], rel=1e-5)
    assert extra == pytest.approx([2, 1, 0.5, 0.5, 0.5, 0.5], rel=1e-5)


def test_a_stage_arrives_at_one_over_its_depth_plus_one():
    for depth in range(4):
        arrival = 1 / (1 + depth)
        assert on_the_way(8.0, 2.0, arrival, depth) == pytest.approx(2.0)
        assert on_the_way(8.0, 2.0, 0.9 * arrival, depth) > 2.1
        assert on_the_way(0.0, 2.0, 0.3, depth) == 2.0


@pytest.mark.parametrize("boundary", ["learned", "tried", "surprise", "change", "random"])
def test_the_boundaries_follow_the_target(boundary):
    torch.manual_seed(0)
    config = replace(MOVING, causal=STRIDE.causal, frame=replace(MOVING.frame, boundary=boundary))
    model = WorldModel(config).train()
    stage = model.frame_stage
    counts = []
    for progress in (0.0, 1.0):
        model.anneal(frames=progress, causal=progress)
        for seed in range(300):  # a slow tau needs some
            frames = random_frames(config, 300 if seed == 299 else 10, seed)
            with torch.no_grad():
                patches = stage.patches(frames)
                chunks, _, _ = stage.encode(stage.look(patches), patches, torch.ones(len(frames)))
        counts.append(chunks.valid.sum(1).float().mean().item())
    assert counts == pytest.approx([8, 4], rel=0.1)


def trainer(run: Path, config=MOVING, **settings) -> Trainer:
    torch.manual_seed(0)
    save_config(run, config, {"id": None})
    training = TrainConfig(warmup=10, pictures_first=4, average=0.9, **settings)
    return Trainer(WorldModel(config), Noise(config), run, training)


@pytest.mark.parametrize(
    "settings,arrival", [({"anneal": 3}, 3), ({"anneal": 6}, 4), ({"anneal": 6, "settle": False}, 6)]
)
def test_chunks_come_to_their_target_before_they_settle(tmp_path, settings, arrival):
    learner = trainer(tmp_path, **settings)
    seen = []
    for update in range(8):
        learner.step(random_batch(MOVING, seed=update, distinct=20))
        seen.append(wanted(learner.model)[0])
    assert seen == pytest.approx([8 * 0.5 ** min(1, update / arrival) for update in range(8)], rel=1e-5)


def test_causal_targets_begin_to_move_behind_the_pictures_and_are_saved_with_the_weights(tmp_path):
    learner = trainer(tmp_path, anneal=6)
    seen = []
    for update in range(12):
        learner.step(random_batch(MOVING, seed=update, distinct=20))
        seen.append(wanted(learner.model)[1])
    expected = [2 * 0.25 ** min(1, 2 * max(0, update - 4) / 6) for update in range(12)]
    assert seen == pytest.approx(expected, rel=1e-5)
    half = trainer(tmp_path, anneal=6)
    half.train(updates=6, progress=False)
    assert wanted(load_model(tmp_path)) == pytest.approx(wanted(half.model)) != (4.0, 0.5)


def changing(boundary: str) -> ModelConfig:
    """2 of 12 patches are to change, 6 at first; in the outer one of two rounds half as many again."""
    time = TimeConfig(layers="m1", boundary=boundary, changes=2.0, changes_first=6.0, rounds=2, changes_outer=3.0)
    return replace(STRIDE, time=time)


@pytest.mark.parametrize("boundary", ["change", "learned"])
def test_more_patches_may_change_when_rows_are_first_learned(tmp_path, boundary):
    config = changing(boundary)
    learner = trainer(tmp_path, config=config, anneal=6)
    outer, inner = [], []
    for update in range(12):
        learner.step(random_batch(config, seed=update, distinct=20))
        stage = learner.model.frame_stage.time
        for router, wanted_now in zip(stage.routers, (outer, inner), strict=True):
            wanted_now.append(router.rate.item() * stage.patches)
    share = [3 ** -min(1, max(0, update - 4) / 6) for update in range(12)]
    assert inner == pytest.approx([6 * s for s in share], rel=1e-5)
    assert outer == pytest.approx([9 * s for s in share], rel=1e-5)


def test_what_counts_as_a_change_does_not_stand_still_before_its_target_has_arrived(tmp_path):
    learner = trainer(tmp_path, config=changing("change"), anneal=300)
    for update, fixed in ((4 + 200, False), (4 + 300 + 199, False), (4 + 300 + 200, True)):
        learner._rest(update)
        assert learner.model.frame_stage.time.router.fixed == fixed


def test_a_run_in_which_ever_fewer_patches_may_change_is_resumed_to_the_bit(tmp_path):
    config = changing("change")
    whole, broken, resumed = (trainer(tmp_path / n, config=config, anneal=6) for n in ("whole", "broken", "broken"))
    whole.train(updates=11, progress=False)
    broken.train(updates=6, progress=False)
    resumed.resume()
    resumed.train(updates=11, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


@pytest.mark.parametrize("first", [2, 3, 6])  # at the stride, behind it, and behind the pictures
def test_a_run_whose_targets_move_is_resumed_to_the_bit(tmp_path, first):
    settings = {"anneal": 6, "stride_first": 3}
    whole, broken, resumed = (trainer(tmp_path / name, **settings) for name in ("whole", "broken", "broken"))
    whole.train(updates=11, progress=False)
    broken.train(updates=first, progress=False)
    resumed.resume()
    resumed.train(updates=11, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


def test_chunks_have_a_fixed_stride_until_they_are_handed_over(tmp_path):
    learner = trainer(tmp_path, config=LEARNED, stride_first=3)
    batch = random_batch(LEARNED)
    for update in range(8):
        learner.step(random_batch(LEARNED, seed=update, distinct=20))
        model = learner.averaged_model()
        with torch.no_grad():
            seen = model(batch, torch.arange(3))
        at_stride = torch.equal(seen.seen.chunks.start, model.frame_stage.cutting.fixed_start.expand(14, -1))
        assert at_stride == (update < 3)
        assert ("frame" in seen.routing) == (update >= 3)
        state, out = model.observe(
            model.initial_state(3), None, batch.frames[batch.index[:, 0]], torch.ones(3, dtype=torch.bool)
        )
        assert torch.equal(out.starts[0], model.frame_stage.cutting.fixed_start) == (update < 3)
        model.imagine(state, batch.action[:, 1])


def test_a_stride_has_nobody_to_hand_over_to(tmp_path):
    with pytest.raises(ValueError, match="boundary is 'stride'"):
        trainer(tmp_path, config=STRIDE, stride_first=3)


def test_a_router_tries_nothing_before_it_has_taken_over(tmp_path):
    config = replace(LEARNED, frame=replace(LEARNED.frame, boundary="tried"))
    learner = trainer(tmp_path, config=config, stride_first=2)
    scorer = [p.detach().clone() for p in learner.model.frame_stage.cutting.parameters()]
    moved = []
    for update in range(3):
        learner.step(random_batch(config, seed=update, distinct=20))
        parameters = zip(scorer, learner.model.frame_stage.cutting.parameters())
        moved.append(any(not torch.equal(a, b) and b.grad is not None and b.grad.any() for a, b in parameters))
    assert moved == [False, False, True]


def test_a_router_that_rests_cannot_take_over(tmp_path):
    with pytest.raises(ValueError, match="at update 4, but it rests from update 4 on"):
        trainer(tmp_path, config=LEARNED, stride_first=4)
    trainer(tmp_path, config=LEARNED, stride_first=4, settle=False)


@pytest.mark.parametrize("name", ["learned", "tried", "surprise", "extra", "change", "random"])
def test_weights_from_before_targets_moved_still_fit(name):
    model = WorldModel(CONFIGS[name])
    # What cuts frames up lay directly in the frame stage then.
    weights = {key.replace("frame_stage.cutting.r", "frame_stage.r"): w for key, w in model.state_dict().items()}
    for key in [key for key in weights if key.endswith(("rate", "at_stride"))]:
        del weights[key]
    other = WorldModel(CONFIGS[name])
    other.load_state_dict(weights)
    assert other.frame_stage.cutting.router.rate == model.frame_stage.cutting.router.rate
    assert not other.frame_stage.cutting.at_stride


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"chunks_first": 12.0, "max_chunks": 12}, "not chunks_first=12.0"),
        ({"chunks_first": 7.0}, "max_chunks not below it, not chunks_first=7.0, max_chunks=6"),
        ({"boundary": "stride", "chunks_first": 7.0}, "chunks_first needs boundaries that can move, not 'stride'"),
    ],
)
def test_a_beginning_that_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        WorldModel(replace(LEARNED, frame=replace(LEARNED.frame, **changes)))
    with pytest.raises(ValueError, match="extra_first is where extra begins"):
        CausalConfig(extra_first=1.0)
