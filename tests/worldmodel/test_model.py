"""The model's invariants: stepping is the parallel pass, the future never moves the past, rows are alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, EXTRA, LEARNED, STRIDE, random_actions, random_batch, random_frames, random_model

from worldmodel.batch import Batch
from worldmodel.config import ModelConfig
from worldmodel.losses import LossConfig, picture_loss, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.outputs import Pass
from worldmodel.presets import preset
from worldmodel.state import DreamState

KEY = torch.tensor([11, 22, 33])
every_config = pytest.mark.parametrize("name", CONFIGS)


@torch.no_grad()
def parallel(model: WorldModel, batch: Batch, key: torch.Tensor = KEY) -> Pass:
    return model(batch, key)


def step_through(model: WorldModel, batch: Batch, row: int, piece: range, key: int) -> list[torch.Tensor]:
    """Features of one piece of one row, frame by frame from a fresh state."""
    state = model.initial_state(1, torch.tensor([key]), batch.elapsed[row : row + 1, piece.start])
    # A piece in mid-row draws with the row's own step numbers.
    state = DreamState(state.tensors | {"step": torch.tensor([piece.start])})
    features = []
    for t in piece:
        at = slice(row, row + 1)
        frame = batch.frames[batch.index[at, t]]
        state, out = model.observe(state, batch.action[at, t], frame, batch.first[at, t])
        features.append(out.feature[0])
    return features


def pieces(batch: Batch, row: int) -> list[range]:
    begins = [*batch.start[row].nonzero().flatten().tolist(), batch.start.shape[1]]
    return [range(a, b) for a, b in itertools.pairwise(begins)]


@every_config
def test_stepping_equals_the_parallel_pass_for_every_piece_of_every_row(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    batch = random_batch(config, rows=3, length=12, seed=5)
    whole = parallel(model, batch)
    E = config.causal[0].width
    for row in range(3):
        for piece in pieces(batch, row):
            features = step_through(model, batch, row, piece, int(KEY[row]))
            for t, feature in zip(piece, features):
                torch.testing.assert_close(feature[:E], whole.y_last[row, t], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["learned", "extra"])
def test_rows_of_different_chunk_counts_step_together_as_they_do_in_the_parallel_pass(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    batch = random_batch(config, rows=3, length=10, seed=3)
    batch.start[:] = False
    batch.start[:, 0] = batch.first[:, 0] = True
    batch.first[:, 1:] = False
    whole = parallel(model, batch)
    counts = whole.chunks.valid.sum(1).view(3, 10)
    assert len(counts[:, 1:].unique()) > 1 and (counts != counts[:1]).any(), "the rows must differ to test anything"
    state = model.initial_state(3, KEY)
    for t in range(10):
        state, out = model.observe(state, batch.action[:, t], batch.frames[batch.index[:, t]], batch.first[:, t])
        torch.testing.assert_close(out.feature[:, : config.causal[0].width], whole.y_last[:, t], atol=1e-4, rtol=1e-4)
        assert torch.equal(out.chunks, counts[:, t])


@every_config
def test_the_future_never_moves_the_past(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    batch = random_batch(config, rows=3, length=9, seed=7)
    before = parallel(model, batch)
    cut = 5
    other = replace(
        batch,
        frames=torch.cat([batch.frames, random_frames(config, 4, 999)]),
        index=batch.index.clone(),
        action=batch.action.clone(),
    )
    other.index[:, cut:] = len(batch.frames) + torch.arange(9 - cut)[None] % 4
    other.action[:, cut:] = random_actions(config, 3, 9 - cut, seed=77)
    after = parallel(model, other)
    K = min(before.y.shape[2], after.y.shape[2])
    torch.testing.assert_close(after.y[:, :cut, :1], before.y[:, :cut, :1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(after.y_last[:, :cut], before.y_last[:, :cut], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        after.posterior[:, :cut, : K - 1], before.posterior[:, :cut, : K - 1], atol=1e-6, rtol=1e-6
    )
    assert (after.y_last[:, cut:] - before.y_last[:, cut:]).abs().max() > 1e-3, "the change must arrive at all"


@every_config
def test_an_action_moves_the_frame_it_led_to_and_nothing_before(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    batch = random_batch(config, rows=3, length=8, seed=9)
    batch.first[:], batch.start[:] = False, False
    batch.first[:, 0] = batch.start[:, 0] = True
    other = replace(batch, action=batch.action.clone())
    for seed in range(50, 60):  # another action that really is another
        other.action[:, 4] = random_actions(config, 3, seed=seed)
        if (
            (other.action[:, 4] != batch.action[:, 4]).flatten(1).any(1).all()
            if batch.action.dim() > 2
            else (other.action[:, 4] != batch.action[:, 4]).all()
        ):
            break
    a, b = parallel(model, batch).y, parallel(model, other).y
    torch.testing.assert_close(a[:, :4], b[:, :4], atol=1e-6, rtol=1e-6)  # not the bits: there may be more main tokens
    # y at F_4 already knows the action: it is what the frame's first chunk is predicted from.
    assert ((a[:, 4, 0] - b[:, 4, 0]).abs().amax(-1) > 1e-5).all()


def test_the_action_of_a_first_frame_does_not_count() -> None:
    model = random_model(STRIDE)
    batch = random_batch(STRIDE, seed=2)
    other = replace(batch, action=torch.where(batch.first, 3, batch.action))
    assert torch.equal(parallel(model, batch).y, parallel(model, other).y)


@every_config
def test_rows_restart_alone(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    frames, action = (
        random_frames(config, 12, 1).view(4, 3, *config.observation.shape),
        random_actions(config, 3, seed=2),
    )
    state = model.initial_state(3, KEY)
    none = torch.zeros(3, dtype=torch.bool)
    for t in range(3):
        state, _ = model.observe(state, action, frames[t], ~none if t == 0 else none)
    middle = torch.tensor([False, True, False])
    _, together = model.observe(state, action, frames[3], middle)
    _, unbroken = model.observe(state, action, frames[3], none)
    fresh = model.initial_state(3, KEY)
    fresh = DreamState(fresh.tensors | {"step": state.tensors["step"]})
    _, begun = model.observe(fresh, action, frames[3], ~none)
    torch.testing.assert_close(together.feature[[0, 2]], unbroken.feature[[0, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.feature[1], begun.feature[1], atol=1e-5, rtol=1e-5)
    assert (together.feature[1] - unbroken.feature[1]).abs().max() > 1e-3


def dream(model: WorldModel, state: DreamState, steps: int = 5, seed: int = 3) -> torch.Tensor:
    features = []
    actions = random_actions(model.config, steps, 1, seed=seed).expand(
        steps, state.batch_size, *model.config.action.shape
    )
    for action in actions:
        state, out = model.imagine(state, action)
        features.append(out.feature)
    return torch.stack(features)


@every_config
def test_same_seed_same_bits_other_seed_other_dreams(name: str) -> None:
    model = random_model(CONFIGS[name])
    one, two = dream(model, model.initial_state(3, KEY)), dream(model, model.initial_state(3, KEY))
    assert torch.equal(one, two)
    assert (dream(model, model.initial_state(3, KEY + 1)) - one).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["stride", "extra", "gaussian"])
def test_what_a_row_dreams_does_not_depend_on_its_neighbours(name: str) -> None:
    model = random_model(CONFIGS[name])
    together = dream(model, model.initial_state(3, KEY))
    alone = dream(model, model.initial_state(1, KEY[1:2]))
    torch.testing.assert_close(alone[:, 0], together[:, 1], atol=1e-4, rtol=1e-4)


@every_config
def test_a_given_state_is_never_written_into(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    state = model.initial_state(3, KEY)
    action, frame = random_actions(config, 3, seed=4), random_frames(config, 3, 5)
    state, _ = model.observe(state, action, frame, torch.ones(3, dtype=torch.bool))
    copy = state.clone()
    model.imagine(state, action)
    model.observe(state, action, frame, torch.tensor([True, False, False]))
    for label, value in state.tensors.items():
        assert torch.equal(value, copy.tensors[label]), label


def test_states_can_be_picked_joined_mixed_and_reseeded() -> None:
    model = random_model(EXTRA)
    action, frame = random_actions(EXTRA, 3, seed=4), random_frames(EXTRA, 3, 5)
    state, _ = model.observe(model.initial_state(3, KEY), action, frame, torch.ones(3, dtype=torch.bool))
    joined = DreamState.cat([state[1], state[torch.tensor([0, 2])]])
    assert joined.batch_size == 3 and torch.equal(joined.feature, state.feature[[1, 0, 2]])
    mixed = state.where(torch.tensor([True, False, True]), state[[1, 1, 1]])
    assert torch.equal(mixed.feature, state.feature[[0, 1, 2]])
    fresh = state.reseed(torch.tensor([5, 6, 7]))
    assert fresh.tensors["key"].tolist() == [5, 6, 7] and fresh.tensors["step"].tolist() == [0, 0, 0]
    assert torch.equal(fresh.tensors["stage0.smoothed"], state.tensors["stage0.smoothed"])


@every_config
def test_dreamed_frames_have_the_shape_and_kind_of_real_ones(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    state = model.initial_state(3, KEY)
    for greedy in (False, True):
        _, out = model.imagine(state, random_actions(config, 3, seed=1), greedy=greedy)
        frames = model.decode(out)
        assert frames.shape == (3, *config.observation.shape)
        assert frames.dtype == getattr(torch, config.observation.dtype)
        assert out.feature.shape == (3, model.feature_width)
        assert ((out.chunks >= 1) & (out.chunks <= model.frame_stage.cutting.max_chunks)).all()
        for row, count in zip(out.starts.tolist(), out.chunks.tolist()):
            assert row[0] == 0 and row[:count] == sorted(set(row[:count])) and set(row[count:]) <= {-1}


def train_a_little(config: ModelConfig, updates: int = 3) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for update in range(updates):
        batch = random_batch(config, seed=update)
        loss, _ = world_model_loss(model, batch, LossConfig(), key=KEY, generator=torch.Generator().manual_seed(update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@every_config
def test_after_three_updates_every_parameter_has_a_gradient(name: str) -> None:
    model = train_a_little(CONFIGS[name])
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_after_three_updates_the_painters_view_of_the_past_has_a_gradient() -> None:
    model = train_a_little(replace(LEARNED, frame=replace(LEARNED.frame, paint_past=True)))
    assert model.frame_stage.code.from_past.weight.grad.abs().sum() > 0


def test_pictures_alone_move_the_frame_stage_and_nothing_else() -> None:
    model = random_model(LEARNED).train()
    batch = random_batch(LEARNED)
    batch.frames = torch.cat([batch.frames, random_frames(LEARNED, 3, 8)])  # three loose ones
    loss, _ = picture_loss(model, batch, LossConfig(), key=KEY)
    loss.backward()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"frame_stage"}


def test_the_first_frame_of_a_piece_in_mid_episode_is_asked_nothing() -> None:
    model = random_model(STRIDE)
    batch = random_batch(STRIDE, rows=3, length=9)
    unknown = batch.start & ~batch.first
    assert unknown.any()
    other = replace(batch, reward=batch.reward + unknown * 5.0, terminated=batch.terminated ^ unknown)
    losses = [
        world_model_loss(model, b, LossConfig(), key=KEY, generator=torch.Generator().manual_seed(0))[0]
        for b in (batch, other)
    ]
    assert torch.equal(*losses)


@every_config
def test_configs_survive_json(name: str) -> None:
    import json

    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIGS[name].to_dict()))) == CONFIGS[name]


def test_a_config_from_the_future_or_with_an_unknown_field_is_refused() -> None:
    data = STRIDE.to_dict()
    with pytest.raises(ValueError, match="format version 9"):
        ModelConfig.from_dict(data | {"format_version": 9})
    with pytest.raises(ValueError, match="wings"):
        ModelConfig.from_dict(data | {"main": data["main"] | {"wings": 2}})
    with pytest.raises(ValueError, match="choose tiny or small"):
        preset("huge", STRIDE.observation, STRIDE.action)
