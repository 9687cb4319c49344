"""The clock: how large a reward is follows from how late it is, and only what is left from what came before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import LEARNED, random_actions, random_batch, random_model
from test_model import KEY, parallel, pieces
from torch import Tensor

from worldmodel.clock import SCALES, Clock
from worldmodel.config import OutcomeConfig
from worldmodel.heads import Outcome
from worldmodel.losses import LossConfig, world_model_loss
from worldmodel.state import DreamState

CLOCK = replace(LEARNED, outcome=OutcomeConfig(clock=True))
# When random play won in 20,000 steps of DoorKey-5x5.
TIMES = torch.tensor([60, 113, 118, 150, 158, 188, 211, 217, 225, 231, 237])
ALL = torch.ones_like(TIMES, dtype=torch.bool)


def paid(t: Tensor) -> Tensor:
    """What MiniGrid pays."""
    return 1 - 0.9 * t / 250


def learn(y: Tensor, t: Tensor, reward: Tensor, *, clock: bool = True, updates: int = 1500) -> Outcome:
    """A head that has learned what was paid when, and what was seen then."""
    torch.manual_seed(0)
    outcome = Outcome(y.shape[1], clock=clock)
    optimizer = torch.optim.AdamW(outcome.parameters(), lr=3e-3)
    for _ in range(updates):
        if outcome.clock is not None:
            outcome.clock.fit(t, reward, torch.ones_like(t, dtype=torch.bool))
        loss = outcome.size_loss(outcome(y), t, reward).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return outcome.requires_grad_(False)


def told(outcome: Outcome, y: Tensor, t: int) -> Tensor:
    """What it expects to be paid after t actions."""
    return outcome.mean_size(outcome(y), torch.full((len(y),), t))


def two_kinds(first: int, early: tuple[int, int], late: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """60 rewards: which are of the first kind, when each came, and what was seen, which shows its kind plainly."""
    g = torch.Generator().manual_seed(1)
    kind = torch.arange(60) < first
    t = torch.where(kind, torch.randint(*early, (60,), generator=g), torch.randint(*late, (60,), generator=g))
    y = torch.randn(60, 32, generator=g)
    y[:, 0] = torch.where(kind, -2.0, 2.0)
    return kind, t, y


def set_clock(clock: Clock | None) -> None:
    """So that it says something that depends on the time, for each sign another thing."""
    assert clock is not None
    clock.slope.copy_(torch.tensor([[9.0, 9.0], [-2.0, 1.0]]))
    clock.base.copy_(torch.tensor([0.5, -3.5]))
    clock.latest.fill_(10_000)
    clock.floor.fill_(-5.0)
    clock.ceiling.fill_(5.0)


def test_what_time_explains_is_not_known_by_heart() -> None:
    y = torch.randn(len(TIMES), 32, generator=torch.Generator().manual_seed(0))  # no win looks like another
    outcome = learn(y, TIMES, paid(TIMES))
    torch.testing.assert_close(outcome.mean_size(outcome(y), TIMES), paid(TIMES), atol=0.02, rtol=0)
    for t in (100, 175, 237):  # whatever win it looks like
        torch.testing.assert_close(told(outcome, y, t), paid(torch.full((len(y),), t)), atol=0.02, rtol=0)
    early = told(outcome, y, 10)  # random play never won so soon
    assert early.mean() == pytest.approx(0.964, abs=0.03)
    assert early.std() < 0.02


def test_without_a_clock_wins_are_known_by_heart() -> None:
    """The reason for the clock; if this fails, it has become needless."""
    y = torch.randn(len(TIMES), 32, generator=torch.Generator().manual_seed(0))
    outcome = learn(y, TIMES, paid(TIMES), clock=False)
    torch.testing.assert_close(outcome.mean_size(outcome(y), TIMES), paid(TIMES), atol=0.03, rtol=0)
    assert told(outcome, y, 10).std() > 0.15


def test_what_does_not_follow_from_time_is_said_by_y() -> None:
    g = torch.Generator().manual_seed(0)
    y, t = torch.randn(40, 32, generator=g), torch.randint(1, 300, (40,), generator=g)
    reward = 5 * y[:, 0].sign()
    outcome = learn(y, t, reward, updates=600)
    torch.testing.assert_close(outcome.mean_size(outcome(y), t), reward, atol=0.5, rtol=0)


def test_crashes_early_and_wins_late_do_not_teach_that_waiting_pays() -> None:
    """As in MiniGrid's Dynamic-Obstacles: what is charged has one size, what is paid falls."""
    crash, t, y = two_kinds(45, (1, 12), (8, 60))
    outcome = learn(y, t, torch.where(crash, -1.0, 1 - 0.9 * t / 100))
    for later in (3, 20, 50):
        expected = told(outcome, y, later)
        torch.testing.assert_close(expected[crash], torch.full((45,), -1.0), atol=0.05, rtol=0)
        assert expected[~crash].mean() == pytest.approx(1 - 0.9 * later / 100, abs=0.05)


def test_small_rewards_early_and_large_ones_late_keep_their_size() -> None:
    """Here time explains little: the clock says little but the mean."""
    small, t, y = two_kinds(30, (1, 60), (50, 100))
    outcome = learn(y, t, torch.where(small, 0.1, 1.0))
    assert told(outcome, y, 95)[small].mean() < 0.3
    assert told(outcome, y, 5)[~small].mean() > 0.8


def test_a_new_clock_says_nothing_and_one_reward_is_said_at_all_times() -> None:
    clock = Clock()
    times = torch.tensor([0, 3, 2**40])
    assert clock(times).tolist() == [[0, 0]] * 3
    clock.fit(times, torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    assert clock(times).tolist() == [[0, 0]] * 3
    clock.fit(times, torch.tensor([torch.nan, 2.0, torch.inf]), torch.tensor([False, True, False]))
    torch.testing.assert_close(clock(times), torch.tensor([[2.0, 0.0]] * 3), atol=1e-3, rtol=0)
    clock.fit(times, torch.tensor([-4.0, 0.0, 0.0]), torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(clock(times), torch.tensor([[2.0, -4.0]] * 3), atol=1e-3, rtol=0)


def test_beyond_what_was_seen_it_stays_within_bounds() -> None:
    for side, sign in enumerate((1.0, -1.0)):
        clock = Clock()
        clock.fit(TIMES, sign * paid(TIMES), ALL)
        late, forever = sign * clock(torch.tensor([237, 2**40]))[:, side]
        assert late == forever and late == pytest.approx(0.147, abs=0.01)
        two = Clock()
        two.fit(torch.tensor([10, 11]), sign * torch.tensor([1.0, 2.0]), torch.tensor([True, True]))
        said = sign * two(torch.arange(10_000))[:, side]
        assert said.min() > 0.5 and said.max() < 2.7
        few, g = Clock(), torch.Generator().manual_seed(0)
        t = torch.randint(1, 20, (50,), generator=g)
        few.fit(t, sign * torch.rand(50, generator=g), t > 0)  # of no meaning
        said = sign * few(torch.arange(10_000))[:, side]
        assert said.min() > 0.2 and said.max() < 0.8


def test_what_was_taken_in_piece_by_piece_is_what_was_taken_in_at_once() -> None:
    once, often = Clock(), Clock()
    once.fit(TIMES, paid(TIMES), ALL)
    for t in TIMES:
        often.fit(t[None], paid(t[None]), ALL[:1])
    now = torch.arange(237)
    torch.testing.assert_close(often(now), once(now), atol=1e-4, rtol=0)
    torch.testing.assert_close(once(now)[:, 0], paid(now), atol=0.02, rtol=0)


def test_training_shows_the_clock_what_was_paid_and_a_look_does_not() -> None:
    model, batch = random_model(CLOCK), random_batch(CLOCK)
    batch.reward[0, 3] = -2.0
    assert model.outcome.clock is not None
    before = model.outcome.clock.moments.clone()
    model.eval()(batch, KEY)
    assert torch.equal(model.outcome.clock.moments, before)
    model.train()(batch, KEY)
    counted = (model.outcome.clock.moments - before)[:, -2, -2].tolist()
    arrived = ~batch.start
    assert counted == [int((arrived & (batch.reward > 0)).sum()), int((arrived & (batch.reward < 0)).sum())]
    assert min(counted) > 0


def test_the_loss_asks_at_the_time_of_the_frame() -> None:
    model, batch = random_model(CLOCK).eval(), random_batch(CLOCK)
    set_clock(model.outcome.clock)

    def loss(elapsed: Tensor) -> Tensor:
        at = replace(batch, elapsed=elapsed)
        return world_model_loss(model, at, LossConfig(), key=KEY, generator=torch.Generator())[1]["loss/reward"]

    assert (loss(batch.elapsed) - loss(batch.elapsed + 500)).abs() > 1e-2


@torch.no_grad()
def test_a_step_expects_the_reward_that_the_parallel_pass_expects() -> None:
    model = random_model(CLOCK)
    set_clock(model.outcome.clock)
    batch = random_batch(CLOCK, rows=3, length=10, seed=2)
    said = model.outcome(parallel(model, batch).y_last)
    expected = said.event.sigmoid() * model.outcome.mean_size(said, batch.elapsed)
    late = said.event.sigmoid() * model.outcome.mean_size(said, batch.elapsed + 100)
    assert (expected - late).abs().median() > 1e-2, "the time must matter to test anything"
    for row in range(3):
        for piece in pieces(batch, row):
            at = slice(row, row + 1)
            state = model.initial_state(1, KEY[at], batch.elapsed[at, piece.start])
            state = DreamState(state.tensors | {"step": torch.tensor([piece.start])})
            for t in piece:
                frame = batch.frames[batch.index[at, t]]
                state, out = model.observe(state, batch.action[at, t], frame, batch.first[at, t])
                torch.testing.assert_close(out.reward_mean[0], expected[row, t], atol=1e-4, rtol=1e-4)


def test_the_clock_runs_in_dreams_begins_anew_with_an_episode_and_is_seen() -> None:
    model = random_model(CLOCK)
    batch = random_batch(CLOCK)
    state = model.initial_state(3, KEY, torch.tensor([9, 20, 31]))
    frames, none = batch.frames[:3], torch.zeros(3, dtype=torch.bool)
    actions = random_actions(CLOCK, 3, seed=1)

    def check(state: DreamState, *elapsed: int) -> None:
        assert state.tensors["elapsed"].tolist() == list(elapsed)
        assert state.feature.shape == (3, model.feature_width)
        t = torch.tensor(elapsed).unsqueeze(-1)
        assert torch.equal(state.feature[:, -len(SCALES) :], t / (t + torch.tensor(SCALES)))

    state, _ = model.observe(state, actions, frames, none)
    check(state, 9, 20, 31)
    state, out = model.imagine(state, actions)
    check(state, 10, 21, 32)
    realigned, aligned = model.realign(state, actions, out)
    check(realigned, 11, 22, 33)
    assert torch.equal(aligned.feature, realigned.feature)
    state, _ = model.observe(state, actions, frames, torch.tensor([False, True, False]))
    check(state, 11, 0, 33)
