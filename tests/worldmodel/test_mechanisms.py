"""All mechanisms together: any two of them in a pairwise covering array, and any number in random configs.

Steps are the parallel pass, the future never moves the past, weights survive the disk, everything learns, and what a
mechanism adds begins at nothing. Where a router's p lies at its threshold two ways of computing may differ: such a draw
is left out, as is one where a loop's change lies at the threshold of its exit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mechanisms import PLAIN, SETTINGS, Choice, build, pairwise
from small_models import random_actions, random_batch, random_frames, random_model
from test_model import KEY, parallel, pieces, step_through, train_a_little

from worldmodel.checkpoint import load_model, save_model
from worldmodel.model import WorldModel
from worldmodel.outputs import Pass

PAIRS = pairwise()
EVERYTHING = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SETTINGS.items()})
every_pair = pytest.mark.parametrize("number", range(len(PAIRS)))
at_random = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def doubtful(seen: Pass) -> bool:
    """Whether a boundary lies so near its threshold that rounding decides it."""
    near = [(r.certainty - 0.5).abs().min() < 1e-5 for r in seen.routing.values()]
    return any(bool(n) for n in near)


def check_steps(choice: Choice, seed: int = 0) -> bool:
    """Whether there was anything to compare: False where a boundary is in doubt."""
    config = build(choice)
    model = random_model(config, seed)
    batch = random_batch(config, rows=3, length=10, seed=seed)
    whole = parallel(model, batch)
    if doubtful(whole):
        return False
    E = config.causal[0].width
    # Where a loop begins at the end of another, for token after token, rounding grows with them.
    near = 2e-3 if config.main.loop.warm_start else 1e-4
    for row in range(3):
        for piece in pieces(batch, row):
            for t, feature in zip(piece, step_through(model, batch, row, piece, int(KEY[row]))):
                torch.testing.assert_close(feature[:E], whole.y_last[row, t], atol=near, rtol=near)
    return True


def check_causality(choice: Choice, seed: int = 0) -> None:
    config = build(choice)
    model = random_model(config, seed)
    batch = random_batch(config, rows=3, length=8, seed=seed)
    cut = 5
    other = replace(batch, frames=torch.cat([batch.frames, random_frames(config, 3, 999)]))
    other.index, other.action = batch.index.clone(), batch.action.clone()
    other.index[:, cut:] = len(batch.frames) + torch.arange(8 - cut)[None] % 3
    other.action[:, cut:] = random_actions(config, 3, 8 - cut, seed=77)
    before, after = parallel(model, batch), parallel(model, other)
    near = 1e-4 if config.main.loop.warm_start else 1e-5  # another batch rounds otherwise, and there it grows
    torch.testing.assert_close(after.y_last[:, :cut], before.y_last[:, :cut], atol=near, rtol=near)
    assert (after.y_last[:, cut:] - before.y_last[:, cut:]).abs().max() > 1e-3, "the change must arrive at all"


@every_pair
def test_stepping_is_the_parallel_pass(number: int) -> None:
    assert any(check_steps(PAIRS[number], seed) for seed in range(3))


@every_pair
def test_the_future_never_moves_the_past(number: int) -> None:
    check_causality(PAIRS[number])


@every_pair
def test_a_dream_of_a_loaded_model_is_the_same_to_the_bit(number: int, tmp_path: Path) -> None:
    config = build(PAIRS[number])
    model = random_model(config).requires_grad_(False)  # as a loaded one: matmul takes another way with a gradient
    save_model(tmp_path, model, {"id": "none"})
    loaded = load_model(tmp_path)
    assert loaded.config == config
    action, frame = random_actions(config, 3, seed=4), random_frames(config, 3, 5)
    dreams = []
    for each in (model, loaded):
        state, _ = each.observe(each.initial_state(3, KEY), action, frame, torch.ones(3, dtype=torch.bool))
        for _ in range(3):
            state, out = each.imagine(state, action)
        dreams.append((out.feature, each.decode(out)))
    assert torch.equal(dreams[0][0], dreams[1][0]) and torch.equal(dreams[0][1], dreams[1][1])


@every_pair
def test_after_three_updates_every_parameter_has_had_a_gradient(number: int) -> None:
    model = train_a_little(build(PAIRS[number]))
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_any_config_steps_as_its_parallel_pass(choice: Choice, seed: int) -> None:
    assume(check_steps(choice, seed))


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_in_any_config_the_future_never_moves_the_past(choice: Choice, seed: int) -> None:
    check_causality(choice, seed)


BEGIN_AT_NOTHING: list[Choice] = [
    {"path": 8},
    {"values": True},
    {"cut_off": True},
    {"lengths": True, "extra": 1.3},
    {"residual": "mamba"},
    {"residual": "attention"},
    {"inject": "add"},
    {"sees_past": True},
]


@pytest.mark.parametrize("choice", BEGIN_AT_NOTHING, ids=lambda c: "-".join(c))
def test_what_a_mechanism_adds_begins_at_nothing(choice: dict[str, Any]) -> None:
    """A plain model and one with the mechanism, with the plain one's weights where both have them, are the same."""
    plain_choice = PLAIN | {name: choice[name] for name in ("extra",) if name in choice}
    if "values" in choice:
        choice = choice | {"extra": 0.0}
    torch.manual_seed(0)
    with_it = WorldModel(build(plain_choice | choice)).eval()
    plain = WorldModel(replace(build(plain_choice), causal=_layers_of(with_it))).eval()
    shared = with_it.state_dict()
    own = plain.state_dict()
    for name, value in own.items():
        if name in shared and shared[name].shape == value.shape:
            own[name] = shared[name]
        elif name.endswith(("widen.rest", "widen.action.weight")):
            assert (value == 0).all(), "the side vectors are cut in other parts, all of them zero"
        else:
            raise AssertionError(f"{name} is not in the other model")
    plain.load_state_dict(own)
    batch = random_batch(plain.config)
    assert torch.equal(parallel(plain, batch).y, parallel(with_it, batch).y)


def _layers_of(model: WorldModel) -> tuple[Any, ...]:
    """The causal stages' configs without what is to be compared."""
    return tuple(replace(stage, cut_off=False, lengths=False, residual="linear") for stage in model.config.causal)


def test_a_forced_boundary_never_loses_an_action() -> None:
    """What is inside sees the action of every frame, at the frame, whatever the routers merge."""
    config = build({"depth": 3, "extra": 1.3})
    model = random_model(config)
    batch = random_batch(config, rows=3, length=8, seed=9)
    inside: list[torch.Tensor] = []
    stage = model.causal_stage
    while hasattr(stage, "inner"):
        stage = stage.inner
    stage.register_forward_hook(lambda _m, args, _out: inside.append(args[1].action[args[2].is_frame]))
    parallel(model, batch)
    assert len(inside[0]) == 3 * 8
    taken = torch.nn.functional.one_hot(batch.action, 5).float().masked_fill(batch.first.unsqueeze(-1), 0)
    assert torch.equal(inside[0][:, :5], taken.flatten(0, 1))
