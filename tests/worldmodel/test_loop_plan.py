"""How many loops a token gets: by the draw, by its certainty, by what its row has had so far."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.config import LoopConfig
from worldmodel.loop_plan import LoopCues, LoopPlan, draw_loops, plan_backprop, plan_loops, starting_noise


def config(**changes):
    return LoopConfig(layers="T1", **changes)


def counted(per_frame, frames=60):
    """Cues of a row that makes `per_frame` tokens of each frame."""
    frame = torch.arange(1, frames + 1).repeat_interleave(per_frame)
    return LoopCues(frames=frame[None], tokens=torch.arange(1, len(frame) + 1)[None])


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


@pytest.mark.parametrize("per_frame", [1, 2, 3, 4])
@pytest.mark.parametrize("base", [2.0, 4.0, 8.0])
def test_a_budget_holds_the_loops_of_a_frame_however_many_tokens_it_has(per_frame, base):
    cues = counted(per_frame)
    planned = plan_loops(config(budget=12.0, loops=4.0, max_loops=64), base, cues)
    wanted = 12.0 * base / 4.0  # a token rounds by half a loop at most, and the first few have little to go by
    assert abs(planned.sum() / 60 - wanted) <= 0.5 * per_frame + 0.12 * wanted


def test_a_budget_looks_back_only_and_shares_with_certainty():
    c = config(budget=12.0, certainty=True, max_loops=64)
    frames, tokens = torch.tensor([[1, 1, 2, 2, 2]]), torch.tensor([[1, 2, 3, 4, 5]])
    sure = torch.ones(1, 5)
    whole = plan_loops(c, c.loops, LoopCues(sure, frames, tokens))
    assert whole.tolist() == [[18, 9, 12, 9, 7]]  # 1.5 * 12 * frames / tokens
    for m in range(5):
        step = plan_loops(c, c.loops, LoopCues(sure[:, m], frames[:, m], tokens[:, m]))
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
    cues = LoopCues(torch.tensor([p]), torch.tensor([min(tokens, 2)]), torch.tensor([tokens]))
    planned = torch.as_tensor(plan_loops(c, base, cues))
    assert planned.dtype == torch.int64
    assert ((planned >= 1) & (planned <= most)).all()


@pytest.mark.parametrize("per_frame", [1, 2, 4])
def test_what_learns_stays_near_the_same_number_of_loops_whatever_the_tokens(per_frame):
    c = config(budget=8.0, loops=4.0, backprop=4, max_loops=64)
    cues = counted(per_frame)
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
