"""States are values: any way to pick rows, nothing shared with what the caller holds, branches that stay apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import CONFIGS, EXTRA, STRIDE, random_actions, random_frames, random_model

from worldmodel.model import WorldModel
from worldmodel.specs import ObservationSpec
from worldmodel.state import DreamState

KEY = torch.tensor([11, 22, 33, 44])


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return random_model(EXTRA)


@pytest.fixture(scope="module")
def state(model: WorldModel) -> DreamState:
    state = model.initial_state(4, KEY)
    for t in range(3):
        first = torch.tensor([t == 0, t == 0, t in (0, 2), t == 0])
        state, _ = model.observe(state, random_actions(EXTRA, 4, seed=t), random_frames(EXTRA, 4, t), first)
    return state


def same(a: DreamState, b: DreamState) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(v, b.tensors[n]) for n, v in a.tensors.items())


@pytest.mark.parametrize(
    "rows,expected",
    [
        (2, [2]),
        (-1, [3]),
        (np.int64(1), [1]),
        (torch.tensor(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([3, 0, 0], [3, 0, 0]),
        ((3, 0, 0), [3, 0, 0]),
        ((0, 1), [0, 1]),
        ((2,), [2]),
        ((), []),
        (range(1, 4), [1, 2, 3]),
        (torch.tensor([3, 0, 0]), [3, 0, 0]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (np.array([True, False, False, True]), [0, 3]),
        (np.array([2, 2]), [2, 2]),
        ([], []),
    ],
    ids=repr,
)
def test_rows_are_picked_in_every_usual_way(state: DreamState, rows: object, expected: list[int]) -> None:
    picked = state[rows]
    assert picked.batch_size == len(expected)
    for name, value in picked.tensors.items():
        assert torch.equal(value, state.tensors[name][torch.tensor(expected, dtype=torch.int64)]), name


def test_taking_apart_and_joining_is_the_identity(state: DreamState) -> None:
    assert same(DreamState.cat([state[i] for i in range(4)]), state)
    assert same(DreamState.cat([state[:1], state[1:]]), state)
    assert same(state.where(torch.tensor([True, False, True, False]), state), state)


def test_every_part_of_a_row_goes_with_it(model: WorldModel, state: DreamState) -> None:
    """Picked, joined and mixed rows dream on exactly as they would have where they were."""
    action = random_actions(EXTRA, 4, seed=9)
    on, out = model.imagine(state, action)
    order = torch.tensor([2, 0, 3, 1])
    shuffled, shuffled_out = model.imagine(state[order], action[order])
    torch.testing.assert_close(shuffled_out.feature, out.feature[order], atol=1e-5, rtol=1e-4)
    mask = torch.tensor([True, False, False, True])
    other = model.initial_state(4, KEY + 100)
    mixed, mixed_out = model.imagine(state.where(mask, other), action)
    torch.testing.assert_close(mixed_out.feature[mask], out.feature[mask], atol=1e-5, rtol=1e-4)
    _, fresh_out = model.imagine(other, action)
    torch.testing.assert_close(mixed_out.feature[~mask], fresh_out.feature[~mask], atol=1e-5, rtol=1e-4)
    assert on.batch_size == mixed.batch_size == shuffled.batch_size == 4


def test_branches_from_one_state_do_not_disturb_each_other(model: WorldModel, state: DreamState) -> None:
    actions = [random_actions(EXTRA, 4, seed=20 + i) for i in range(4)]

    def dream(begin: DreamState) -> list[torch.Tensor]:
        features = []
        for action in actions:
            begin, out = model.imagine(begin, action)
            features.append(out.feature)
        return features

    once = dream(state)
    middle, _ = model.imagine(state, actions[0])
    model.imagine(middle, actions[2])
    dream(state.reseed(torch.arange(4)))
    assert all(torch.equal(a, b) for a, b in zip(dream(state), once))


def test_a_clone_shares_no_memory(state: DreamState) -> None:
    copy = state.clone()
    assert same(copy, state)
    for name, value in copy.tensors.items():
        assert value.data_ptr() != state.tensors[name].data_ptr()


def test_seeds_are_copied_not_held(model: WorldModel, state: DreamState) -> None:
    seeds = torch.arange(4)
    begun, reseeded = model.initial_state(4, seeds), state.reseed(seeds)
    seeds += 1000
    assert begun.tensors["key"].tolist() == reseeded.tensors["key"].tolist() == [0, 1, 2, 3]


def test_reseeded_rows_dream_otherwise_and_equal_seeds_alike(model: WorldModel, state: DreamState) -> None:
    twins = state[[0, 0, 0]].reseed(torch.tensor([5, 5, 6]))
    action = random_actions(EXTRA, 1, seed=1).expand(3)
    features = []
    for _ in range(3):
        twins, out = model.imagine(twins, action)
        features.append(out.feature)
    torch.testing.assert_close(features[-1][0], features[-1][1], atol=1e-5, rtol=1e-4)
    assert (features[-1][0] - features[-1][2]).abs().max() > 1e-3


def test_a_number_as_seed_gives_every_row_its_own_noise(model: WorldModel) -> None:
    keys = model.initial_state(5, seed=3).tensors["key"]
    assert len(keys.unique()) == 5
    assert not set(keys.tolist()) & set(model.initial_state(5, seed=4).tensors["key"].tolist())
    assert torch.equal(keys[:2], model.initial_state(2, seed=3).tensors["key"])  # whatever the batch size


def test_greedy_dreams_need_no_noise(model: WorldModel, state: DreamState) -> None:
    action = random_actions(EXTRA, 4, seed=2)
    a, b = state, state.reseed(torch.arange(4) + 77)
    for _ in range(3):
        a, out_a = model.imagine(a, action, greedy=True)
        b, out_b = model.imagine(b, action, greedy=True)
    assert torch.equal(out_a.feature, out_b.feature)
    assert torch.equal(out_a.terminated, out_b.terminated)
    assert torch.equal(out_a.terminated, out_a.terminated_probability > 0.5)


def test_sampled_events_come_as_often_as_they_are_probable() -> None:
    torch.manual_seed(0)
    model = WorldModel(STRIDE).eval()
    with torch.no_grad():
        model.outcome.out.bias[0], model.outcome.out.bias[1], model.outcome.out.bias[-1] = 1.0, -1.0, 3.0
    state = model.initial_state(4000)
    _, out = model.imagine(state, torch.zeros(4000, dtype=torch.int64))
    event, end = torch.sigmoid(torch.tensor([1.0, -1.0])).tolist()
    torch.testing.assert_close(out.terminated_probability, torch.full((4000,), end))
    assert out.terminated.float().mean() == pytest.approx(end, abs=0.03)
    assert (out.reward != 0).float().mean() == pytest.approx(event, abs=0.03)
    assert out.reward.mean() == pytest.approx(out.reward_mean.mean().item(), rel=0.06)
    both = ((out.reward != 0) & out.terminated).float().mean()
    assert both == pytest.approx(event * end, abs=0.03)  # drawn apart


def test_a_frame_without_its_action_is_refused_unless_it_begins_an_episode(model: WorldModel) -> None:
    state = model.initial_state(2, KEY[:2])
    frames = random_frames(EXTRA, 2, 1)
    model.observe(state, None, frames, torch.tensor([True, True]))
    with pytest.raises(ValueError, match="needs the action"):
        model.observe(state, None, frames, torch.tensor([True, False]))


@pytest.mark.parametrize("name", ["stride", "vector", "grid", "record", "choice"])
def test_a_frame_of_another_shape_or_type_is_refused_even_if_it_has_as_many_values(name: str) -> None:
    choice = ObservationSpec(kind="choice", shape=(5,), scale=0.1)
    config = CONFIGS[name] if name in CONFIGS else replace(CONFIGS["vector"], observation=choice)
    model = WorldModel(config).eval()
    frames, begins = random_frames(config, 3, 1), torch.ones(3, dtype=torch.bool)
    model.observe(model.initial_state(3), None, frames, begins)
    spec = config.observation
    others = [frames.to(torch.uint8 if spec.dtype == "float32" else torch.float32), frames.to(torch.float64)]
    others += [frames.unsqueeze(1), frames[:, :1], frames[:2]]
    others += [frames.flatten(1), frames.movedim(-1, 1)] if len(spec.shape) > 1 else []
    for other in others:
        with pytest.raises(ValueError, match="observe takes frames") as caught:
            model.observe(model.initial_state(3), None, other, begins)
        for said in (str((3, *spec.shape)), spec.dtype, str(tuple(other.shape)), str(other.dtype)[len("torch.") :]):
            assert said in str(caught.value)


def test_an_empty_batch_is_refused_in_a_sentence(model: WorldModel, state: DreamState) -> None:
    nobody = torch.zeros(0, dtype=torch.bool)
    for nothing in (state[[]], model.initial_state(0)):
        with pytest.raises(ValueError, match="at least one row"):
            model.observe(nothing, random_actions(EXTRA, 0, seed=1), random_frames(EXTRA, 4, 1)[:0], nobody)


@pytest.mark.parametrize("name", ["stride", "box", "multi_discrete"])
def test_whatever_action_a_beginning_row_brings_is_ignored(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    frames, first = random_frames(config, 3, 1), torch.tensor([True, False, True])
    state = model.initial_state(3, KEY[:3])
    action = random_actions(config, 3, seed=1)
    other = action.clone()
    other[[0, 2]] = torch.nan if action.is_floating_point() else -1
    _, a = model.observe(state, action, frames, first)
    _, b = model.observe(state, other, frames, first)
    assert torch.equal(a.feature, b.feature)


@pytest.mark.parametrize("training", [False, True])
def test_stepping_leaves_the_model_as_it_is(training: bool) -> None:
    """No buffer is renewed by what an agent sees: in training mode, a router would otherwise learn its rate from it."""
    model = random_model(EXTRA).train(training)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    state = model.initial_state(2, KEY[:2])
    state, out = model.observe(state, None, random_frames(EXTRA, 2, 1), torch.ones(2, dtype=torch.bool))
    state, out = model.imagine(state, random_actions(EXTRA, 2, seed=1))
    model.decode(out)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not out.feature.requires_grad
