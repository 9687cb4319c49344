"""The frame stage: patches and back, chunks that cover a frame, and nothing that crosses from frame to frame."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CONFIGS, LEARNED, STRIDE, random_frames, random_model

from worldmodel.chunks import Chunks
from worldmodel.config import FrameConfig
from worldmodel.model import WorldModel
from worldmodel.patches import Patches
from worldmodel.specs import ObservationSpec


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    channels=st.integers(1, 4),
    patch=st.integers(1, 6),
    kind=st.sampled_from(["image", "grid"]),
)
def test_patches_of_any_image_or_grid_and_back(height, width, channels, patch, kind):
    patches = Patches(ObservationSpec(shape=(height, width, channels), kind=kind, scale=255.0), patch)
    frames = torch.randint(0, 256, (3, height, width, channels), dtype=torch.uint8)
    cut = patches(frames)
    assert cut.shape == (3, patches.count, patches.values)
    back = patches.inverse(cut)
    assert back.dtype == torch.uint8
    assert torch.equal(back, frames)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(size=st.integers(1, 9), patch=st.integers(1, 4), dtype=st.sampled_from(["float32", "uint8"]))
def test_patches_of_any_vector_and_back(size, patch, dtype):
    patches = Patches(ObservationSpec(shape=(size,), dtype=dtype, kind="vector", scale=2.0), patch)
    assert patches.count == -(-size // patch)
    vectors = torch.randint(0, 256, (3, size), dtype=torch.uint8) if dtype == "uint8" else 10 * torch.randn(3, size)
    back = patches.inverse(patches(vectors))
    assert back.dtype == vectors.dtype
    torch.testing.assert_close(back, vectors)


def test_a_patch_holds_its_own_square_of_pixels():
    patches = Patches(ObservationSpec(shape=(4, 6, 1)), 2)
    frames = torch.zeros(1, 4, 6, 1, dtype=torch.uint8)
    frames[0, 2:4, 2:4] = 255  # second row of patches, second column
    assert patches(frames)[0].sum(-1).tolist() == [0, 0, 0, 0, 4, 0]


def test_values_out_of_range_are_clipped_and_rounded():
    patches = Patches(ObservationSpec(shape=(1, 4, 1)), 1)
    painted = torch.tensor([-3.0, 0.5, 0.9999, 7.0]).view(1, 4, 1)
    assert patches.inverse(painted).flatten().tolist() == [0, 128, 255, 255]


def test_vectors_are_normalised_by_the_data_and_constant_entries_survive():
    patches = Patches(ObservationSpec(shape=(3,), dtype="float32", kind="vector", scale=1.0), 1)
    data = torch.randn(500, 3) * torch.tensor([1e-2, 50.0, 0.0]) + torch.tensor([5.0, -100.0, 3.0])
    patches.fit(data)
    seen = patches(data).squeeze(-1)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(patches.inverse(patches(data)), data, rtol=1e-4, atol=1e-4)


def test_one_vector_alone_can_be_fitted():
    patches = Patches(ObservationSpec(shape=(2,), dtype="float32", kind="vector", scale=1.0), 1)
    patches.fit(torch.tensor([[3.0, -1.0]]))
    assert patches(torch.tensor([[3.0, -1.0]])).flatten().tolist() == [0, 0]


def test_chunks_from_starts():
    chunks = Chunks.at(torch.tensor([[0, 2, 5], [0, 3, 0]]), torch.tensor([[True, True, True], [True, True, False]]), 6)
    assert chunks.of_patch.tolist() == [[0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1]]


def encode(model, frames):
    stage = model.frame_stage
    with torch.no_grad():
        patches = stage.patches(frames)
        return stage.encode(stage.look(patches), patches, torch.ones(len(frames)))


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_cover_every_patch_in_order(name):
    config = CONFIGS[name]
    model = random_model(config)
    P = model.frame_stage.patches.count
    chunks, posterior, _ = encode(model, random_frames(config, 40, 1))
    count = chunks.valid.sum(1)
    assert posterior.shape == (40, chunks.start.shape[1], model.latent.parameters)
    for i in range(40):
        start = chunks.start[i, chunks.valid[i]].tolist()
        assert start[0] == 0
        assert sorted(set(start)) == start
        assert chunks.valid[i].tolist() == sorted(chunks.valid[i].tolist(), reverse=True)  # present ones come first
        expected = [sum(s <= p for s in start) - 1 for p in range(P)]
        assert chunks.of_patch[i].tolist() == expected
    if config.frame.boundary in ("stride", "none"):
        wanted = sum(chunks for _, chunks in config.frame.targets)
        assert (count == (P if config.frame.boundary == "none" else wanted)).all()
    else:
        assert len(count.unique()) > 1  # or the tests of ragged rows would test nothing
        assert count.max() <= config.frame.max_chunks


@pytest.mark.parametrize("cap", [1, 2, 5])
def test_the_cap_keeps_the_most_probable_boundaries(cap):
    torch.manual_seed(0)
    frames = random_frames(LEARNED, 20, 3)
    model = random_model(LEARNED)
    with torch.no_grad():
        model.frame_stage.cutting.router.logit_tau -= 1.0  # a router that wants far too much
    model.frame_stage.cutting.max_chunks = model.frame_stage.patches.count
    free, _, routing = encode(model, frames)
    assert free.valid.sum(1).max() > 6
    model.frame_stage.cutting.max_chunks = cap
    capped, _, _ = encode(model, frames)
    assert capped.start.shape[1] <= cap
    for i in range(20):
        wanted = free.start[i, free.valid[i]].tolist()[1:]
        best = sorted(wanted, key=lambda p: -routing.probability[i, p])[: cap - 1]
        assert capped.start[i, capped.valid[i]].tolist() == [0, *sorted(best)]


@pytest.mark.parametrize(
    "name", ["stride", "learned", "tried", "surprise", "none", "change", "random", "vector_learned", "grid"]
)
def test_nothing_crosses_from_frame_to_frame(name):
    model = random_model(CONFIGS[name])
    frames = random_frames(CONFIGS[name], 10, 5)
    order = torch.randperm(10)
    chunks, posterior, _ = encode(model, frames)
    shuffled, posterior_shuffled, _ = encode(model, frames[order])
    assert torch.equal(chunks.start[order], shuffled.start)
    assert torch.equal(chunks.valid[order], shuffled.valid)
    torch.testing.assert_close(posterior[order], posterior_shuffled, rtol=1e-4, atol=1e-5)
    for i in range(10):  # nor does a frame see how many others there are
        alone, posterior_alone, _ = encode(model, frames[i : i + 1])
        n = int(chunks.valid[i].sum())
        assert alone.start.tolist() == [chunks.start[i, :n].tolist()]
        torch.testing.assert_close(posterior[i, :n], posterior_alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["stride", "learned"])
def test_painting_does_not_cross_frames_and_ignores_absent_chunks(name):
    model = random_model(CONFIGS[name])
    stage = model.frame_stage
    chunks, _, _ = encode(model, random_frames(CONFIGS[name], 6, 7))
    K = chunks.start.shape[1]
    latent, past = torch.randn(6, K, model.latent.width), torch.randn(6, K, CONFIGS[name].causal[0].width)
    with torch.no_grad():
        painted = stage.decode(latent, past, chunks)
        order = torch.tensor([3, 0, 5, 1, 2, 4])
        torch.testing.assert_close(
            stage.decode(latent[order], past[order], chunks.rows(order)), painted[order], rtol=1e-4, atol=1e-5
        )
        absent = ~chunks.valid.unsqueeze(-1)
        garbage = stage.decode(latent.masked_fill(absent, 1e6), past.masked_fill(absent, -1e6), chunks)
    assert torch.equal(garbage, painted)


@pytest.mark.parametrize("name", ["stride", "learned"])
def test_every_patch_of_the_posterior_and_of_the_picture_matters(name):
    model = random_model(CONFIGS[name])
    stage = model.frame_stage
    patches = stage.patches(random_frames(CONFIGS[name], 1, 8)).requires_grad_()
    chunks, posterior, _ = stage.encode(stage.look(patches), patches, torch.ones(1))
    (gradient,) = torch.autograd.grad(posterior[chunks.valid].square().sum(), patches)
    assert (gradient.abs().sum(-1) > 0).all()
    K = chunks.start.shape[1]
    latent = torch.randn(1, K, model.latent.width, requires_grad=True)
    painted = stage.decode(latent, torch.zeros(1, K, CONFIGS[name].causal[0].width), chunks)
    for k in range(int(chunks.valid.sum())):
        patch = (chunks.of_patch[0] == k).nonzero()[0, 0]
        (gradient,) = torch.autograd.grad(painted[0, patch].sum(), latent, retain_graph=True)
        assert gradient[0, k].abs().sum() > 0


def test_pictures_that_look_alike_everywhere_do_not_starve_the_router():
    """Constant pictures: patches differ by their place alone."""
    torch.manual_seed(0)
    model = WorldModel(LEARNED)
    colours = torch.randint(0, 256, (30, 1, 1, 3), dtype=torch.uint8)
    frames = colours.expand(30, *LEARNED.observation.shape)
    model.train()
    encode(model, frames)
    model.eval()
    chunks, _, routing = encode(model, frames)
    assert 0.5 < routing.hard_rate / model.frame_stage.cutting.router.rate < 2
    assert chunks.valid.sum(1).float().mean() == pytest.approx(4, abs=1.2)


def test_training_holds_the_wanted_number_of_chunks():
    """While encoder and decoder learn to paint, tau keeps the rate: in every update, within a tenth."""
    torch.manual_seed(0)
    config = replace(
        LEARNED,
        observation=ObservationSpec(shape=(28, 28, 3)),
        frame=replace(LEARNED.frame, chunks=7.0, max_chunks=24),
    )
    model = WorldModel(config).train()
    stage = model.frame_stage
    colours = torch.tensor([[0, 0, 0], [100, 100, 100], [0, 255, 0], [255, 255, 0]], dtype=torch.uint8)
    optimizer = torch.optim.AdamW(stage.parameters(), 3e-3)
    g = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(120):
        kinds = (4 * torch.rand(24, 7, 7, generator=g) * torch.rand(24, 7, 7, generator=g)).long()
        patches = stage.patches(colours[kinds].repeat_interleave(4, 1).repeat_interleave(4, 2))
        chunks, posterior, routing = stage.encode(stage.look(patches), patches, torch.ones(24))
        latent = model.latent.mode(posterior)
        painted = stage.decode(latent, latent.new_zeros(*latent.shape[:2], config.causal[0].width), chunks)
        loss = (painted - patches).abs().sum((1, 2)).mean() + 0.03 * routing.ratio_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append(routing.hard_rate.item() / stage.cutting.router.rate)
    assert rates == pytest.approx([1] * 120, abs=0.1)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"chunks": 13.0}, "12 patches cannot have 13.0 chunks"),
        ({"chunks": 0.0}, "chunks must be a number above 0, not 0.0"),
        ({"chunks": 0.5}, "12 patches cannot have 0.5 chunks"),
        ({"patch": 0}, "patch must be a whole number above 0, not 0"),
        ({"heads": None}, "heads must be a whole number, not None"),
        ({"boundary": "learned", "chunks": 1.0}, "between 1 and"),
        ({"boundary": "learned", "chunks": 12.0, "max_chunks": 12}, "between 1 and"),
        ({"boundary": "learned", "max_chunks": 3}, "max_chunks"),
        ({"boundary": "change", "chunks": 1.0}, "change boundaries need a number of chunks between 1 and the 12"),
        ({"boundary": "random", "max_chunks": 3}, "random boundaries need .* max_chunks not below it"),
        ({"boundary": "learned", "max_chunks": -1}, "max_chunks"),
        ({"boundary": "learned", "patch": 16, "chunks": 1.0}, "between 1 and"),
        ({"heads": 3}, "3 heads"),
        ({"encoder_layers": "Q7"}, "layers must read like"),
    ],
)
def test_frames_that_cannot_be_chunked_that_way_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        WorldModel(replace(STRIDE, frame=replace(STRIDE.frame, **changes)))


def test_an_unknown_boundary_is_named():
    with pytest.raises(ValueError, match="stride"):
        FrameConfig(boundary="nowhere")
