"""A realigned dream remembers what its encoder makes of the frame that it painted, and nothing else of that frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, EXTRA, STRIDE, random_actions, random_frames, random_model

from worldmodel.config import ModelConfig, TimeConfig
from worldmodel.model import WorldModel
from worldmodel.outputs import StepOutput
from worldmodel.state import DreamState

KEY = torch.tensor([11, 22, 33, 44])
DREAMED = ("reward", "reward_mean", "terminated", "terminated_probability", "chunks", "starts", "start_entropy")


def dreaming(config: ModelConfig) -> tuple[WorldModel, DreamState, torch.Tensor]:
    """A model, a state in the middle of a dream, and the action taken there."""
    model = random_model(config)
    state = model.initial_state(4, KEY)
    state, _ = model.observe(state, None, random_frames(config, 4, 1), torch.ones(4, dtype=torch.bool))
    state, _ = model.imagine(state, random_actions(config, 4, seed=2))
    return model, state, random_actions(config, 4, seed=3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_painted_frame_takes_the_place_of_the_dreamed_tokens(name: str) -> None:
    model, before, action = dreaming(CONFIGS[name])
    dreamed, out = model.imagine(before, action)
    state, aligned = model.realign(before, action, out)
    seen, _ = model.observe(before, action, model.decode(out), torch.zeros(4, dtype=torch.bool))
    if name != "gaussian":  # whose code of a seen frame is sampled
        assert all(torch.equal(value, seen.tensors[n]) for n, value in state.tensors.items())
    for noise in ("key", "step"):
        assert torch.equal(state.tensors[noise], dreamed.tensors[noise])
    assert torch.equal(aligned.feature, state.feature)
    assert ((aligned.feature - out.feature).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_dreamed_stays(name: str) -> None:
    model, before, action = dreaming(CONFIGS[name])
    _, out = model.imagine(before, action)
    _, aligned = model.realign(before, action, out)
    for field in DREAMED:
        assert torch.equal(getattr(aligned, field), getattr(out, field)), field
    assert torch.equal(model.decode(aligned), model.decode(out))


@pytest.mark.parametrize("name", ["gaussian", "extra"])
def test_the_same_bits_again_and_no_state_is_written_into(name: str) -> None:
    model, before, action = dreaming(CONFIGS[name])
    kept = before.clone()

    def dream() -> DreamState:
        state = before
        for _ in range(3):
            middle = state
            state, out = model.imagine(middle, action)
            state, _ = model.realign(middle, action, out)
        return state

    one, two = dream(), dream()
    assert all(torch.equal(value, two.tensors[n]) for n, value in one.tensors.items())
    assert all(torch.equal(value, kept.tensors[n]) for n, value in before.tensors.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    model, before, action = dreaming(CONFIGS[name])
    _, out = model.imagine(before, action)
    together, _ = model.realign(before, action, out)
    rows = torch.tensor([2, 0])
    alone, aligned = model.realign(before[rows], action[rows], out[rows])
    for n, value in alone.tensors.items():
        torch.testing.assert_close(value, together.tensors[n][rows], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(aligned.feature, together.feature[rows], atol=1e-4, rtol=1e-4)


def test_a_frame_is_seen_with_other_numbers_than_it_was_dreamed_with() -> None:
    """Or a large number would push a Gaussian code the same way twice."""
    model, before, action = dreaming(CONFIGS["gaussian"])
    _, out = model.imagine(before, action)
    _, aligned = model.realign(before, action, out)
    seen, _ = model.observe(before, action, model.decode(out), torch.zeros(4, dtype=torch.bool))
    assert ((aligned.feature - seen.feature).abs().amax(-1) > 1e-4).all()
    twins = before[[0, 0]]
    twins = DreamState(twins.tensors | {"key": KEY[:2]})
    _, both = model.realign(twins, action[[0, 0]], out[torch.tensor([0, 0])])
    assert (both.feature[0] - both.feature[1]).abs().max() > 1e-4


def test_a_realigned_row_is_put_in_its_place() -> None:
    model, before, action = dreaming(EXTRA)
    dreamed, out = model.imagine(before, action)
    rows = torch.tensor([3, 1])
    aligned, _ = model.realign(before[rows], action[rows], out[rows])
    mixed = dreamed.put(rows, aligned)
    for n, value in mixed.tensors.items():
        assert torch.equal(value[rows], aligned.tensors[n]), n
        assert torch.equal(value[[0, 2]], dreamed.tensors[n][[0, 2]]), n


def test_greedy_dreams_of_categorical_codes_need_no_noise() -> None:
    model, before, action = dreaming(EXTRA)
    features = []
    for state in (before, before.reseed(KEY + 100)):
        _, out = model.imagine(state, action, greedy=True)
        features.append(model.realign(state, action, out)[0].feature)
    assert torch.equal(*features)


def test_an_output_is_replaced_not_written_into() -> None:
    model, before, action = dreaming(EXTRA)
    _, out = model.imagine(before, action)
    kept = {name: value.clone() for name, value in out.tensors.items()}
    _, aligned = model.realign(before, action, out)
    assert isinstance(aligned, StepOutput) and aligned is not out
    assert all(torch.equal(getattr(out, name), value) for name, value in kept.items())


def test_where_patches_are_followed_through_time_a_frame_behind_a_dreamed_one_is_taken_in_whole() -> None:
    """What lies between was never seen, so nothing says what has not changed; behind a true frame it is known."""
    config = replace(STRIDE, time=TimeConfig(layers="m1", changes=3.0))
    model, frame = random_model(config), random_frames(config, 4, 1)
    nothing = torch.zeros(4, dtype=torch.bool)
    action = random_actions(config, 4, seed=3)
    state, whole = model.observe(model.initial_state(4, KEY), None, frame, ~nothing)
    _, again = model.observe(state, action, frame, nothing)
    assert (whole.chunks == 4).all() and (again.chunks == 0).all()
    dreaming, out = model.imagine(state, action)
    _, behind = model.observe(dreaming, action, frame, nothing)
    assert (behind.chunks == 4).all()
    realigned, _ = model.realign(state, action, out)  # at once: held against the true frame before
    _, still = model.observe(realigned, action, model.decode(out), nothing)
    assert (still.chunks == 0).all()
