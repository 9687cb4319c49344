"""A softmax over few classes is torch's softmax, forward and gradient."""

from __future__ import annotations

import pytest
import torch

from worldmodel.kernels.few import FEW, softmax


@pytest.mark.parametrize("classes", [1, 2, 4, FEW - 1, FEW, 40])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_it_is_torchs_softmax_forward_and_gradient(classes: int, scale: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(5, 3, classes) * scale).requires_grad_()
    weight = torch.randn(5, 3, classes)
    ours, theirs = softmax(x), x.softmax(-1)
    torch.testing.assert_close(ours, theirs)
    (gradient,), (reference,) = (torch.autograd.grad((y * weight).sum(), x) for y in (ours, theirs))
    torch.testing.assert_close(gradient, reference)


def test_what_is_impossible_has_no_share() -> None:
    x = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, 5.0]])
    torch.testing.assert_close(softmax(x), x.softmax(-1))
    assert (softmax(x)[x == -torch.inf] == 0).all()
