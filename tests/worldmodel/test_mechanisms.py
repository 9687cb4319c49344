"""All mechanisms together: any two of them in a pairwise covering array, and any number in random configs.

Steps are the parallel pass, the future never moves the past, weights survive the disk, everything learns, a forced
boundary never loses an action, and what a mechanism adds begins at nothing. Where a router's p lies at its threshold
two ways of computing may differ: such a draw is left out, as is one where a loop's change lies at the threshold of its
exit, or a certainty where it is worth one loop more.

Thresholds are quantiles of what was scored. Right behind the first frame of an episode tiny models say the same few
things again and again, so a threshold that was just renewed may be one of those to the bit, and with it some draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mechanisms import SETTINGS, Choice, build, effective, pairs_of, pairwise, possible_pairs, settings_of
from small_models import random_actions, random_batch, random_frames, random_model
from test_model import KEY, parallel, pieces, step_through
from torch import Tensor

from worldmodel import loop_core, loops
from worldmodel.batch import Batch
from worldmodel.causal import CausalStage
from worldmodel.checkpoint import load_model, save_model
from worldmodel.chunks import Chunks
from worldmodel.config import ModelConfig
from worldmodel.losses import LossConfig, world_model_loss
from worldmodel.main_network import MainNetwork
from worldmodel.model import WorldModel
from worldmodel.outputs import Pass, StepOutput
from worldmodel.router import Router
from worldmodel.side import action_vector
from worldmodel.state import DreamState

PAIRS = pairwise()
CHOICES = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SETTINGS.items()})
EVERYTHING = CHOICES.map(effective)
every_pair = pytest.mark.parametrize("number", range(len(PAIRS)))
at_random = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def test_all_pairs_that_can_meet_do_in_the_models_that_are_built() -> None:
    assert set().union(*(pairs_of(settings_of(build(choice))) for choice in PAIRS)) == possible_pairs()


@settings(at_random, max_examples=100)
@given(CHOICES)
def test_a_config_has_what_is_effective_and_nothing_else(choice: Choice) -> None:
    assert settings_of(build(choice)) == effective(choice)


# ---- models, and what they say ---------------------------------------------------------------------------------------


def model_of(config: ModelConfig, seed: int = 0) -> WorldModel:
    """A random model; targets that move are on their way, and its routers follow them."""
    model = random_model(config, seed)
    if config.first_targets:
        model.train().anneal(frames=0.5, causal=0.25)
        for i in range(3):
            parallel(model, random_batch(config, seed=200 + i))
    return model.eval()


def stages_of(model: WorldModel) -> dict[str, CausalStage | MainNetwork]:
    """The causal stages by name, and the main network."""
    stages: dict[str, CausalStage | MainNetwork] = {}
    stage: CausalStage | MainNetwork = model.causal_stage
    while isinstance(stage, CausalStage):
        stages[stage.name] = stage
        stage = stage.inner
    return stages | {"main": stage}


@contextmanager
def loops_in_doubt(exit: float, near: float = 1e-5) -> Iterator[list[bool]]:
    """Collects whether rounding may decide how often a core runs: at an exit, or by a certainty."""
    doubts: list[bool] = []
    moved, plan = loop_core.moved, loops.plan_loops

    def watched_moved(*states: Tensor) -> Tensor:
        share = moved(*states)
        doubts.append(bool(((share - exit).abs() < near).any()))
        return share

    def watched_plan(config: Any, base: float, cues: Any) -> int | Tensor:
        if cues.certainty is not None:
            less, more = (plan(config, base, replace(cues, certainty=cues.certainty + by)) for by in (-near, near))
            doubts.append(not torch.equal(torch.as_tensor(less), torch.as_tensor(more)))
        return plan(config, base, cues)

    with mock.patch.object(loop_core, "moved", watched_moved), mock.patch.object(loops, "plan_loops", watched_plan):
        yield doubts


@contextmanager
def boundaries_in_doubt(doubts: list[bool], near: float = 1e-5) -> Iterator[None]:
    """Adds whether rounding may decide where a chunk starts, one token after the other."""
    probability = Router.probability

    def watched(router: Router, before: Tensor, here: Tensor) -> Tensor:
        p = probability(router, before, here)
        doubts.append(bool(((p - 0.5).abs() < near).any()))
        return p

    with mock.patch.object(Router, "probability", watched):
        yield


def run(model: WorldModel, batch: Batch) -> tuple[Pass, bool]:
    """A parallel pass, and whether it is in doubt: a decision lies so near its threshold that rounding makes it."""
    with loops_in_doubt(model.config.main.loop.exit) as doubts:
        whole = parallel(model, batch)
    near = [bool((r.certainty - 0.5).abs().min() < 1e-5) for r in whole.routing.values()]
    return whole, any(near) or any(doubts)


def said_before(model: WorldModel, batch: Batch, cut: int) -> tuple[dict[str, Tensor], Pass, bool]:
    """All that is said of the frames before the cut, by name, at every stage token by token; and what `run` gives."""
    heard: dict[str, Any] = {}

    def hear(name: str) -> Callable[..., None]:
        return lambda _stage, args, out: heard.update({name: (args[0], args[2], out[0])})

    hooks = [stage.register_forward_hook(hear(name)) for name, stage in stages_of(model).items()]
    whole, doubtful = run(model, batch)
    for hook in hooks:
        hook.remove()

    B, T, K, _ = whole.latent.shape
    valid = whole.chunks.valid.view(B, T, K)[:, :cut]
    used = torch.cat([torch.ones_like(valid[..., :1]), valid], dim=2)
    said = {
        "chunks": valid.sum(-1),
        "start": whole.chunks.start.view(B, T, K)[:, :cut][valid],
        "posterior": whole.posterior[:, :cut][valid],
        "latent": whole.latent[:, :cut][valid],
        "y": whole.y[:, :cut][used],
        "y_last": whole.y_last[:, :cut],
    }
    for name, (x, marks, y) in heard.items():
        frame = marks.place // (1 + K)
        early = marks.present & (frame < cut)
        said |= {f"{name} frame": frame[early], f"{name} in": x[early], f"{name} out": y[early]}
        if name in whole.routing:
            routing = whole.routing[name]
            said |= {f"{name} boundary": routing.boundary[early], f"{name} certainty": routing.certainty[early]}
        if name == "main" and whole.loops is not None:
            said["loops"] = whole.loops.each[early]
    changed = whole.seen.changed
    for name, routing in whole.routing.items():
        if name.startswith("time"):  # rows of positions
            of_patches = (x.unflatten(0, (B, -1))[:, :, :cut] for x in (routing.boundary, routing.certainty))
        elif name == "frame":  # the patches of distinct frames; only the new ones, if they are followed through time
            of_patches = (x[whole.seen.index[:, :cut]] for x in (routing.boundary, routing.certainty))
            if changed is not None:
                place = torch.arange(routing.boundary.shape[1])
                there = place < changed[:, :cut].sum(-1, keepdim=True)
                of_patches = (x[there] for x in of_patches)
        else:
            continue
        said |= dict(zip((f"{name} boundary", f"{name} certainty"), of_patches))
    if changed is not None:
        said["changed"] = changed[:, :cut]
    return said, whole, doubtful


# ---- the properties --------------------------------------------------------------------------------------------------


def step_together(model: WorldModel, batch: Batch) -> Iterator[tuple[int, StepOutput]]:
    """The frames of all rows side by side, each time in one batch; a row begins a piece on a fresh state."""
    rows, state = len(batch.index), None
    for t in range(batch.index.shape[1]):
        fresh = model.initial_state(rows, KEY, batch.elapsed[:, t])
        # A piece in mid-row draws with the row's own step numbers.
        fresh = DreamState(fresh.tensors | {"step": torch.full((rows,), t)})
        state = fresh if state is None else fresh.where(batch.start[:, t], state)
        state, out = model.observe(state, batch.action[:, t], batch.frames[batch.index[:, t]], batch.first[:, t])
        yield t, out


def check_steps(choice: Choice, seed: int = 0) -> bool:
    """Rows together, and one of them alone. False where the draw is in doubt: there is nothing to compare."""
    config = build(choice)
    model = model_of(config, seed)
    batch = random_batch(config, rows=3, length=10, seed=seed)
    whole, doubtful = run(model, batch)
    if doubtful:
        return False
    E, near = config.causal[0].width, {"atol": 1e-4, "rtol": 1e-4}
    start, valid = (x.unflatten(0, (3, 10)) for x in (whole.chunks.start, whole.chunks.valid))
    for t, out in step_together(model, batch):
        torch.testing.assert_close(out.feature[:, :E], whole.y_last[:, t], **near)
        assert torch.equal(out.chunks, valid[:, t].sum(1))
        K = out.starts.shape[1]
        assert torch.equal(out.starts, torch.where(valid, start, -1)[:, t, :K])
        there = valid[:, t, :K].unsqueeze(-1)
        torch.testing.assert_close(out.latent * there, whole.latent[:, t, :K] * there, **near)
        torch.testing.assert_close(out.past * there, whole.y[:, t, :K] * there, **near)
    for piece in pieces(batch, 1):
        for t, feature in zip(piece, step_through(model, batch, 1, piece, int(KEY[1]))):
            torch.testing.assert_close(feature[:E], whole.y_last[1, t], **near)
    return True


def seen_as_dreamed(
    model: WorldModel, state: DreamState, action: Tensor, dreamed: StepOutput, changed: Tensor | None
) -> tuple[DreamState, StepOutput]:
    """What comes of the very chunks that were dreamed, had they been seen: all at once, with nothing to foretell."""
    start = dreamed.starts
    chunks = Chunks.at(start.clamp(min=0), start >= 0, model.frame_stage.patches.count, changed)
    none = torch.zeros(len(start), dtype=torch.bool)
    vector = action_vector(action, none, model.config.action)
    with torch.no_grad(), mock.patch.object(model.latent, "infer", lambda *_: dreamed.latent):
        unasked = torch.zeros(*start.shape, model.latent.parameters)
        return model._see(dict(state.tensors), vector, chunks, unasked, changed)


def check_dreams(choice: Choice, seed: int = 0) -> bool:
    """What is dreamed is what is seen of the same chunks, whoever dreams beside it. False where it is in doubt."""
    config = build(choice)
    model = model_of(config, seed)
    frames, begins = random_frames(config, 4, seed), torch.ones(4, dtype=torch.bool)
    near = {"atol": 1e-4, "rtol": 1e-4}
    with loops_in_doubt(config.main.loop.exit) as doubts, boundaries_in_doubt(doubts):
        state, _ = model.observe(model.initial_state(4, seed), None, frames, begins)
        for t in range(3):
            action, changed = random_actions(config, 4, seed=seed + t), None
            with mock.patch.object(model.prior, "draw_changes", wraps=model.prior.draw_changes) as drawn:
                after, dreamed = model.imagine(state, action)
            if drawn.called:
                changed = model.prior.draw_changes(*drawn.call_args.args)
            _, seen = seen_as_dreamed(model, state, action, dreamed, changed)
            _, alone = model.imagine(state[2], action[2:3])
            if any(doubts):
                return False
            torch.testing.assert_close(dreamed.feature, seen.feature, **near)
            there = (dreamed.starts >= 0).unsqueeze(-1)
            torch.testing.assert_close(dreamed.past * there, seen.past * there, **near)
            torch.testing.assert_close(dreamed.feature[2:3], alone.feature, **near)
            K = alone.starts.shape[1]
            assert torch.equal(dreamed.starts[2:3, :K], alone.starts) and (dreamed.starts[2, K:] == -1).all()
            state = after
    return True


def check_causality(choice: Choice, seed: int = 0) -> bool:
    """Whether there was anything to compare: False where the draw is in doubt."""
    config = build(choice)
    model = model_of(config, seed)
    batch = random_batch(config, rows=3, length=8, seed=seed)
    cut = 5
    other = replace(batch, frames=torch.cat([batch.frames, random_frames(config, 3, 999)]))
    other.index, other.action = batch.index.clone(), batch.action.clone()
    other.index[:, cut:] = len(batch.frames) + torch.arange(8 - cut)[None] % 3
    other.action[:, cut:] = random_actions(config, 3, 8 - cut, seed=77)
    before, whole, doubtful = said_before(model, batch, cut)
    after, changed, also_doubtful = said_before(model, other, cut)
    if doubtful or also_doubtful:
        return False
    near = 1e-4 if config.main.loop.warm_start else 1e-5  # another batch rounds otherwise, and there it grows
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(
            after[name], before[name], atol=near, rtol=near, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert (changed.y_last[:, cut:] - whole.y_last[:, cut:]).abs().max() > 1e-3, "the change must arrive at all"
    return True


def check_loading(choice: Choice, folder: Path, seed: int = 0) -> None:
    config = build(choice)
    model = model_of(config, seed).requires_grad_(False)  # as a loaded one: matmul takes another way with a gradient
    save_model(folder, model, {"id": "none"})
    loaded = load_model(folder)
    assert loaded.config == config
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    action, frame = random_actions(config, 3, seed=4), random_frames(config, 3, 5)
    dreams = []
    for each in (model, loaded):
        state, _ = each.observe(each.initial_state(3, KEY), action, frame, torch.ones(3, dtype=torch.bool))
        for _ in range(3):
            state, out = each.imagine(state, action)
        dreams.append((out.feature, each.decode(out)))
    assert torch.equal(dreams[0][0], dreams[1][0]) and torch.equal(dreams[0][1], dreams[1][1])


def check_learning(choice: Choice, seed: int = 0) -> None:
    config = build(choice)
    torch.manual_seed(seed)
    model = WorldModel(config).train()
    # With larger steps a painter may say the same of however a frame is cut, and a router that tries learns nothing.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    silent = {name for name, _ in model.named_parameters()}
    for update in range(3):
        model.anneal(frames=update / 2, causal=update / 2)
        generator = torch.Generator().manual_seed(update)
        batch = random_batch(config, seed=100 * seed + update)
        loss, _ = world_model_loss(model, batch, LossConfig(), key=KEY, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        silent -= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not silent


def at_frames(model: WorldModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The action that every stage is told at F_t, `(B * T, A)`, and what it takes in there, widened, `(B * T, D)`."""
    told: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}

    def hear(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def widened(_widening: Any, _args: Any, out: Tensor) -> None:
            taken[name] = out

        def done(_stage: Any, args: Any, _out: Any) -> None:
            _, side, marks = args
            told[name], taken[name] = side.action[marks.is_frame], taken[name][marks.is_frame]

        return widened, done

    hooks = []
    for name, stage in stages_of(model).items():
        widened, done = hear(name)
        hooks += [stage.widen.register_forward_hook(widened), stage.register_forward_hook(done)]
    parallel(model, batch)
    for hook in hooks:
        hook.remove()
    return told, taken


def check_actions(choice: Choice, seed: int = 0) -> None:
    """With forced boundaries every stage has the action of each frame, at the frame, whatever the routers merge."""
    config = build(choice)
    model = model_of(config, seed)
    batch = random_batch(config, rows=3, length=6, seed=seed)
    vector = action_vector(batch.action, batch.first, config.action)
    told, taken = at_frames(model, batch)
    for name in told:
        torch.testing.assert_close(told[name], vector.flatten(0, 1), atol=0, rtol=0, msg=f"{name} is told otherwise")
    for t in range(1, 6):
        other = replace(batch, action=batch.action.clone())
        other.action[:, t] = random_actions(config, 3, seed=99 + t)
        really = (action_vector(other.action, other.first, config.action) != vector).any(-1)
        _, after = at_frames(model, other)
        for name, before in taken.items():
            moved = (after[name] - before).abs().amax(-1).view(3, 6)
            assert (moved[:, t][really[:, t]] > 1e-5).all(), f"{name} does not see an action"


# ---- of any two mechanisms -------------------------------------------------------------------------------------------


@every_pair
def test_stepping_is_the_parallel_pass(number: int) -> None:
    assert any(check_steps(PAIRS[number], seed) for seed in range(6))


@every_pair
def test_a_dream_is_what_is_seen_of_the_same_chunks_whoever_dreams_beside_it(number: int) -> None:
    assert any(check_dreams(PAIRS[number], seed) for seed in range(6))


@every_pair
def test_the_future_never_moves_the_past(number: int) -> None:
    assert any(check_causality(PAIRS[number], seed) for seed in range(6))


@every_pair
def test_a_dream_of_a_loaded_model_is_the_same_to_the_bit(number: int, tmp_path: Path) -> None:
    check_loading(PAIRS[number], tmp_path)


@every_pair
def test_after_three_updates_every_parameter_has_had_a_gradient(number: int) -> None:
    check_learning(PAIRS[number])


# ---- of any config ---------------------------------------------------------------------------------------------------


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_any_config_steps_as_its_parallel_pass(choice: Choice, seed: int) -> None:
    assume(check_steps(choice, seed))


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_any_config_dreams_what_it_sees_of_the_same_chunks(choice: Choice, seed: int) -> None:
    assume(check_dreams(choice, seed))


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_in_any_config_the_future_never_moves_the_past(choice: Choice, seed: int) -> None:
    assume(check_causality(choice, seed))


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_any_config_dreams_the_same_to_the_bit_when_it_is_loaded(tmp_path: Path, choice: Choice, seed: int) -> None:
    check_loading(choice, tmp_path, seed)


@at_random
@given(EVERYTHING, st.integers(0, 1000))
def test_in_any_config_every_parameter_has_had_a_gradient_after_three_updates(choice: Choice, seed: int) -> None:
    check_learning(choice, seed)


@at_random
@given(CHOICES.map(lambda choice: effective(choice | {"frame_boundary": True})), st.integers(0, 1000))
def test_in_any_config_a_forced_boundary_never_loses_an_action(choice: Choice, seed: int) -> None:
    check_actions(choice, seed)


# What has it, and the part of the config and its field that take it away again.
BEGIN_AT_NOTHING: list[tuple[Choice, str, dict[str, Any]]] = [
    ({"path": 8}, "side", {"path": 0}),
    ({"values": True}, "side", {"values": False}),
    ({"inject": "add"}, "side", {"action": "padding"}),
    ({"sees_past": True}, "frame", {"sees_past": False}),
    ({"cut_off": True}, "causal", {"cut_off": False}),
    ({"lengths": True}, "causal", {"lengths": False}),
    ({"residual": "mamba"}, "causal", {"residual": "linear"}),
    ({"residual": "attention"}, "causal", {"residual": "linear"}),
]


@pytest.mark.parametrize("on, part, off", BEGIN_AT_NOTHING)
@settings(at_random, max_examples=6)
@given(choice=CHOICES, seed=st.integers(0, 1000))
def test_in_any_config_what_a_mechanism_adds_begins_at_nothing(
    on: Choice, part: str, off: dict[str, Any], choice: Choice, seed: int
) -> None:
    """A model with it, and one without that has the same weights where both have them, say the same."""
    config = build(choice | on | {"inner_unlike": False})  # what is switched is switched in all stages
    whole = getattr(config, part)
    parts = tuple(replace(stage, **off) for stage in whole) if isinstance(whole, tuple) else replace(whole, **off)
    torch.manual_seed(seed)
    with_it, plain = WorldModel(config).train(), WorldModel(replace(config, **{part: parts})).eval()
    for i in range(3):  # routers find their quantiles, nothing is learned
        parallel(with_it, random_batch(config, seed=200 + i))
    with_it.eval()
    shared, own = with_it.state_dict(), plain.state_dict()
    for name, value in own.items():
        if name in shared and shared[name].shape == value.shape:
            own[name] = shared[name]
        elif name.endswith(("widen.rest", "widen.action.weight")):
            assert (value == 0).all(), "the side vectors are cut in other parts, all of them zero"
        else:
            raise AssertionError(f"{name} is not in the other model")
    plain.load_state_dict(own)
    batch = random_batch(config, seed=seed)
    one, other = parallel(with_it, batch), parallel(plain, batch)
    assert torch.equal(one.y, other.y) and torch.equal(one.posterior, other.posterior)
