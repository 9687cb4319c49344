"""Side vectors: actions as vectors, and a start that is a plain H-Net."""

import pytest
import torch

from worldmodel.side import SideVector, action_vector
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


def test_a_new_side_vector_is_zero_and_learns_both_of_its_parts():
    side = SideVector(10, 17, 4)
    action = torch.eye(4)[None]
    out = side(action)
    assert out.shape == (1, 4, 7)
    assert (out == 0).all()
    out.sum().backward()
    assert (side.action.weight.grad != 0).all()
    assert (side.rest.grad != 0).all()


def test_the_action_fills_one_part_and_the_learned_rest_the_other():
    side = SideVector(10, 17, 4)
    with torch.no_grad():
        side.action.weight.normal_()
        side.rest.normal_()
    out = side(torch.eye(4))
    assert (out[:, 3:] == out[:1, 3:]).all()
    assert len(out[:, :3].unique(dim=0)) == 4


@pytest.mark.parametrize("wide", [10, 11, 5])
def test_a_width_that_does_not_grow_is_refused(wide):
    with pytest.raises(ValueError, match=f"growing width, not 10 -> {wide}"):
        SideVector(10, wide, 4)
