import pytest
import torch

from worldmodel.two_hot import TwoHot, symexp, symlog


def test_symexp_inverts_symlog():
    x = torch.tensor([-1e4, -3.0, -1e-3, 0.0, 1e-3, 0.5, 7.0, 1e4], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)


@pytest.mark.parametrize("bins", [2, 40, 41, 255])
def test_zero_logits_mean_exactly_zero(bins):
    assert (TwoHot(bins, -20.0, 20.0).mean(torch.zeros(3, bins)) == 0).all()


@pytest.mark.parametrize("low,high", [(-5.0, 5.0), (-1.0, 4.0)])
def test_minimum_of_the_loss_has_the_target_as_its_mean(low, high):
    two_hot = TwoHot(41, low, high)
    target = torch.tensor([0.0, 0.1, 0.93, -0.4, 1.0, 20.0])
    logits = torch.zeros(6, 41, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(400):
        optimizer.zero_grad()
        two_hot.loss(logits, target).sum().backward()
        optimizer.step()
    torch.testing.assert_close(two_hot.mean(logits), target, atol=0.02, rtol=0.01)


def test_loss_is_the_cross_entropy_with_a_two_hot_vector():
    two_hot = TwoHot(5, -2.0, 2.0)
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    low, high = two_hot.values[3], two_hot.values[4]
    target = 0.25 * low + 0.75 * high
    expected = -(logits.log_softmax(-1)[0] * torch.tensor([0, 0, 0, 0.25, 0.75])).sum()
    torch.testing.assert_close(two_hot.loss(logits, target[None])[0], expected)


def test_a_target_on_a_bin_or_outside_takes_that_bin_alone():
    two_hot = TwoHot(5, -2.0, 2.0)
    for target, bin in [(0.0, 2), (1e9, 4), (-1e9, 0), (two_hot.values[4].item(), 4), (two_hot.values[0].item(), 0)]:
        sure = torch.full((1, 5), -50.0)
        sure[0, bin] = 50.0
        assert two_hot.loss(sure, torch.tensor([target])).item() == pytest.approx(0.0, abs=1e-4)


def test_nan_target_gives_a_nan_loss_and_wrong_shapes_raise():
    two_hot = TwoHot()
    assert two_hot.loss(torch.zeros(1, 41), torch.tensor([float("nan")])).isnan().all()
    with pytest.raises(ValueError, match="do not fit"):
        two_hot.loss(torch.zeros(3, 1, 41), torch.zeros(1, 3))
