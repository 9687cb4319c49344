"""Losses: what is asked where, what is masked, and that the way a batch is stored changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, EXTRA, LEARNED, STRIDE, random_batch, random_model

from worldmodel.batch import Batch
from worldmodel.config import TimeConfig
from worldmodel.losses import LossConfig, loose_frames, picture_loss, same_shape, world_model_loss
from worldmodel.model import WorldModel

KEY = torch.tensor([11, 22, 33])


def loss_of(model: WorldModel, batch: Batch, **config: float) -> tuple[float, dict[str, float]]:
    g = torch.Generator().manual_seed(0)
    total, notes = world_model_loss(model, batch, LossConfig(**config), key=KEY, generator=g)
    return total.item(), {name: value.item() for name, value in notes.items()}


def test_shapes_that_broadcast_are_refused() -> None:
    same_shape(torch.zeros(3, 1, 5), torch.zeros(3, 1, 5))
    with pytest.raises(ValueError, match=r"\(3, 1, 5\) and \(1, 3, 5\)"):
        same_shape(torch.zeros(3, 1, 5), torch.zeros(1, 3, 5))


@pytest.mark.parametrize("name", ["stride", "extra", "gaussian", "vector_learned"])
def test_a_frame_stored_twice_is_the_frame_stored_once_and_counted_twice(name: str) -> None:
    """Distinct frames are encoded once: means, F, G and the quantile must weigh them by how often they occur."""
    config = CONFIGS[name]
    once = random_batch(config, distinct=6)
    once.index[once.index == 5] = 0  # a frame that no row shows
    every = replace(once, frames=once.frames[once.index.flatten()], index=torch.arange(27).view(3, 9))
    once.frames = once.frames[:5]  # "loose" frames are there to be painted, so none must be left over here
    results = []
    for batch in (once, every):
        model = random_model(config).train()
        with torch.no_grad():
            seen = model(batch, KEY)
            _, notes = loss_of(model, batch)
        buffers = {label: value.clone() for label, value in model.named_buffers()}
        results.append((seen, notes, buffers))
    (a, notes_a, buffers_a), (b, notes_b, buffers_b) = results
    torch.testing.assert_close(a.y_last, b.y_last, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.posterior, b.posterior, atol=1e-4, rtol=1e-4)
    assert torch.equal(a.chunks.start, b.chunks.start)
    for label in notes_a:
        if label not in ("loss/total", "loss/reconstruction", "data/distinct_share"):  # other frames are painted
            assert notes_a[label] == pytest.approx(notes_b[label], rel=1e-3, abs=1e-4), label
    for label, value in buffers_a.items():
        torch.testing.assert_close(value, buffers_b[label], atol=1e-4, rtol=1e-4, msg=label)


def test_loose_frames_are_painted_and_nothing_else() -> None:
    batch = random_batch(LEARNED, distinct=6)
    batch.index[batch.index >= 4] = 0
    assert loose_frames(batch).tolist() == [4, 5]
    model = random_model(LEARNED).train()
    bare = replace(batch, frames=batch.frames[:4])
    with_loose, without = loss_of(model, batch)[1], loss_of(model, bare)[1]
    for label in with_loose:
        if "reconstruction" not in label and label not in ("loss/total", "data/distinct_share"):
            assert with_loose[label] == pytest.approx(without[label], rel=1e-4, abs=1e-6), label
    assert with_loose["loss/reconstruction"] != without["loss/reconstruction"]


@pytest.mark.parametrize("boundary", ["stride", "learned"])
@pytest.mark.parametrize("layers", ["", "m1"])
def test_loose_frames_can_be_all_that_is_painted(boundary: str, layers: str) -> None:
    config = replace(LEARNED, frame=replace(LEARNED.frame, boundary=boundary), time=TimeConfig(layers=layers))
    batch = random_batch(config, distinct=6)
    batch.index[batch.index >= 4] = 0
    model = random_model(config)
    with torch.no_grad():
        model.frame_stage.paint.weight.zero_()
        model.frame_stage.paint.bias.fill_(0.25)
    expected = (model.frame_stage.patches(batch.frames[4:]) - 0.25).square().sum((1, 2)).mean().item()
    assert loss_of(model, batch, paint=0)[1]["loss/reconstruction"] == pytest.approx(expected, rel=1e-4)


def test_pictures_are_painted_from_their_own_codes() -> None:
    """The loss of the first updates is zero when the painter is right, and says by how much it is wrong."""
    model = random_model(STRIDE)
    batch = random_batch(STRIDE, distinct=5)
    batch.index[:] = 0
    stage = model.frame_stage
    with torch.no_grad():
        stage.paint.weight.zero_()
        stage.paint.bias.fill_(0.25)
    total, notes = picture_loss(model, batch, LossConfig(reconstruction=2.0), key=KEY)
    expected = (stage.patches(batch.frames[1:]) - 0.25).square().sum((1, 2)).mean().item()
    assert notes["loss/reconstruction"].item() == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize(
    "name, terms",
    [
        ("stride", {"reconstruction"}),
        ("learned", {"reconstruction", "ratio"}),
        ("gaussian", {"reconstruction", "ratio", "standard"}),
        ("tried", {"reconstruction", "trial"}),
        ("surprise", {"reconstruction", "foresight"}),
    ],
)
def test_every_term_of_pictures_is_logged_by_its_name(name: str, terms: set[str]) -> None:
    config = LossConfig(reconstruction=0.5, ratio=2.0, standard=3.0, trial=5.0, foresight=7.0)
    total, notes = picture_loss(random_model(CONFIGS[name]).train(), random_batch(CONFIGS[name]), config, key=KEY)
    said = {label.removeprefix("loss/"): value for label, value in notes.items() if label.startswith("loss/")}
    assert said.keys() == terms | {"total"}
    assert not any(value.requires_grad for value in notes.values())
    weighed = sum(getattr(config, term) * said[term].item() for term in terms)
    assert said["total"].item() == total.item() == pytest.approx(weighed, rel=1e-5)


def test_normal_codes_keep_a_width_while_pictures_are_learned() -> None:
    """Nothing else asks for one: without it they would be as sure as they can, and no prior would find them."""
    model, batch = random_model(CONFIGS["gaussian"]), random_batch(CONFIGS["gaussian"])
    config, unasked = LossConfig(reconstruction=0.0, ratio=0.0), []
    optimizer = torch.optim.Adam(model.frame_stage.parameters(), lr=0.03)
    for _ in range(60):
        total, _ = picture_loss(model, batch, config, key=KEY)
        unasked.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert unasked[-1] < 0.05 * unasked[0]  # nothing but the standard normal costs nothing


@pytest.mark.parametrize("name", ["stride", "learned"])
def test_where_a_piece_begins_in_mid_episode_nothing_is_asked_of_its_first_frame(name: str) -> None:
    model = random_model(CONFIGS[name])
    batch = random_batch(CONFIGS[name])
    unknown = batch.start & ~batch.first
    assert unknown.sum() >= 2
    before = loss_of(model, batch)[1]
    batch.reward[unknown], batch.terminated[unknown] = 7.0, True
    after = loss_of(model, batch)[1]
    assert before == after
    # A change of what is asked for elsewhere does arrive.
    batch.reward[~batch.start] += 1.0
    assert loss_of(model, batch)[1]["loss/reward"] != before["loss/reward"]


def test_first_frames_of_episodes_are_predicted_from_nothing_but_pay_nothing() -> None:
    """Their chunks are asked for (dreams may begin there), their reward and end are not."""
    model = random_model(LEARNED)
    batch = random_batch(LEARNED)
    batch.first[:], batch.start[:] = True, True  # every frame begins an episode
    notes = loss_of(model, batch)[1]
    assert notes["loss/dynamics"] > 0
    assert notes["loss/start"] > 0
    assert notes["loss/reward"] == notes["loss/terminated"] == 0


def test_only_mid_episode_starts_ask_nothing_at_all_and_divide_by_no_zero() -> None:
    model = random_model(LEARNED)
    batch = random_batch(LEARNED)
    batch.first[:], batch.start[:] = False, True
    notes = loss_of(model, batch)[1]
    assert notes["loss/dynamics"] == notes["loss/start"] == notes["loss/reward"] == 0
    assert all(value == value for value in notes.values())


def test_reward_and_termination_belong_to_the_frame_they_are_stored_with() -> None:
    """The last token's y of frame t, no other, gets a gradient from reward[t]."""
    model = random_model(STRIDE)
    batch = random_batch(STRIDE)
    batch.first[:], batch.start[:] = False, False
    batch.first[:, 0] = batch.start[:, 0] = True
    batch.reward[:] = 0
    said = model.outcome(model(batch, KEY).y_last)
    for t in range(1, 9):
        paid, ended = replace(batch, reward=batch.reward.clone()), replace(batch, terminated=batch.terminated.clone())
        paid.reward[1, t] = 2.0
        before, after = loss_of(model, batch)[1]["loss/reward"], loss_of(model, paid)[1]["loss/reward"]
        expected = model.outcome.size.loss(said.size[1, t][None], torch.tensor([2.0])).item() - said.event[1, t].item()
        assert (after - before) * 24 == pytest.approx(expected, rel=1e-2, abs=1e-2)
        ended.terminated[1, t] = ~ended.terminated[1, t]
        sign = -1 if ended.terminated[1, t] else 1
        before, after = loss_of(model, batch)[1]["loss/terminated"], loss_of(model, ended)[1]["loss/terminated"]
        assert (after - before) * 24 == pytest.approx(sign * said.terminated[1, t].item(), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("name", ["learned", "extra", "vector_learned"])
def test_the_start_loss_is_minus_log_of_dreaming_those_starts(name: str) -> None:
    """Chunk by chunk, END included, with the same y: an off-by-one here would train another dream than is dreamed."""
    config = CONFIGS[name]
    model = random_model(config)
    batch = random_batch(config, rows=3, length=3)
    batch.first[:], batch.start[:] = True, True
    seen = model(batch, KEY)
    P = model.prior.patches
    total = 0.0
    for i in range(9):
        starts = seen.chunks.start[i, seen.chunks.valid[i]].tolist()
        last = -1
        for k, start in enumerate([*starts, P]):
            log_p = model.prior.start_logits(seen.y.flatten(0, 1)[i, k], torch.tensor(last)).log_softmax(-1)
            assert (log_p.exp()[: last + 1] == 0).all()  # never back, never twice
            total -= log_p[start].item()
            last = start if start < P else last
        assert starts[0] == 0
    assert loss_of(model, batch)[1]["loss/start"] == pytest.approx(total / 9, rel=1e-4)


def test_the_first_chunk_always_begins_at_the_first_patch_and_costs_nothing() -> None:
    model = random_model(EXTRA)
    log_p = model.prior.start_logits(torch.randn(5, 24), torch.full((5,), -1)).log_softmax(-1)
    assert torch.equal(log_p[:, 0], torch.zeros(5))


@pytest.mark.parametrize("name", ["stride", "learned", "gaussian"])
def test_prior_and_posterior_are_pulled_by_their_own_terms_alone(name: str) -> None:
    model = random_model(CONFIGS[name]).train()
    batch = random_batch(CONFIGS[name])
    silent = dict.fromkeys(("reconstruction", "start", "reward", "terminated", "ratio"), 0.0)

    def moved(**weights: float) -> set[str]:
        model.zero_grad()
        g = torch.Generator().manual_seed(0)
        config = LossConfig(**(silent | weights | {"free_nats": 0.0}))
        world_model_loss(model, batch, config, key=KEY, generator=g)[0].backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        return {n for n in gradients if n.startswith(("prior.latent", "frame_stage.code.posterior"))}

    assert moved(dynamics=1.0, representation=0.0) == {"prior.latent.weight", "prior.latent.bias"}
    assert moved(dynamics=0.0, representation=1.0) == {
        "frame_stage.code.posterior.weight",
        "frame_stage.code.posterior.bias",
    }


def test_a_nan_anywhere_reaches_the_loss() -> None:
    """Masks multiply, so even a hidden NaN is seen: the run stops instead of learning from a broken batch."""
    for field in ("frames", "action", "reward"):
        config = replace(CONFIGS["vector"], action=CONFIGS["box"].action)
        batch = random_batch(config)
        values = getattr(batch, field)
        values[1 if field == "frames" else (1, 5)] = torch.nan
        if field == "frames":
            batch.index[0, 3] = 1
        assert loss_of(random_model(config), batch)[0] != loss_of(random_model(config), batch)[0]


def test_loops_their_correlation_and_how_far_the_last_one_moved_are_logged() -> None:
    config = CONFIGS["looped"]
    model, batch, key = random_model(config).train(), random_batch(config), torch.arange(3)
    _, notes = world_model_loss(model, batch, LossConfig(), key=key, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loops = model(batch, key).loops
    assert loops is not None and 1 <= loops.loops <= config.main.loop.max_loops
    assert notes["loops/mean"] == loops.loops
    torch.testing.assert_close(notes["loops/token_correlation"], loops.correlation)
    torch.testing.assert_close(notes["loops/moved_in_the_last"], loops.moved)
