"""The captured step: its buffers against `model.imagine`, what it refuses, and that a step never waits for the device.

No graph can be captured without a GPU. Here a replay is what a graph's is: the same step on the same buffers, its
results written to the same places.
"""

from __future__ import annotations

import pytest
import torch
from small_models import CONFIGS, LEARNED, STRIDE, random_actions, random_frames, random_model

from worldmodel.captured import CapturedImagination
from worldmodel.errors import UserError
from worldmodel.kernels.backend import VARIABLE
from worldmodel.outputs import StepOutput
from worldmodel.state import DreamState

CAPTURED = ["stride", "multi_discrete", "vector", "grid"]


class Uncaptured(CapturedImagination):
    """With a step in place of a graph."""

    def _capture(self, run, device):
        result = run()

        def replay():
            for place, new in zip(tensors(*result), tensors(*run()), strict=True):
                place.copy_(new)

        return result, replay


def tensors(state: DreamState, output: StepOutput) -> list[torch.Tensor]:
    return [*state.tensors.values(), *output.tensors.values()]


def equal(got, expected) -> bool:
    names = got[0].tensors.keys() == expected[0].tensors.keys() and got[1].tensors.keys() == expected[1].tensors.keys()
    return names and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors(*got), tensors(*expected)))


def start(model, config, rows=3):
    """A state that remembers two frames."""
    state = model.initial_state(rows, torch.tensor([5, -3, 2**40])[:rows])
    for t in range(2):
        first = torch.full((rows,), t == 0)
        state, _ = model.observe(
            state, random_actions(config, rows, seed=t), random_frames(config, rows, seed=t), first
        )
    return state


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", CAPTURED)
def test_it_dreams_what_the_model_dreams(name, greedy):
    config = CONFIGS[name]
    model = random_model(config)
    captured = Uncaptured(model, 3, greedy)
    state = expected = start(model, config)
    for t in range(6):  # beyond the window of attention
        action = random_actions(config, 3, seed=10 + t)
        got, wanted = captured(state, action), model.imagine(expected, action, greedy=greedy)
        assert equal(got, wanted)
        state, expected = got[0], wanted[0]


def test_boxes_are_taken_too():
    config = CONFIGS["box"]
    config = type(config).from_dict(config.to_dict() | {"frame": STRIDE.to_dict()["frame"]})
    model = random_model(config)
    state, action = start(model, config), random_actions(config, 3, seed=1)
    assert equal(Uncaptured(model, 3).imagine(state, action), model.imagine(state, action))


def test_what_it_returns_is_kept_and_can_be_gone_on_from():
    model = random_model(STRIDE)
    captured = Uncaptured(model, 3)
    state = start(model, STRIDE)
    before = state.clone()
    action = random_actions(STRIDE, 3, seed=1)
    first = captured(state, action)
    kept = [t.clone() for t in tensors(*first)]
    captured(first[0], random_actions(STRIDE, 3, seed=2))
    assert all(torch.equal(t, copy) for t, copy in zip(tensors(*first), kept))
    assert all(torch.equal(t, before.tensors[n]) for n, t in state.tensors.items())
    assert equal(captured(state, action), first)
    assert equal(captured(first[0], action), model.imagine(first[0], action))
    places = {t.untyped_storage().data_ptr() for t in tensors(captured._state, captured._result[1])}
    assert places.isdisjoint(t.untyped_storage().data_ptr() for t in tensors(*first))


def test_what_it_was_not_captured_for_is_refused():
    model = random_model(STRIDE)
    captured = Uncaptured(model, 3)
    state = start(model, STRIDE)
    with pytest.raises(ValueError, match="captured for 3 rows, not for a state of 2 and 3 actions"):
        captured(state[:2], random_actions(STRIDE, 3, seed=1))
    with pytest.raises(ValueError, match="captured for 3 rows, not for a state of 3 and 2 actions"):
        captured(state, random_actions(STRIDE, 2, seed=1))
    smoothed = state.tensors["stage0.smoothed"]
    for other in ({}, {"stage0.smoothed": smoothed[:, 1:]}, {"stage0.smoothed": smoothed, "more": smoothed}):
        other = DreamState({n: t for n, t in state.tensors.items() if n != "stage0.smoothed"} | other)
        with pytest.raises(ValueError, match="another model"):
            captured(other, random_actions(STRIDE, 3, seed=1))


@pytest.mark.parametrize(
    "name,words",
    [
        ("learned", "chunks of their own cannot be captured"),
        ("extra", "chunks of their own cannot be captured"),
        ("stride_extra", r"extra boundaries in a causal stage cannot be captured.*causal\.N\.extra are 0"),
        ("stride", "on a GPU only, and the model is on cpu: use model.imagine"),
    ],
)
def test_what_cannot_be_captured_is_said_in_one_sentence(name, words):
    with pytest.raises(UserError, match=words) as error:
        CapturedImagination(random_model(CONFIGS[name]), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", CAPTURED)
def test_a_step_never_waits_for_the_device(monkeypatch, name, greedy):
    """On a device that holds no numbers, asking for one raises."""
    monkeypatch.setenv(VARIABLE, "torch")
    config = CONFIGS[name]
    model = random_model(config).to("meta")
    action = random_actions(config, 3, seed=1).to("meta")
    state, output = model.imagine(model.initial_state(3), action, greedy=greedy)
    assert {t.device.type for t in tensors(state, output)} == {"meta"}


def test_that_would_be_noticed(monkeypatch):
    monkeypatch.setenv(VARIABLE, "torch")
    model = random_model(LEARNED).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        model.imagine(model.initial_state(3), random_actions(LEARNED, 3, seed=1).to("meta"))
