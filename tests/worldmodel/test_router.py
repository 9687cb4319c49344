"""The router keeps its rate, whatever its inputs look like, and its statistics count what they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.router import Router, straight_through, weighted_quantile


def vectors(rows, length, width=16, seed=0):
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def free_after_the_first(x):
    free = torch.ones(x.shape[:2])
    free[:, 0] = 0
    return free


def run(router, x, weight=None):
    free = free_after_the_first(x)
    return router(x, free, free if weight is None else weight)


def test_probability_is_the_angle_between_neighbours():
    router = Router(16, rate=0.25).eval()
    with torch.no_grad():
        router.q.weight += 0.1 * torch.randn(16, 16)
    x = vectors(1, 6)
    q, k = router.q(x[0, :-1]), router.k(x[0, 1:])
    expected = (1 - torch.nn.functional.cosine_similarity(q, k, dim=-1)) / 2
    torch.testing.assert_close(run(router, x).probability[0, 1:], expected, rtol=1e-4, atol=1e-5)


def test_straight_through_is_exactly_one_and_has_a_gradient():
    p = torch.rand(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    boundary = p.detach() > 0.5
    gate = straight_through(p, boundary)
    assert (gate == 1).all()
    gate.sum().backward()
    assert torch.equal(p.grad, torch.where(boundary, 1.0, -1.0))


def test_ratio_loss_is_one_at_the_wanted_rate_and_pulls_towards_it():
    router = Router(16, rate=0.25).eval()
    routing = run(router, vectors(8, 50))
    F, G, n = routing.hard_rate, routing.soft_rate, 4.0
    torch.testing.assert_close(routing.ratio_loss, n / (n - 1) * ((n - 1) * F * G + (1 - F) * (1 - G)))
    assert pytest.approx(1) == 4 / 3 * (3 * 0.25**2 + 0.75**2)
    routing.ratio_loss.backward()
    assert router.q.weight.grad.abs().sum() > 0
    assert router.k.weight.grad.abs().sum() > 0


def lookalikes(kind, seed):
    """Rows of vectors as they come out of encoders: noise, almost the same everywhere, or of a few kinds only."""
    x = vectors(16, 49, seed=seed)
    if kind == "alike":  # cos is 1 - 1e-5 between any two of them
        x = 30 * vectors(1, 1, seed=999) + 0.05 * x
    elif kind == "few kinds":  # as tiles of a grid world are, told apart by little beside their place
        g = torch.Generator().manual_seed(seed)
        which = (torch.rand(16, 49, generator=g) ** 3 * 16).long()
        x = torch.nn.functional.one_hot(which, 16).float() + 0.3 * vectors(1, 49, seed=999)
    return x


@pytest.mark.parametrize("kind", ["noise", "alike", "few kinds"])
@pytest.mark.parametrize("rate", [1 / 8, 1 / 3])
def test_the_rate_is_held_from_the_first_pass_on(kind, rate):
    router = Router(16, rate=rate)
    held = [run(router, lookalikes(kind, i)).hard_rate.item() / rate for i in range(10)]
    assert held == pytest.approx([1] * 10, abs=0.05)
    router.eval()  # what it keeps from the last pass holds for vectors that it has not seen
    unseen = [run(router, lookalikes(kind, i)).hard_rate.item() / rate for i in range(100, 110)]
    assert sum(unseen) / 10 == pytest.approx(1, abs=0.3)  # 98 boundaries say where tau is


def test_equal_vectors_give_no_boundary_but_no_nan():
    router = Router(16, rate=0.25)
    for _ in range(3):
        routing = run(router, torch.ones(2, 9, 16))
        assert routing.probability.isfinite().all()
        assert routing.ratio_loss.isfinite()
    x = vectors(8, 30)
    routing = run(router, x)  # and it wakes up again
    assert routing.hard_rate == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("t", [1, 5, 8])
def test_no_boundary_depends_on_what_comes_later(t):
    router = Router(16, rate=0.3)
    run(router, vectors(8, 40))
    router.eval()
    x = vectors(2, 10)
    later = x.clone()
    later[:, t:] = vectors(2, 10, seed=7)[:, t:]
    a, b = run(router, x), run(router, later)
    assert torch.equal(a.probability[:, :t], b.probability[:, :t])
    assert not torch.equal(a.probability[:, t:], b.probability[:, t:])


def test_a_pair_alone_gives_what_the_row_gives():
    router = Router(16, rate=0.3)
    run(router, vectors(8, 40))
    router.eval()
    x = vectors(2, 10)
    whole = run(router, x).probability
    for t in range(1, 10):
        torch.testing.assert_close(router.probability(x[:, t - 1], x[:, t]), whole[:, t])


def test_only_training_passes_renew_mean_and_tau():
    router = Router(16, rate=0.3)
    before = {name: value.clone() for name, value in router.named_buffers() if name != "rate"}
    run(router.eval(), vectors(4, 20))
    assert all(torch.equal(value, router.get_buffer(name)) for name, value in before.items())
    run(router.train(), vectors(4, 20))
    assert not any(torch.equal(value, router.get_buffer(name)) for name, value in before.items())


def test_evaluation_after_a_training_pass_gives_what_the_pass_gave():
    router = Router(16, rate=0.3)
    x = vectors(4, 20)
    trained = run(router, x)
    assert torch.equal(run(router.eval(), x).probability, trained.probability)


def test_a_weight_of_three_is_three_occurrences():
    x = vectors(2, 30)
    once, thrice = Router(16, rate=0.3), Router(16, rate=0.3)
    for _ in range(3):
        weight = torch.tensor([[1.0], [3.0]]).expand(2, 30)
        a = run(once, x, weight)
        b = run(thrice, x[[0, 1, 1, 1]])
    for name in ("hard_rate", "soft_rate", "ratio_loss"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))
    torch.testing.assert_close(once.mean, thrice.mean)
    torch.testing.assert_close(once.logit_tau, thrice.logit_tau)


def test_what_is_not_free_or_weighs_nothing_moves_no_statistic():
    x = vectors(3, 12)
    free = free_after_the_first(x)
    free[:, 9:] = 0  # pads on the right
    free[:, 4] = 0  # a forced boundary
    weight = torch.tensor([[1.0], [1.0], [0.0]]).expand(3, 12)
    garbage = x.clone()
    garbage[:, 9:], garbage[2] = 1e4, -1e4
    results = []
    for values in (x, garbage):
        router = Router(16, rate=0.3)
        for _ in range(2):
            routing = router(values, free, weight)
        results.append((routing.hard_rate, routing.soft_rate, routing.ratio_loss, router.mean, router.logit_tau))
        assert not routing.boundary[free == 0].any()
        assert (routing.probability[free == 0] == 0).all()
    torch.testing.assert_close(*results)


def test_a_pass_without_any_free_position_changes_nothing():
    router = Router(16, rate=0.3)
    run(router, vectors(4, 20))
    before = {name: value.clone() for name, value in router.named_buffers()}
    routing = router(vectors(2, 5), torch.zeros(2, 5), torch.ones(2, 5))
    assert routing.ratio_loss.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in router.named_buffers())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 4)), min_size=1, max_size=20),
    q=st.floats(0.01, 0.99),
)
def test_weighted_quantile_is_that_of_repeated_values_and_lies_between_two_of_them(pairs, q):
    value = torch.tensor([float(v) for v, _ in pairs])
    weight = torch.tensor([float(w) for _, w in pairs])
    found = weighted_quantile(value, weight, q).item()
    repeated = torch.tensor([float(v) for v, w in pairs for _ in range(w)])
    below = repeated[repeated < found].max() if found > repeated.min() else repeated.min()
    assert (repeated <= found).float().mean() >= q - 1e-5
    assert (repeated < below).float().mean() <= q + 1e-5
    if found < repeated.max():
        assert found not in value and found == (below + repeated[repeated > found].min()) / 2


def test_no_score_lies_at_a_quantile_that_was_taken_from_them():
    """There rounding would decide, and a step and a whole row round otherwise."""
    router = Router(16, rate=0.3)
    x = vectors(4, 20)
    for _ in range(3):
        routing = run(router, x)
        assert (routing.certainty[:, 1:] - 0.5).abs().min() > 1e-5


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.2, 3.0])
def test_an_impossible_rate_is_named(rate):
    with pytest.raises(ValueError, match="rate must lie between 0 and 1"):
        Router(8, rate=rate)
