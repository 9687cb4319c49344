"""The clock: how large a reward is follows from how late it is, and only what is left from what came before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import LEARNED, random_actions, random_batch, random_model
from test_model import KEY, parallel, pieces

from worldmodel.config import OutcomeConfig
from worldmodel.heads import Clock, Outcome

CLOCK = replace(LEARNED, outcome=OutcomeConfig(clock=True))
# When random play won in 20,000 steps of DoorKey-5x5, and what it was paid.
TIMES = torch.tensor([60, 113, 118, 150, 158, 188, 211, 217, 225, 231, 237])


def paid(t: torch.Tensor) -> torch.Tensor:
    return 1 - 0.9 * t / 250


@torch.enable_grad()
def learn(outcome: Outcome, y: torch.Tensor, t: torch.Tensor, reward: torch.Tensor, updates: int) -> Outcome:
    optimizer = torch.optim.AdamW(outcome.parameters(), lr=3e-3)
    for _ in range(updates):
        if outcome.clock is not None:
            outcome.clock.fit(t, reward, torch.ones_like(t, dtype=torch.bool))
        loss = outcome.size_loss(outcome(y)[2], t, reward).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return outcome


def taught(*, clock: bool) -> tuple[Outcome, torch.Tensor]:
    """A head that has learned what the wins of random play paid, and what it saw in each, which is never alike."""
    torch.manual_seed(0)
    y = torch.randn(len(TIMES), 32)
    return learn(Outcome(32, clock=clock), y, TIMES, paid(TIMES), 2000), y


@torch.no_grad()
def test_what_time_explains_is_not_known_by_heart() -> None:
    outcome, y = taught(clock=True)
    logits = outcome(y)[2]
    torch.testing.assert_close(outcome.mean_size(logits, TIMES), paid(TIMES), atol=0.02, rtol=0)
    for t in (100, 175, 240):  # whatever win it looks like
        then = torch.full_like(TIMES, t)
        torch.testing.assert_close(outcome.mean_size(logits, then), paid(then), atol=0.02, rtol=0)
    early = outcome.mean_size(logits, torch.full_like(TIMES, 10))  # random play never won so soon
    assert early.mean() == pytest.approx(0.96, abs=0.03)
    assert early.std() < 0.02


@torch.no_grad()
def test_without_a_clock_wins_are_known_by_heart() -> None:
    """The reason for the clock; if this fails, it has become needless."""
    outcome, y = taught(clock=False)
    logits = outcome(y)[2]
    torch.testing.assert_close(outcome.mean_size(logits, TIMES), paid(TIMES), atol=0.03, rtol=0)
    early = outcome.mean_size(logits, torch.full_like(TIMES, 10))
    assert early.std() > 0.15


def test_what_does_not_follow_from_time_is_said_by_y() -> None:
    torch.manual_seed(0)
    y, t = torch.randn(40, 32), torch.randint(1, 300, (40,))
    reward = 5 * y[:, 0].sign()
    outcome = learn(Outcome(32, clock=True), y, t, reward, 1000)
    torch.testing.assert_close(outcome.mean_size(outcome(y)[2], t), reward, atol=0.5, rtol=0)


def test_a_new_clock_says_nothing_and_one_reward_is_the_mean() -> None:
    clock = Clock()
    late = torch.tensor([0, 3, 2**40])
    assert (clock(late) == 0).all()
    nothing = torch.zeros(3)
    clock.fit(late, nothing, nothing == 0)
    assert (clock(late) == 0).all()
    clock.fit(late, torch.tensor([0.0, 2.0, 7.0]), torch.tensor([True, True, False]))
    torch.testing.assert_close(clock(late), torch.full((3,), 2.0), atol=1e-3, rtol=0)


def test_what_was_taken_in_piece_by_piece_is_what_was_taken_in_at_once() -> None:
    once, often, all_of_them = Clock(), Clock(), torch.ones_like(TIMES, dtype=torch.bool)
    once.fit(TIMES, paid(TIMES), all_of_them)
    for t in TIMES:
        often.fit(t[None], paid(t[None]), all_of_them[:1])
    now = torch.arange(250)
    torch.testing.assert_close(often(now), once(now), atol=1e-4, rtol=0)
    torch.testing.assert_close(once(now), paid(now), atol=0.02, rtol=0)


def test_rewards_that_time_does_not_explain_have_their_mean_at_any_time() -> None:
    clock, g = Clock(), torch.Generator().manual_seed(0)
    t = torch.randint(1, 500, (2000,), generator=g)
    clock.fit(t, torch.randn(2000, generator=g).sign(), t > 0)
    assert clock(torch.arange(500)).abs().max() < 0.2


def test_training_shows_the_clock_what_was_paid_and_a_look_does_not() -> None:
    model, batch = random_model(CLOCK), random_batch(CLOCK)
    assert model.outcome.clock is not None
    before = model.outcome.clock.moments.clone()
    model.eval()(batch, KEY)
    assert torch.equal(model.outcome.clock.moments, before)
    model.train()(batch, KEY)
    counted = int(((batch.reward != 0) & ~batch.start).sum())
    assert (model.outcome.clock.moments - before)[-1, -2] == counted > 0


@torch.no_grad()
def test_a_step_expects_the_reward_that_the_parallel_pass_expects() -> None:
    model = random_model(CLOCK)
    assert model.outcome.clock is not None
    model.outcome.clock.weight += torch.tensor([3.0, 3.0, 3.0])
    batch = random_batch(CLOCK, rows=3, length=10, seed=2)
    event, _, size = model.outcome(parallel(model, batch).y_last)
    expected = event.sigmoid() * model.outcome.mean_size(size, batch.elapsed)
    late = event.sigmoid() * model.outcome.mean_size(size, batch.elapsed + 100)
    assert (expected - late).abs().min() > 1e-3, "the time must matter to test anything"
    for row in range(3):
        for piece in pieces(batch, row):
            at = slice(row, row + 1)
            state = model.initial_state(1, KEY[at], batch.elapsed[at, piece.start])
            state = type(state)(state.tensors | {"step": torch.tensor([piece.start])})
            for t in piece:
                frame = batch.frames[batch.index[at, t]]
                state, out = model.observe(state, batch.action[at, t], frame, batch.first[at, t])
                torch.testing.assert_close(out.reward_mean[0], expected[row, t], atol=1e-4, rtol=1e-4)


def test_the_clock_runs_in_dreams_and_begins_anew_with_an_episode() -> None:
    model = random_model(CLOCK)
    batch = random_batch(CLOCK)
    state = model.initial_state(3, KEY, torch.tensor([9, 20, 31]))
    frames, none = batch.frames[:3], torch.zeros(3, dtype=torch.bool)
    actions = random_actions(CLOCK, 3, seed=1)
    state, _ = model.observe(state, actions, frames, none)
    assert state.tensors["elapsed"].tolist() == [9, 20, 31]
    state, out = model.imagine(state, actions)
    assert state.tensors["elapsed"].tolist() == [10, 21, 32]
    realigned, _ = model.realign(state, actions, out)
    assert realigned.tensors["elapsed"].tolist() == [11, 22, 33]
    state, _ = model.observe(state, actions, frames, torch.tensor([False, True, False]))
    assert state.tensors["elapsed"].tolist() == [11, 0, 33]
