"""Growing: at that moment nothing is said that was not said before, and from then on everything learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import CONFIGS, LEARNED, STRIDE, random_actions, random_batch, random_frames, random_model
from test_training import Noise

from worldmodel.checkpoint import load_model, save_model
from worldmodel.config import FrameConfig, ModelConfig, TimeConfig
from worldmodel.losses import LossConfig, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.outputs import StepOutput
from worldmodel.patches import Patches
from worldmodel.specs import ObservationSpec
from worldmodel.state import DreamState
from worldmodel.training import TrainConfig, Trainer

IMAGES = ["stride", "learned", "extra", "stride_extra", "gaussian", "slotted", "box"]
ODD = replace(STRIDE, observation=ObservationSpec(shape=(10, 14, 1)))  # patches of 4 pixels reach over the edge


def encode(model: WorldModel, frames: torch.Tensor):
    stage = model.frame_stage
    patches = stage.patches(frames)
    return stage.encode(stage.look(patches), patches, None)


def doubled(frames: torch.Tensor, times: int = 1) -> torch.Tensor:
    """Every pixel of `(n, H, W, C)` four times."""
    return frames.repeat_interleave(2**times, 1).repeat_interleave(2**times, 2)


def halved(frames: torch.Tensor) -> torch.Tensor:
    """The mean of each 2x2 pixels of `(n, H, W, C)`, not rounded."""
    n, H, W, C = frames.shape
    return frames.float().view(n, H // 2, 2, W // 2, 2, C).mean((2, 4))


def said(model: WorldModel, frames: torch.Tensor, steps: int = 3) -> list[tuple[DreamState, StepOutput, torch.Tensor]]:
    """What the model makes of some first frames and then dreams, with its pictures."""
    state, out = model.observe(model.initial_state(len(frames), 3), None, frames, torch.ones(len(frames)).bool())
    told = [(state, out, model.decode(out))]
    for i in range(steps):
        state, out = model.imagine(state, random_actions(model.config, len(frames), seed=i))
        told.append((state, out, model.decode(out)))
    return told


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("config", [*(CONFIGS[name] for name in IMAGES), ODD], ids=[*IMAGES, "odd"])
def test_what_has_just_grown_says_the_same_bits_of_a_doubled_picture(config: ModelConfig, times: int) -> None:
    model = grown = random_model(config)
    for _ in range(times):
        grown = grown.grow()
    frames = random_frames(config, 4, 1)
    assert not grown.training
    assert grown.config.observation.shape == (*(2**times * n for n in frames.shape[1:3]), frames.shape[3])
    for small, large in zip(said(model, frames), said(grown, doubled(frames, times)), strict=True):
        assert all(torch.equal(value, large[0].tensors[name]) for name, value in small[0].tensors.items())
        assert all(torch.equal(value, large[1].tensors[name]) for name, value in small[1].tensors.items())
        assert torch.equal(doubled(small[2], times), large[2])


@pytest.mark.parametrize("name", ["stride", "learned"])
def test_what_has_just_grown_sees_a_large_picture_as_the_mean_of_its_pixels(name: str) -> None:
    """No two pixels of these pictures are alike."""
    model = random_model(CONFIGS[name])
    grown = model.grow()
    frames = random_frames(grown.config, 4, 1)
    with torch.no_grad():
        small, large = encode(model, halved(frames)), encode(grown, frames)
    assert torch.equal(small[0].start, large[0].start)
    torch.testing.assert_close(small[1], large[1], atol=1e-5, rtol=1e-5)


FOLLOWED = replace(STRIDE, time=TimeConfig(layers="m1", changes=3.0))


def changed(model: WorldModel, frames: torch.Tensor) -> torch.Tensor:
    """Which patches are new in the frames of one episode, `(T, P)`."""
    row = torch.arange(len(frames)).unsqueeze(0)
    start = row == 0
    batch = replace(random_batch(model.config, rows=1, length=len(frames)), frames=frames, index=row, start=start)
    with torch.no_grad():
        seen = model.eval()(replace(batch, first=start), torch.zeros(1, dtype=torch.int64)).seen
    assert seen.changed is not None
    return seen.changed[0]


def test_what_has_just_grown_calls_the_same_patches_new() -> None:
    model = WorldModel(FOLLOWED)  # all that moves is new
    frames = random_frames(FOLLOWED, 3, 1)
    frames[1, :5] = frames[0, :5]
    small = changed(model, frames)
    assert 0 < small[1].sum() < len(small[1])
    assert torch.equal(changed(model.grow(), doubled(frames)), small)


def test_what_has_grown_sees_a_change_that_leaves_the_means_of_pixels_as_they_were() -> None:
    grown = WorldModel(FOLLOWED).grow()
    size = random_frames(grown.config, 1, 0).shape
    row, column = torch.arange(size[1])[:, None, None], torch.arange(size[2])[:, None]
    board = (200 * ((row + column) % 2)).expand(size[1:]).to(torch.uint8)
    assert changed(grown, torch.stack([board, 200 - board, 200 - board])).all(1).tolist() == [True, True, False]


def test_64_pixels_become_128() -> None:
    config = replace(LEARNED, observation=ObservationSpec(shape=(64, 64, 3)), frame=replace(LEARNED.frame, patch=8))
    model = random_model(config)
    grown = model.grow()
    frames = random_frames(config, 3, 1)
    small, large = said(model, frames), said(grown, doubled(frames))
    assert large[0][2].shape == (3, 128, 128, 3)
    assert all(torch.equal(doubled(a[2]), b[2]) for a, b in zip(small, large, strict=True))
    batch = random_batch(grown.config)
    loss, _ = world_model_loss(
        grown.train(), batch, LossConfig(), key=torch.arange(3), generator=torch.Generator().manual_seed(0)
    )
    loss.backward()
    assert loss.isfinite()


def random_grown(config: ModelConfig, times: int = 1) -> WorldModel:
    """A model that has grown and in which nothing is zero any more."""
    model = random_model(config)
    for _ in range(times):
        model = model.grow()
    return with_noise(model)


@torch.no_grad()
def with_noise(model: WorldModel) -> WorldModel:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape)
    return model


def test_the_outermost_starts_from_the_weights_of_what_it_is_around() -> None:
    once = random_grown(STRIDE)
    twice = once.grow()
    inside, new = once.frame_stage.outer.stages[0], twice.frame_stage.outer.stages[1]
    for name, value in inside.state_dict().items():
        given = new.state_dict()[name]
        if name in ("merge.weight", "paint.weight", "paint.bias"):
            assert not given.any(), name
        elif name in ("place", "decoder_place"):
            assert all(torch.equal(given[i::4], value) for i in range(4)), name
        else:
            assert torch.equal(given, value), name
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value), name


@pytest.mark.parametrize("times", [1, 2])
def test_children_lie_where_their_pixels_are(times: int) -> None:
    """Each child is a square of its parent, and they are put together again as they were cut."""
    config = random_grown(STRIDE, times).config
    outer = WorldModel(config).frame_stage.outer
    frames = random_frames(config, 2, 1)
    coarse = Patches(config.observation, 4 * 2**times)(frames)
    children = outer._split(coarse, times)
    assert torch.equal(outer._join(children, times), coarse)
    fine = Patches(config.observation, 4)(frames)  # the same squares, row by row over the whole picture
    rows, columns = config.observation.shape[0] // 4, config.observation.shape[1] // 4
    for place in range(rows * columns):
        row, column, index = place // columns, place % columns, 0
        for bit in range(times - 1, -1, -1):
            index = 4 * index + 2 * (row >> bit & 1) + (column >> bit & 1)
        parent = (row >> times) * (columns >> times) + (column >> times)
        assert torch.equal(children[:, parent * 4**times + index], fine[:, place])


@pytest.mark.parametrize("name", ["stride", "learned"])
def test_every_pixel_of_a_large_picture_is_seen_and_painted(name: str) -> None:
    """Beyond the mean of four: pictures with the same means are told apart, and four pixels may differ."""
    model = random_grown(CONFIGS[name])
    stage = model.frame_stage
    frames = random_frames(model.config, 2, 1).float().requires_grad_()
    chunks, posterior, _ = encode(model, frames)
    (gradient,) = torch.autograd.grad(posterior[chunks.valid].square().sum(), frames)
    assert (gradient != 0).all()
    four = gradient.view(2, 12, 2, 16, 2, 3)
    assert (four[:, :, 0, :, 0] != four[:, :, 1, :, 1]).all()
    painted = stage.decode(torch.randn(2, chunks.start.shape[1], model.latent.width), None, chunks)
    squares = painted.view(2, 12, 8, 8, 3)
    assert (squares[:, :, ::2] != squares[:, :, 1::2]).all()
    assert (squares[:, :, :, ::2] != squares[:, :, :, 1::2]).all()


@pytest.mark.parametrize("name", ["stride", "learned"])
def test_a_grown_model_still_steps_as_it_runs_whole_rows(name: str) -> None:
    model = random_grown(CONFIGS[name])
    batch = random_batch(model.config, rows=2, length=6)
    batch.first[:], batch.start[:] = False, False
    batch.first[:, 0], batch.start[:, 0] = True, True
    key = torch.tensor([5, 2**40])
    with torch.no_grad():
        seen = model(batch, key)
    state = model.initial_state(2, key)
    for t in range(6):
        frames = batch.frames[batch.index[:, t]]
        state, out = model.observe(state, batch.action[:, t], frames, batch.first[:, t])
        torch.testing.assert_close(out.feature[:, : seen.y_last.shape[-1]], seen.y_last[:, t], rtol=1e-4, atol=1e-4)


def test_plain_models_are_as_they_were() -> None:
    torch.manual_seed(0)
    model = WorldModel(STRIDE)
    assert model.frame_stage.outer is None
    assert not [name for name in model.state_dict() if "outer" in name]


@pytest.mark.parametrize("begun", ["grown", "anew"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["stride", "learned"])
def test_everything_learns_within_three_updates(tmp_path: Path, name: str, times: int, begun: str) -> None:
    model = random_model(CONFIGS[name])
    for _ in range(times):
        model = model.grow()
    if begun == "anew":
        torch.manual_seed(0)
        model = WorldModel(model.config)
    learner = Trainer(model.train(), Noise(model.config), tmp_path, TrainConfig(pictures_first=0))
    source, moved = iter(learner.batches), set[str]()
    for _ in range(3):
        learner.step(next(source))
        moved |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    still = {n for n, _ in model.named_parameters()} - moved
    assert not still


def test_a_grown_model_is_saved_loaded_and_grows_on(tmp_path: Path) -> None:
    model = random_grown(LEARNED)
    save_model(tmp_path, model, {"id": None})
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    frames = random_frames(model.config, 2, 1)
    for a, b in zip(said(model, frames), said(loaded, frames), strict=True):
        assert torch.equal(a[1].feature, b[1].feature) and torch.equal(a[2], b[2])
    again = loaded.grow()
    assert all(p.requires_grad for p in again.parameters())  # those of a loaded model do not learn
    assert torch.equal(doubled(said(loaded, frames)[2][2]), said(again, doubled(frames))[2][2])


def test_a_grown_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    def learner(folder: str) -> Trainer:
        model = random_model(LEARNED).grow()
        config = TrainConfig(warmup=5, pictures_first=3, average=0.9)
        return Trainer(model, Noise(model.config), tmp_path / folder, config)

    whole, broken, resumed = learner("whole"), learner("broken"), learner("broken")
    whole.train(updates=6, progress=False)
    broken.train(updates=4, progress=False)
    with_noise(resumed.model)
    resumed.resume()
    resumed.train(updates=6, progress=False)
    for name, value in whole.averaged_model().state_dict().items():
        assert torch.equal(value, resumed.averaged_model().state_dict()[name]), name


@pytest.mark.parametrize("name", ["vector", "vector_learned", "grid"])
def test_only_images_grow(name: str) -> None:
    kind = CONFIGS[name].observation.kind
    with pytest.raises(ValueError, match=f"only models of images can grow.*'{kind}' has no half size"):
        WorldModel(CONFIGS[name]).grow()


@pytest.mark.parametrize("grown", [-1, 1.0])
def test_a_model_grows_a_whole_number_of_times(grown: float) -> None:
    with pytest.raises(ValueError, match="grown must be a whole number"):
        FrameConfig(grown=grown)


def test_a_model_that_has_grown_has_arrived_at_its_targets_and_uses_its_router() -> None:
    config = replace(
        LEARNED,
        frame=replace(LEARNED.frame, chunks=3.0, chunks_first=6.0),
        time=TimeConfig(layers="m1", changes=2.0, changes_first=5.0),
        causal=(replace(LEARNED.causal[0], extra=1.0, extra_first=0.5),),
    )
    model = random_model(config)
    model.anneal(frames=0.0, causal=0.0)
    model.frame_stage.cutting.hold_stride(True)
    grown = model.grow()
    assert grown.config.first_targets == ()
    model.anneal(frames=1.0, causal=1.0)
    rates = {name: value for name, value in model.state_dict().items() if name.endswith(".rate")}
    assert len(rates) == 3 and all(torch.equal(value, grown.state_dict()[name]) for name, value in rates.items())
    assert not grown.frame_stage.cutting.at_stride
