"""Side vectors: actions as vectors, and a start that is a plain H-Net."""

import pytest
import torch

from worldmodel.config import SideConfig
from worldmodel.side import Widening, action_vector
from worldmodel.specs import ActionSpec


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_discrete_actions_are_one_hot():
    v = action_vector(torch.tensor([2, 0, 1]), flags(0, 0, 1), ActionSpec(sizes=(3,)))
    assert v.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_multi_discrete_actions_are_one_hots_side_by_side():
    spec = ActionSpec(kind="multi_discrete", sizes=(2, 3))
    v = action_vector(torch.tensor([[1, 0], [0, 2]]), flags(0, 1), spec)
    assert v.tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_a_box_is_scaled_to_plus_minus_one_and_clipped():
    spec = ActionSpec(kind="box", sizes=(2,), low=-2.0, high=6.0)
    v = action_vector(torch.tensor([[-2.0, 6.0], [2.0, 99.0], [1.0, 1.0]]), flags(0, 0, 1), spec)
    assert v.tolist() == [[-1, 1, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "spec,garbage",
    [
        (ActionSpec(sizes=(3,)), torch.tensor([-1, 999])),
        (ActionSpec(kind="multi_discrete", sizes=(2, 3)), torch.tensor([[-1, 7], [9, 9]])),
        (ActionSpec(kind="box", sizes=(2,)), torch.tensor([[float("nan"), float("inf")], [0.0, float("nan")]])),
    ],
    ids=["discrete", "multi_discrete", "box"],
)
def test_where_an_episode_begins_the_action_does_not_matter(spec, garbage):
    v = action_vector(garbage, flags(1, 1), spec)
    assert v.tolist() == [[0.0] * spec.width + [1.0]] * 2


def test_leading_axes_are_kept():
    v = action_vector(torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, 5, dtype=torch.bool), ActionSpec(sizes=(7,)))
    assert v.shape == (4, 5, 8)


def test_a_new_side_vector_is_zero_and_learns_all_of_its_parts():
    widen = Widening(10, 20, SideConfig(), 4, path=3)
    x, action, path = torch.randn(1, 4, 10), torch.eye(4)[None], torch.randn(1, 4, 3)
    out = widen(x, action, path)
    assert out.shape == (1, 4, 20)
    assert torch.equal(out[..., :10], x) and (out[..., 10:] == 0).all()
    out.sum().backward()
    for part in (widen.action.weight, widen.path.weight, widen.rest):
        assert (part.grad != 0).all()


def test_each_part_fills_its_own_place():
    widen = Widening(10, 20, SideConfig(), 4, path=3)
    with torch.no_grad():
        for parameter in widen.parameters():
            parameter.normal_()
    action, path = torch.eye(4), torch.randn(4, 3)
    out = widen(torch.zeros(4, 10), action, path)[:, 10:]
    assert torch.equal(out[:, :3], widen.action(action)) and torch.equal(out[:, 3:6], widen.path(path))
    assert (out[:, 6:] == widen.rest).all()


def test_an_added_action_moves_what_is_widened_and_a_token_leaves_it_alone():
    x, action = torch.randn(4, 10), torch.eye(4)
    added, token = (Widening(10, 17, SideConfig(action=kind), 4) for kind in ("add", "token"))
    assert torch.equal(added(x, action)[:, :10], x), "a plain widening at first"
    with torch.no_grad():
        added.action.weight.normal_()
    assert ((added(x, action) - added(x, action.flip(0))).abs() > 0).all()
    assert torch.equal(token(x, action), token(x, action.flip(0)))


@pytest.mark.parametrize("wide", [10, 11, 5])
def test_a_width_that_does_not_grow_is_refused(wide):
    with pytest.raises(ValueError, match=f"growing width, not 10 -> {wide}"):
        Widening(10, wide, SideConfig(), 4)


def test_a_path_that_leaves_no_place_for_the_action_is_refused():
    with pytest.raises(ValueError, match="parallel path"):
        Widening(10, 20, SideConfig(), 4, path=9)
