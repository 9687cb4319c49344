"""Latents: samples, their gradients and their divergences, against torch.distributions."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from worldmodel.config import LatentConfig
from worldmodel.draws import frame_draws
from worldmodel.latents import make_latent, partly_forgotten

CATEGORICAL = make_latent(LatentConfig(groups=3, classes=4, unimix=0.0))
GAUSSIAN = make_latent(LatentConfig(kind="gaussian", groups=5))


def draws(latent, n, seed=0):
    return frame_draws((torch.arange(n) << 32) + seed, torch.zeros(n, dtype=torch.int64), 1, latent.draws).latent[:, 0]


def parameters(latent, *shape, seed=0):
    return torch.randn(*shape, latent.parameters, generator=torch.Generator().manual_seed(seed))


def test_categorical_samples_are_one_hot_with_the_right_frequency():
    logits = parameters(CATEGORICAL, 1)
    z = CATEGORICAL.sample(logits.expand(20000, -1), draws(CATEGORICAL, 20000))
    assert set(z.unique().tolist()) == {0.0, 1.0}
    z = z.unflatten(-1, (3, 4))
    assert (z.sum(-1) == 1).all()
    p = logits.view(3, 4).softmax(-1)
    assert ((z.mean(0) - p).abs() < 4.5 * (p * (1 - p) / 20000).sqrt()).all()


def test_groups_are_drawn_independently():
    z = CATEGORICAL.sample(torch.zeros(20000, 12), draws(CATEGORICAL, 20000)).unflatten(-1, (3, 4))
    joint = torch.einsum("nc,nd->cd", z[:, 0], z[:, 1]) / 20000
    assert ((joint - 1 / 16).abs() < 4.5 * (1 / 16 * 15 / 16 / 20000) ** 0.5).all()


def test_a_sure_categorical_never_strays():
    """The uniform mix belongs to the losses: in samples it would spoil every other frame."""
    latent = make_latent(LatentConfig(groups=3, classes=4, unimix=0.5))
    logits = torch.zeros(1, 3, 4)
    logits[..., 2] = 40.0
    z = latent.sample(logits.flatten(1).expand(20000, -1), draws(latent, 20000)).unflatten(-1, (3, 4))
    assert (z.argmax(-1) == 2).all()


def test_the_gradient_goes_straight_through():
    logits = parameters(CATEGORICAL, 6).requires_grad_()
    z = CATEGORICAL.infer(logits, draws(CATEGORICAL, 6))
    assert torch.equal(z.detach(), CATEGORICAL.mode(logits.detach()))
    wish = torch.zeros(3, 4)
    wish[:, 1] = 1.0  # more of class 1
    (z * wish.flatten()).sum().backward()
    gradient = logits.grad.unflatten(-1, (3, 4))
    assert (gradient[..., 1] > 0).all()
    assert (gradient[..., [0, 2, 3]] < 0).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(6, 3))


@pytest.mark.parametrize("latent", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_a_sample_depends_on_its_own_draws_alone(latent):
    p = parameters(latent, 5)
    together = latent.sample(p, draws(latent, 5))
    for i in range(5):
        assert torch.equal(latent.sample(p[i : i + 1], draws(latent, 5)[i : i + 1])[0], together[i])
    assert not torch.equal(latent.sample(p, draws(latent, 5, seed=1)), together)


@pytest.mark.parametrize("latent", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_the_mode_is_the_likeliest_value(latent):
    p = parameters(latent, 4)
    if latent is CATEGORICAL:
        assert torch.equal(latent.mode(p).unflatten(-1, (3, 4)).argmax(-1), p.unflatten(-1, (3, 4)).argmax(-1))
    else:
        assert torch.equal(latent.mode(p), p[:, :5])


def test_categorical_cost_is_minus_log_of_the_prior_and_entropy_is_entropy():
    p, q = parameters(CATEGORICAL, 2, 7), parameters(CATEGORICAL, 2, 7, seed=1)
    code = CATEGORICAL.mode(p)
    Q = Independent(Categorical(logits=q.unflatten(-1, (3, 4))), 1)
    expected = -Q.log_prob(code.unflatten(-1, (3, 4)).argmax(-1))
    torch.testing.assert_close(CATEGORICAL.cost(code, p, q), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(CATEGORICAL.entropy(q), Q.entropy(), rtol=1e-4, atol=1e-5)


def test_the_uniform_mix_keeps_the_cost_of_the_unforeseen_finite():
    latent = make_latent(LatentConfig(groups=1, classes=4, unimix=0.01))
    sure, otherwise = torch.tensor([[200.0, 0, 0, 0]]), torch.tensor([[0, 200.0, 0, 0]]).requires_grad_()
    cost = latent.cost(latent.mode(sure), sure, otherwise)
    assert 0 < cost.item() < 8
    cost.backward()
    assert otherwise.grad.isfinite().all()
    assert latent.cost(latent.mode(sure), sure, sure).item() == pytest.approx(0, abs=0.01)


def gaussian(p):
    mean, log_std = p.chunk(2, -1)
    return Independent(Normal(mean, (4 * torch.tanh(log_std / 4)).exp()), 1)


def test_gaussian_samples_kl_and_entropy():
    p, q = parameters(GAUSSIAN, 6), parameters(GAUSSIAN, 6, seed=1)
    code = GAUSSIAN.sample(p, draws(GAUSSIAN, 6))
    torch.testing.assert_close(GAUSSIAN.cost(code, p, q), kl_divergence(gaussian(p), gaussian(q)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(GAUSSIAN.entropy(p), gaussian(p).entropy(), rtol=1e-4, atol=1e-5)
    z = GAUSSIAN.sample(p[:1].expand(20000, -1), draws(GAUSSIAN, 20000))
    expected = gaussian(p[:1])
    assert ((z.mean(0) - expected.mean[0]).abs() < 4.5 * expected.stddev[0] / 20000**0.5).all()
    torch.testing.assert_close(z.std(0), expected.stddev[0], rtol=0.03, atol=0)
    assert GAUSSIAN.cost(code, 1e3 * p, -1e3 * q).isfinite().all()


@pytest.mark.parametrize("latent", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_a_prior_learns_from_its_cost_to_foretell_the_posterior(latent):
    posterior = parameters(latent, 1)
    prior = parameters(latent, 1, seed=1).requires_grad_()
    code = latent.infer(posterior, draws(latent, 1))
    optimizer = torch.optim.Adam([prior], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        latent.cost(code, posterior, prior).sum().backward()
        optimizer.step()
    torch.testing.assert_close(latent.mode(prior), latent.mode(posterior), rtol=0, atol=0.05)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="categorical or gaussian"):
        make_latent(LatentConfig(kind="beta"))


def test_a_share_of_the_groups_is_forgotten_whole_by_the_rows_own_key():
    config = LatentConfig(groups=20, classes=3, forget=0.3)
    code = torch.ones(2, 50, 4, 60)
    kept = partly_forgotten(code, config, torch.tensor([5, 6])).view(2, 50, 4, 20, 3)
    assert (kept == kept[..., :1]).all()
    assert abs(kept.mean() - 0.7) < 0.03
    assert not torch.equal(kept[0], kept[1])
    alone = partly_forgotten(code[1:, :30, :2], config, torch.tensor([6])).view(1, 30, 2, 20, 3)
    assert torch.equal(alone[0], kept[1, :30, :2])


@pytest.mark.parametrize("share", ["unimix", "forget"])
def test_a_share_is_below_one(share):
    with pytest.raises(ValueError, match=f"{share} is a share below 1, not 1.5"):
        LatentConfig(**{share: 1.5})
