"""How many loops a token gets: by the draw, by its certainty, by what its row has had so far."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.config import LoopConfig
from worldmodel.loop_plan import (
    LoopCues,
    LoopPlan,
    Purse,
    draw_loops,
    plan_backprop,
    plan_loops,
    plan_step,
    starting_noise,
)


def config(**changes):
    return LoopConfig(layers="T1", **changes)


def counted(per_frame):
    """Cues of a row that makes so many tokens of its frames, one after the other."""
    frame = torch.arange(1, len(per_frame) + 1).repeat_interleave(torch.tensor(per_frame))
    return LoopCues(frames=frame[None], tokens=torch.arange(1, len(frame) + 1)[None])


def of_frames(planned, cues):
    """The loops of each frame."""
    return torch.zeros(int(cues.frames.max()) + 1).index_add_(0, cues.frames[0], planned[0].float())[1:]


def draws(c, n=1500):
    return torch.tensor([float(draw_loops(c, torch.tensor(key))) for key in range(n)])


@pytest.mark.parametrize("loops", [2.0, 4.0, 7.5])
def test_the_draw_has_the_wanted_mean_and_the_spread_of_a_lognormal_poisson(loops):
    n = draws(config(loops=loops, max_loops=200, spread=0.5))
    rate = loops - 1
    variance = rate + rate**2 * math.expm1(0.25)  # of a Poisson whose rate is log-normal with sigma 1/2
    assert abs(n.mean() - loops) < 4 * (variance / len(n)) ** 0.5
    assert abs(n.var() / variance - 1) < 0.25
    assert n.min() == 1


def test_the_draw_stays_within_bounds_follows_its_key_and_needs_some_spread():
    c = config(loops=6.0, max_loops=8, spread=1.0)
    n = draws(c, 400)
    assert (n.min(), n.max()) == (1, 8)
    assert torch.equal(n, draws(c, 400))
    for still in (config(loops=6.0, spread=0.0), config(loops=6.0, spread=0.0005)):
        assert (draws(still, 20) == 6).all()
    assert (draws(config(loops=1.0), 20) == 1).all()
    assert draws(config(loops=900.0, max_loops=5), 20).max() == 5  # e^-rate is zero long before


@pytest.mark.parametrize("base,expected", [(0.3, 1), (1.4, 1), (1.5, 2), (4.0, 4), (99.0, 8)])
def test_without_rules_all_get_one_rounded_number(base, expected):
    assert plan_loops(config(max_loops=8), base, LoopCues()) == expected


def test_a_certain_boundary_gets_three_times_the_loops_of_an_uncertain_one():
    p = torch.tensor([0.0, 0.3, 0.5, 0.75, 1.0])
    planned = plan_loops(config(certainty=True, max_loops=99), 20, LoopCues(certainty=p))
    assert planned.tolist() == [10, 10, 10, 20, 30]


@pytest.mark.parametrize("per_frame", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("budget", [5.0, 6.0, 6.5, 12.0])
@pytest.mark.parametrize("base", [4.0, 8.0])
def test_a_budget_holds_the_loops_of_a_frame_however_many_tokens_it_has(per_frame, budget, base):
    planned = plan_loops(config(budget=budget, loops=4.0, max_loops=64), base, counted([per_frame] * 60))
    so_far = planned.view(60, per_frame).sum(1).cumsum(0)
    wanted = budget * base / 4.0 * torch.arange(1, 61)
    # A token gets whole loops, and no frame knows that it will be the first of many with more tokens than one.
    assert ((so_far - wanted).abs() <= 0.5 + (per_frame - 1)).all()


def test_a_budget_is_held_when_frames_come_to_have_other_tokens():
    cues = counted([1] * 100 + [4] * 100 + [1] * 100)
    planned = plan_loops(config(budget=12.0, loops=4.0, max_loops=64), 4.0, cues)
    each = of_frames(planned, cues)
    assert (each[:100] == 12).all()
    assert each[100] == 15 and abs(each[101:200].sum() - 12 * 99) <= 3  # the first has not seen it coming: the rest pay
    assert each[102:200].min() >= 11 and each[102:200].max() <= 13
    assert planned[0, 100:104].tolist() == [12, 1, 1, 1]
    assert planned[0, -104:-100].tolist() == [3, 3, 3, 3]
    assert abs(each[200:].sum() - 12 * 100) <= 2 * 12 and ((each[210:] - 12).abs() <= 1).all()


def test_with_certainty_a_budget_is_shared_otherwise_but_held():
    cues = replace(counted([3] * 60), certainty=torch.tensor([1.0, 0.5, 0.5]).repeat(60)[None])
    c = config(budget=12.0, loops=4.0, max_loops=64, certainty=True)
    planned = plan_loops(c, 4.0, cues)[0].view(60, 3)
    assert abs(planned.sum() - 12 * 60) <= 12
    assert (planned[10:, 0] > planned[10:, 1]).all()
    everywhere = plan_loops(c, 4.0, replace(cues, certainty=torch.ones(1, 180)))
    assert abs(everywhere.sum() - 12 * 60) <= 12


def test_no_more_than_what_one_frame_may_spend_is_saved_or_owed():
    """A cap keeps 50 frames from spending what they may, then 50 have more tokens than there are loops for."""
    cues = counted([1] * 50 + [20] * 50 + [1] * 50)
    each = of_frames(plan_loops(config(budget=12.0, loops=4.0, max_loops=8), 4.0, cues), cues)
    assert (each[:50] == 8).all()
    assert each[50] <= 8 * 3 + 20 and (each[52:100] == 20).all()
    assert (each[130:] == 8).all()


@pytest.mark.parametrize("certainty", [False, True])
def test_steps_spend_a_budget_as_whole_rows_do(certainty):
    g = torch.Generator().manual_seed(0)
    c = config(budget=7.0, certainty=certainty, max_loops=64)
    begins = torch.rand(4, 40, generator=g) < 0.4  # a frame; some pass without a token
    frames = ((1 + torch.randint(0, 2, (4, 40), generator=g)) * begins).cumsum(1) + 1
    tokens = torch.arange(1, 41).repeat(4, 1)
    frames[2, 20:] -= frames[2, 20] - 1  # row 2 begins a new piece there
    tokens[2, 20:] -= 20
    sure = torch.rand(4, 40, generator=g)
    whole = plan_loops(c, 3.0, LoopCues(sure, frames, tokens))
    purse = Purse.empty(frames[:, 0])
    for m in range(40):
        step, purse = plan_step(c, 3.0, LoopCues(sure[:, m], frames[:, m], tokens[:, m]), purse)
        assert torch.equal(step, whole[:, m])


@given(
    st.floats(0.1, 50),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from([0.0, 3.0]),
    st.integers(0, 9),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plans_are_whole_and_within_bounds(base, most, certainty, budget, tokens, p):
    c = config(loops=4.0, max_loops=most, certainty=certainty, budget=budget)
    cues = LoopCues(torch.tensor([[p]]), torch.tensor([[min(tokens, 2)]]), torch.tensor([[tokens]]))
    planned = torch.as_tensor(plan_loops(c, base, cues))
    assert planned.dtype == torch.int64
    assert ((planned >= 1) & (planned <= most)).all()


@pytest.mark.parametrize("per_frame", [1, 2, 4])
def test_what_learns_stays_near_the_same_number_of_loops_whatever_the_tokens(per_frame):
    c = config(budget=8.0, loops=4.0, backprop=4, max_loops=64)
    cues = counted([per_frame] * 60)
    assert abs(plan_backprop(c, cues).sum() / 60 / (4 * 8.0 / 4.0) - 1) < 0.12
    assert plan_backprop(config(backprop=3), cues) == 3
    assert (plan_backprop(config(budget=0.1, backprop=1), cues) == 1).all()


def test_a_rule_without_its_cue_is_refused():
    with pytest.raises(ValueError, match="give certainty"):
        plan_loops(config(certainty=True), 4.0, LoopCues())
    with pytest.raises(ValueError, match="give frames and tokens"):
        plan_loops(config(budget=4.0), 4.0, LoopCues(certainty=torch.ones(1)))


def test_starting_noise_is_a_cut_normal_of_the_rows_own_key():
    key, place = torch.tensor([[5], [6]]).expand(2, 100), torch.arange(100).expand(2, 100)
    noise = starting_noise(key, place, 200)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.var() - 0.4 * 0.9733) < 0.01  # 0.9733: what is left of the variance when 3 deviations are kept
    assert noise.abs().max() <= 3 * 0.4**0.5 + 1e-6
    assert noise.abs().max() > 2.8 * 0.4**0.5
    assert torch.equal(starting_noise(key[1, 20:50], place[1, 20:50], 200), noise[1, 20:50])
    assert not torch.equal(noise[0], noise[1])


def test_a_plan_changes_all_of_its_tensors_and_no_numbers():
    plan = LoopPlan(torch.ones(2, 3, dtype=torch.int64), 4, torch.ones(2, 3, dtype=torch.bool), 0.1)
    flat = plan.map(torch.flatten)
    assert (flat.loops.shape, flat.running.shape, flat.backprop, flat.exit) == ((6,), (6,), 4, 0.1)
    assert LoopPlan(3, torch.ones(2, 3), None, 0.0).map(torch.flatten).backprop.shape == (6,)
