"""The router's question, in Triton and against its parts written out."""

import pytest
import torch

from worldmodel.kernels.routing import boundary_logit

NAMES = ("before", "here", "mean", "q", "k")


def inputs(*shape, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    D = shape[-1]
    new = lambda *s, scale=1.0: (torch.randn(*s, generator=g, dtype=torch.float64) * scale).to(dtype)  # noqa: E731
    eye = torch.eye(D, dtype=dtype)
    return [new(*shape), new(*shape), new(D), eye + new(D, D, scale=0.3), eye + new(D, D, scale=0.3)]


def run(tensors, backend):
    """Values and the gradients of everything."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    logit = boundary_logit(*leaves, backend=backend)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(logit.shape, generator=g).to(logit.dtype)
    return [logit, *torch.autograd.grad((logit * weight).sum(), leaves)]


def test_the_logit_is_that_of_the_angle():
    before, here, mean, q, k = inputs(5, 8)
    for i in range(5):
        a, b = q @ (before[i] - mean), k @ (here[i] - mean)
        p = (1 - a @ b / a.norm() / b.norm()) / 2
        got = boundary_logit(before[i], here[i], mean, q, k)
        torch.testing.assert_close(got, torch.log(p / (1 - p)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 33), (2, 40, 20), (70, 64), (2, 3, 2, 5), (3,)])
def test_triton_gives_the_values_and_gradients_of_the_reference(shape):
    for name, got, expected in zip(("logit", *NAMES), run(inputs(*shape), "triton"), run(inputs(*shape), "torch")):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_neighbours_in_a_sequence_are_given_as_views():
    x, _, mean, q, k = inputs(3, 9, 12, seed=2)
    results = []
    for backend in ("torch", "triton"):
        leaf = x.clone().requires_grad_()
        logit = boundary_logit(leaf[:, :-1], leaf[:, 1:], mean, q, k, backend)
        results.append((logit, torch.autograd.grad(logit.square().sum(), leaf)[0]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    # Any order in memory is read right, and a step is a sequence's pair.
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    logit = boundary_logit(turned[:, :-1], x[:, 1:], mean, q.t().contiguous().t(), k, "triton")
    torch.testing.assert_close(logit, results[0][0])
    torch.testing.assert_close(boundary_logit(x[:, 3], x[:, 4], mean, q, k, "triton"), results[0][0][:, 3])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_alike_opposite_absent_and_broken_vectors(backend):
    before, _, mean, q, k = inputs(6, 8)
    q, k = torch.eye(8, dtype=q.dtype), torch.eye(8, dtype=q.dtype)
    here = before.clone()
    here[1] = 2 * mean - before[1]  # the other way, seen from the mean
    before[2] = mean  # no direction at all
    here[3, 5] = torch.nan
    here[4] = mean + 1e-12 * (before[4] - mean)  # nearly none
    logit = boundary_logit(before, here, mean, q, k, backend)
    lowest = torch.logit(torch.tensor(1e-5, dtype=q.dtype)).item()
    assert logit[:3].tolist() == pytest.approx([lowest, -lowest, 0.0])
    assert logit.isnan().tolist() == [False] * 3 + [True] + [False] * 2
    # So short that torch's floors of the norms tell.
    torch.testing.assert_close(logit[4], boundary_logit(before[4], here[4], mean, q, k, "torch"))
    tiny = 1e-7 * q
    short = boundary_logit(before, before.flip(0), mean, tiny, 1e-3 * tiny, backend)
    torch.testing.assert_close(short, boundary_logit(before, before.flip(0), mean, tiny, 1e-3 * tiny, "torch"))
    assert not torch.allclose(short, boundary_logit(before, before.flip(0), mean, q, k, "torch"), rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_computes_in_fp32(dtype):
    tensors = inputs(40, 48, seed=3)
    tensors[:2] = [t.to(dtype) for t in tensors[:2]]
    tensors[2:] = [t.float() for t in tensors[2:]]
    got = run(tensors, "triton")
    assert [t.dtype for t in got] == [torch.float32, dtype, dtype] + [torch.float32] * 3
    expected = run([t.double() for t in tensors], "torch")
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    for t, e in zip(got[1:], expected[1:]):
        torch.testing.assert_close(t.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_pairs(shape, backend):
    results = run(inputs(*shape), backend)
    assert results[0].shape == shape[:-1]
    assert not results[4].any()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_autocast_leaves_it_in_fp32(backend):
    tensors = [t.float() for t in inputs(6, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        logit = boundary_logit(*tensors, backend)
    assert torch.equal(logit, boundary_logit(*tensors, backend))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_mean_may_move_before_the_gradient_is_taken(backend):
    before, here, mean, q, k = inputs(6, 8)
    q.requires_grad_()
    expected = torch.autograd.grad(boundary_logit(before, here, mean, q, k, backend).sum(), q)[0]
    logit = boundary_logit(before, here, mean, q, k, backend)
    mean += 1.0
    torch.testing.assert_close(torch.autograd.grad(logit.sum(), q)[0], expected, rtol=1e-12, atol=1e-12)
