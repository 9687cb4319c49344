"""Observations of several modalities: cut up and painted each by itself, chunked each at its own rate."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_dot import CONFIG, FRAMES, GOAL, PLACES, Ring
from small_models import (
    BESIDE,
    CONFIGS,
    RECORD,
    STRIDE,
    random_actions,
    random_batch,
    random_frames,
    random_model,
    random_observations,
)
from test_model import KEY
from test_training import QUICK

from worldmodel.config import BesideConfig, ModelConfig
from worldmodel.losses import start_loss
from worldmodel.modalities import Modalities
from worldmodel.model import WorldModel
from worldmodel.presets import preset
from worldmodel.specs import ObservationSpec
from worldmodel.training import Trainer

ROUTED = ("learned", "tried", "surprise", "change", "random")
# Three modalities of which each could have many chunks, and each is to have another number.
MANY = ObservationSpec.record(
    [
        ObservationSpec(name="wide", shape=(8, 32, 3)),
        ObservationSpec(name="map", kind="grid", shape=(4, 4, 3), scale=10.0),
        ObservationSpec(name="numbers", kind="vector", shape=(20,), dtype="float32", scale=1.0),
    ]
)
TARGETS = (6.0, 3.0, 9.0)


def many(boundary: str, **settings) -> ModelConfig:
    beside = (BesideConfig(chunks=TARGETS[1]), BesideConfig(chunks=TARGETS[2]))
    frame = {"boundary": boundary, "chunks": TARGETS[0], "beside": beside, "max_chunks": 40} | settings
    return replace(STRIDE, observation=MANY, frame=replace(STRIDE.frame, **frame))


def chunks_of(model: WorldModel, frames: torch.Tensor) -> torch.Tensor:
    """Chunks of each modality: `(n, modalities)`."""
    stage = model.frame_stage
    patches = stage.patches(frames)
    with torch.no_grad():
        chunks, _, _ = stage.encode(stage.look(patches), patches, torch.ones(len(frames)))
    part = stage.patches.part[chunks.start]
    return torch.stack([((part == i) & chunks.valid).sum(1) for i in range(len(stage.patches.counts))], dim=1)


modality = st.one_of(
    st.builds(
        lambda h, w, kind: ObservationSpec(shape=(h, w, 3), kind=kind),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from(["image", "grid"]),
    ),
    st.builds(lambda n: ObservationSpec(shape=(n,), kind="choice", scale=1.0), st.integers(1, 6)),
    st.builds(
        lambda n, dtype: ObservationSpec(shape=(n,), kind="vector", dtype=dtype, scale=2.0),
        st.integers(1, 6),
        st.sampled_from(["uint8", "float32"]),
    ),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parts=st.lists(modality, min_size=1, max_size=4),
    size=st.integers(1, 4),
    order=st.sampled_from(["raster", "hilbert"]),
    n=st.sampled_from([1, 5]),
)
def test_patches_of_any_record_and_back(parts, size, order, n):
    spec = ObservationSpec.record(parts)
    patches = Modalities(spec, (size,) * len(parts), order)
    frames = random_observations(spec, n, seed=0)
    cut = patches(frames)
    assert cut.shape == (n, patches.count, patches.values) and len(patches.part) == patches.count
    assert (cut[:, ~patches.mask] == 0).all()  # nobody writes into the columns of the others
    back = patches.inverse(cut)
    assert back.dtype == torch.uint8 and back.shape == frames.shape
    for part, place in zip(spec.parts, spec.places):
        kind = torch.uint8 if part.dtype == "uint8" else torch.float32
        a, b = (rows[:, place].flatten().clone().view(kind) for rows in (frames, back))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_what_can_be_shown_comes_first_and_a_choice_is_one_of_its_values():
    assert [part.name for part in RECORD.parts] == ["camera", "speed", "heading"]
    assert RECORD.shown is RECORD.parts[0] and RECORD.shape == (8 * 12 * 3 + 5 * 4 + 4,)
    patches = WorldModel(CONFIGS["record"]).frame_stage.patches
    noise = torch.randn(50, patches.count, patches.values, generator=torch.Generator().manual_seed(0))
    heading = patches.inverse(noise)[:, RECORD.places[2]]
    assert (heading.sum(1) == 1).all() and len(heading.unique(dim=0)) == 4


def test_vectors_in_a_record_are_normalised_by_the_data():
    patches = WorldModel(CONFIGS["record"]).frame_stage.patches
    frames = random_frames(CONFIGS["record"], 500, 1)
    place = RECORD.places[1]
    speed = frames[:, place].contiguous().view(torch.float32) * 20 + 7
    frames[:, place] = speed.view(torch.uint8)
    patches.fit(frames)
    seen = patches(frames)[:, patches.part == 1].sum(-1)
    torch.testing.assert_close(seen.mean(0), torch.zeros(5), atol=1e-2, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(5), atol=1e-2, rtol=0)


@pytest.mark.parametrize("boundary", ["stride", *ROUTED])
def test_each_modality_has_the_number_of_chunks_that_is_wanted_of_it(boundary):
    torch.manual_seed(0)
    config = many(boundary)
    model = WorldModel(config).train()
    for seed in range(200):
        chunks_of(model, random_frames(config, 10, seed))
    count = chunks_of(model, random_frames(config, 300, 1000)).float()
    assert count.mean(0).tolist() == pytest.approx(TARGETS, rel=0.12)
    if boundary == "stride":
        assert (count == torch.tensor(TARGETS)).all()
    assert (count >= 1).all()  # no chunk reaches from one modality into the next


def test_the_target_of_each_modality_moves_by_itself():
    beside = (BesideConfig(chunks=3.0), BesideConfig(chunks=4.0, chunks_first=16.0))
    model = WorldModel(many("learned", chunks_first=12.0, beside=beside))
    seen = []
    for progress in (0.0, 0.5, 1.0):
        model.anneal(frames=progress, causal=progress)
        rates = [router.rate.item() for router in model.frame_stage.cutting.routers]
        seen.append([1 + rate * (count - 1) for rate, count in zip(rates, model.frame_stage.patches.counts)])
    for found, wanted in zip(seen, [[12, 3, 16], [72**0.5, 3, 8], [6, 3, 4]]):
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["record", "record_learned"])
def test_a_dream_starts_a_chunk_at_the_first_patch_of_each_modality(name):
    model = random_model(CONFIGS[name])
    batch = random_batch(CONFIGS[name], rows=3, length=4)
    first = torch.ones(3, dtype=torch.bool)
    state, _ = model.observe(model.initial_state(3), None, batch.frames[batch.index[:, 0]], first)
    counts = model.frame_stage.patches.counts
    wanted = torch.tensor([0, counts[0], counts[0] + counts[1]])
    seen = set()
    for t in range(20):
        state, out = model.imagine(state, random_actions(CONFIGS[name], 3, seed=t))
        for start in out.starts:
            assert set(wanted.tolist()) <= set(start.tolist())
        seen.add(tuple(out.chunks.tolist()))
        frames = model.decode(out)
        assert frames.dtype == torch.uint8 and frames.shape == (3, *RECORD.shape)
    assert len(seen) == 1 if name == "record" else len(seen) > 1


@pytest.mark.parametrize("boundary", ROUTED)
def test_a_full_frame_keeps_chunks_for_the_modalities_to_come(boundary):
    """In the encoder and in dreams, where a router wants far more than there may be."""
    config = many(boundary, max_chunks=18)
    model = random_model(config)
    for router in model.frame_stage.cutting.routers:
        router.logit_tau -= 8.0
    with torch.no_grad():
        model.prior.start.bias -= 5.0 * torch.arange(len(model.prior.start.bias))  # as near as can be
    opening = {0, *torch.tensor(model.frame_stage.patches.counts).cumsum(0)[:-1].tolist()}
    frames = random_frames(config, 40, 5)
    frames[:20] = frames[:1]
    counts = chunks_of(model, frames)
    assert (counts >= 1).all() and counts.sum(1).max() == 18
    state, _ = model.observe(model.initial_state(40), None, frames, torch.ones(40, dtype=torch.bool))
    full = 0
    for t in range(6):
        state, out = model.imagine(state, random_actions(config, 40, seed=t))
        full += int((out.chunks == 18).sum())
        assert all(opening <= set(start.tolist()) for start in out.starts)
    assert full > 10
    batch = random_batch(config, rows=3, length=5)
    with torch.no_grad():
        loss, _ = start_loss(model, model(batch, KEY))
    assert loss.isfinite().all()


def test_equally_probable_boundaries_never_crowd_out_a_modality():
    config = many("change", max_chunks=18)
    model = WorldModel(config).eval()
    model.frame_stage.cutting.routers[0].logit_tau.fill_(
        -18.0
    )  # as where most frames are of one colour: p is 1 to the bit
    counts = chunks_of(model, random_frames(config, 20, 0))
    assert (counts >= 1).all() and (counts.sum(1) <= 18).all()


def test_one_of_many_choices_is_learned():
    """Of 200 states, each shown as a one-hot: what a squared error would hardly move."""
    torch.manual_seed(0)
    spec = ObservationSpec(shape=(200,), kind="choice", scale=0.1)
    frame, latent = replace(CONFIG.frame, patch=200, chunks=1.0), replace(CONFIG.latent, groups=8)
    config = replace(CONFIG, observation=spec, frame=frame, latent=latent)
    stage, latent = (model := WorldModel(config)).frame_stage, model.latent
    frames = torch.eye(200, dtype=torch.uint8)
    optimizer = torch.optim.AdamW(stage.parameters(), 5e-3)
    for _ in range(300):
        patches = stage.patches(frames)
        chunks, posterior, _ = stage.encode(stage.look(patches), patches, None)
        painted = stage.decode(latent.infer(posterior, torch.zeros(())), None, chunks)
        loss = stage.patches.error(painted, patches).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (stage.patches.inverse(painted) == frames).all(1).float().mean() > 0.9


def test_patches_that_stay_are_in_no_chunk_and_each_modality_still_begins_its_own():
    config = replace(many("learned", max_chunks=20), time=replace(STRIDE.time, layers="m1", changes=20.0))
    model = random_model(config)
    batch = random_batch(config, rows=3, length=6)
    with torch.no_grad():
        seen = model(batch, KEY)
    part, P = model.frame_stage.patches.part, model.frame_stage.patches.count
    changed = seen.seen.changed.flatten(0, 1)
    chunks = seen.chunks
    assert 0 < changed.float().mean() < 1
    for frame in range(len(changed)):
        starts = chunks.start[frame, chunks.valid[frame]]
        for i in range(3):
            new = torch.arange(P)[changed[frame] & (part == i)]
            if len(new):
                assert new[0] in starts


def test_presets_know_what_to_make_of_every_modality():
    for name in ("tiny", "small"):
        config = preset(name, RECORD, STRIDE.action)
        assert [part.patch for part in (config.frame, *config.frame.beside)] == [8, 1, 4]
        model = WorldModel(replace(STRIDE, observation=RECORD, frame=replace(config.frame, width=16, heads=2)))
        assert model.frame_stage.cutting.max_chunks == sum(chunks for _, chunks in config.frame.targets)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"beside": BESIDE[:1]}, "3 modalities, so frame.beside must describe all but the first, not 1"),
        ({"beside": (BesideConfig(chunks=6.0), BESIDE[1])}, "5 patches cannot have 6.0 chunks"),
        ({"boundary": "learned", "max_chunks": 5}, "max_chunks=5 is below the 6.0 chunks of all modalities together"),
        ({"boundary": "change", "beside": (BesideConfig(chunks=5.0), BESIDE[1])}, "between 1 and the 5 patches"),
        ({"boundary": "random", "chunks": 1.0, "beside": (BESIDE[1], BESIDE[1])}, "a modality that is to have more"),
    ],
)
def test_modalities_that_cannot_be_chunked_that_way_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        WorldModel(replace(CONFIGS["record"], frame=replace(CONFIGS["record"].frame, **changes)))


def test_a_stride_that_is_held_has_no_more_chunks_than_a_frame_may_have():
    """Each modality has a whole number of them: three halves of a chunk are two."""
    beside = (BesideConfig(chunks=2.6), BesideConfig(chunks=1.6, patch=2))
    with pytest.raises(ValueError, match=r"at a stride a frame has 8 chunks.*max_chunks is 7: set it to 8"):
        WorldModel(many("learned", chunks=2.6, max_chunks=7, beside=beside)).frame_stage.cutting.hold_stride(True)
    model = random_model(many("learned", chunks=2.6, max_chunks=8, beside=beside))
    model.frame_stage.cutting.hold_stride(True)
    with torch.no_grad():
        run = model(random_batch(model.config, rows=3, length=5), KEY)
    assert (run.chunks.valid.sum(-1) == 8).all()
    assert start_loss(model, run)[0].isfinite().all()


def test_parts_have_no_parts_and_nothing_else_has_any():
    with pytest.raises(ValueError, match="no other, has parts"):
        ObservationSpec(shape=(3,), kind="record")
    with pytest.raises(ValueError, match="no other, has parts"):
        ObservationSpec.record([RECORD])


# -- A world that no modality shows whole ------------------------------------------------------------------------------

GEARS = ObservationSpec.record(
    [
        ObservationSpec(name="view", shape=(8, 8, 1)),
        ObservationSpec(name="meter", kind="vector", shape=(1,), dtype="float32", scale=1.0),
        ObservationSpec(name="gear", kind="choice", shape=(2,), scale=1.0),
    ]
)
GEARED = replace(
    CONFIG,
    observation=GEARS,
    frame=replace(CONFIG.frame, beside=(BesideConfig(patch=1), BesideConfig(patch=2))),
)


class Geared(Ring):
    """The dot on its ring, seen by a camera; which way an action moves it only the gear tells, which "stay" changes.

    A meter shows how far it is around, in a unit of its own.
    """

    @staticmethod
    def records() -> torch.Tensor:
        place = torch.arange(PLACES).repeat(2)
        view = FRAMES[:PLACES].flatten(1).repeat(2, 1)
        meter = (100.0 * place[:, None]).view(torch.uint8)
        gear = torch.eye(2, dtype=torch.uint8).repeat_interleave(PLACES, 0)
        return torch.cat([view, meter, gear], dim=1)

    def step(self, place: int, gear: int, action: int) -> tuple[int, int]:
        return (place + (action - 1) * (1 - 2 * gear)) % PLACES, gear ^ (action == 1)


def test_a_world_that_no_modality_shows_whole_is_learned_from_all_of_them(tmp_path):
    torch.manual_seed(0)
    ring = Geared()
    ring.frames = records = ring.records()
    model = WorldModel(GEARED)
    model.frame_stage.patches.fit(records)
    learner = Trainer(model, ring, tmp_path, QUICK)
    learner.train(updates=600, progress=False)
    model = learner.averaged_model()

    g = torch.Generator().manual_seed(5)
    rows = 64
    place, gear = torch.randint(GOAL, (rows,), generator=g), torch.randint(2, (rows,), generator=g)
    state, _ = model.observe(
        model.initial_state(rows), None, records[gear * PLACES + place], torch.ones(rows, dtype=torch.bool)
    )
    alive = torch.ones(rows, dtype=torch.bool)
    right: dict[str, list[bool]] = {"view": [], "meter": [], "gear": [], "end": []}
    for _ in range(8):
        action = torch.randint(3, (rows,), generator=g)
        place, gear = (place + (action - 1) * (1 - 2 * gear)) % PLACES, gear ^ (action == 1).long()
        state, out = model.imagine(state, action, greedy=True)
        view, meter, choice = (model.decode(out)[:, at].contiguous() for at in GEARS.places)
        nearest = (view.float()[:, None] - FRAMES[:PLACES].flatten(1).float()[None]).abs().sum(-1).argmin(1)
        right["view"] += (nearest == place)[alive].tolist()
        right["meter"] += ((meter.view(torch.float32)[:, 0] - 100 * place).abs() < 25)[alive].tolist()
        right["gear"] += (choice.argmax(1) == gear)[alive].tolist()
        right["end"] += (out.terminated == (place == GOAL))[alive].tolist()
        alive &= place != GOAL
    assert {name: sum(seen) / len(seen) for name, seen in right.items()} == pytest.approx(
        dict.fromkeys(right, 1.0), abs=0.05
    )
