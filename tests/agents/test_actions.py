import pytest
import torch

from worldmodel.agents.actions import action_distribution, output_width
from worldmodel.specs import ActionSpec

DISCRETE = ActionSpec(kind="discrete", sizes=(4,))
MULTI = ActionSpec(kind="multi_discrete", sizes=(3, 2))
BOX = ActionSpec(kind="box", sizes=(2,), low=-2.0, high=6.0)


def random_distribution(spec, rows, seed=0, **kwargs):
    output = torch.randn(output_width(spec), generator=torch.Generator().manual_seed(seed))
    return action_distribution(spec, output.expand(rows, -1), **kwargs)


def draw(distribution, spec, rows, seed=1):
    return distribution.sample(torch.rand(rows, spec.width, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("spec", [DISCRETE, MULTI, BOX])
def test_shapes(spec):
    distribution = action_distribution(spec, torch.zeros(5, 3, output_width(spec)), unimix=0.01)
    action = distribution.sample(torch.rand(5, 3, spec.width))
    assert action.shape == distribution.mode().shape == (5, 3, *spec.shape)
    assert action.dtype == (torch.float32 if spec.kind == "box" else torch.int64)
    assert distribution.log_prob(action).shape == distribution.entropy().shape == (5, 3)


def test_discrete_samples_follow_the_probabilities():
    distribution = random_distribution(DISCRETE, 40_000)
    share = draw(distribution, DISCRETE, 40_000).bincount(minlength=4) / 40_000
    torch.testing.assert_close(share, distribution.log_probs[0][0].exp(), atol=0.01, rtol=0)


def test_multi_discrete_log_prob_is_the_joint():
    distribution = random_distribution(MULTI, 1)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    joint = random_distribution(MULTI, 6).log_prob(every)
    torch.testing.assert_close(joint.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(-(joint.exp() * joint).sum(), distribution.entropy()[0])
    assert every[joint.argmax()].tolist() == distribution.mode()[0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_box_density_integrates_to_one_and_its_entropy_is_the_expectation(seed):
    spec = ActionSpec(kind="box", sizes=(1,), low=-1.0, high=1.0)
    x = torch.linspace(-1, 1, 20_001)[:, None]
    log_prob = random_distribution(spec, len(x), seed).log_prob(x).double()
    density = log_prob.exp()
    assert torch.trapezoid(density, dx=1e-4).item() == pytest.approx(1.0, abs=1e-4)
    entropy = random_distribution(spec, 1, seed).entropy()[0].double()
    torch.testing.assert_close(torch.trapezoid(-density * log_prob, dx=1e-4), entropy, atol=1e-4, rtol=0)


def test_box_samples_follow_the_density_and_stay_inside():
    distribution = random_distribution(BOX, 50_000, seed=2)
    action = draw(distribution, BOX, 50_000)
    assert (action >= -2).all() and (action <= 6).all()
    torch.testing.assert_close(-distribution.log_prob(action).mean(), distribution.entropy()[0], atol=0.02, rtol=0)
    extremes = action_distribution(BOX, torch.tensor([50.0, -50.0, 0.0, 0.0]))
    assert extremes.mode().tolist() == pytest.approx([6.0, -2.0])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("spec", [DISCRETE, MULTI, BOX])
def test_the_ends_of_the_uniform_numbers_give_finite_actions(spec, uniform):
    distribution = random_distribution(spec, 1)
    action = distribution.sample(torch.full((1, spec.width), uniform))
    assert torch.isfinite(action.float()).all() and torch.isfinite(distribution.log_prob(action)).all()


def test_unimix_is_a_floor_under_the_probabilities():
    distribution = action_distribution(DISCRETE, torch.tensor([100.0, 0, 0, 0]), unimix=0.04)
    assert distribution.log_probs[0].exp().min().item() == pytest.approx(0.01)
    assert distribution.entropy().item() > 0.1
