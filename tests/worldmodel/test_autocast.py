"""Under bf16 autocast the model runs as it is, near its fp32 self; losses, states and samples stay in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, STRIDE, random_batch, random_model
from torch import Tensor

from worldmodel.losses import LossConfig, picture_loss, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.residual import Residual
from worldmodel.router import Router

# Warnings, too: "mismatch dtype" of rms_norm, say, means a slow path on a GPU.
pytestmark = pytest.mark.filterwarnings("error")


def half(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def loss_and_gradient(name: str, enabled: bool, pictures: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    model, batch = random_model(CONFIGS[name], 3).train(), random_batch(CONFIGS[name])
    with half(enabled):
        if pictures:
            loss, _ = picture_loss(model, batch, LossConfig(), key=torch.arange(3))
        else:
            generator = torch.Generator().manual_seed(0)
            loss, _ = world_model_loss(model, batch, LossConfig(), key=torch.arange(3), generator=generator)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pictures", [False, True], ids=["all", "pictures"])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradient_are_near_those_of_fp32(name: str, pictures: bool):
    loss, gradient = loss_and_gradient(name, True, pictures)
    expected, right = loss_and_gradient(name, False, pictures)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert loss != expected  # or nothing ran in bf16
    assert gradient.keys() == right.keys()
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradient.values())
    got, wanted = (torch.cat([g.flatten() for g in grads.values()]) for grads in (gradient, right))
    # A code may differ here and there, where two classes are nearly as likely, and with it all that follows.
    assert torch.cosine_similarity(got, wanted, dim=0) > 0.7
    torch.testing.assert_close(got.norm(), wanted.norm(), rtol=0.1, atol=0)


def dream(model: WorldModel, name: str, enabled: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    batch = random_batch(CONFIGS[name])
    state, seen = model.initial_state(3), []
    with half(enabled):
        for t in range(4):
            state, out = model.observe(state, batch.action[:, t], batch.frames[batch.index[:, t]], batch.first[:, t])
            seen.append(out.feature)
        for t in range(3):
            state, out = model.imagine(state, batch.action[:, t])
            assert all(v.dtype == torch.float32 for v in out.tensors.values() if v.is_floating_point())
            assert model.decode(out).shape[1:] == CONFIGS[name].observation.shape
    return seen, state.tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_observing_and_dreaming(name: str):
    model = random_model(CONFIGS[name])
    seen, state = dream(model, name, True)
    expected, right = dream(model, name, False)
    assert all(value.dtype == right[name].dtype for name, value in state.items())
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    near = torch.cat(seen).sub(torch.cat(expected)).square().mean() / torch.cat(expected).square().mean()
    # With routers between the frames a boundary may differ, too.
    assert 0 < near < (0.5 if CONFIGS[name].causal[0].extra else 0.1)


def test_the_router_decides_in_fp32():
    torch.manual_seed(0)
    router = Router(32, rate=0.3)
    before, here = torch.randn(2, 500, 32)
    with half():
        logit = router.raw_logit(before, before + 0.01 * here)  # a cosine of 0.99995
    assert torch.equal(logit, router.raw_logit(before, before + 0.01 * here))
    assert logit.dtype == torch.float32


@pytest.mark.parametrize("kind", ["linear", "attention", "mamba"])
def test_the_residual_is_linear_in_full_precision(kind: str) -> None:
    residual = Residual(replace(STRIDE.causal[0], residual=kind), STRIDE.mamba)
    torch.nn.init.normal_(residual.weight)
    h = torch.randn(2, 5, STRIDE.causal[0].width)
    shown = []
    if residual.stack is not None:
        residual.stack.register_forward_hook(lambda _stack, _args, out: shown.append(out))
    with half():
        said = residual(h, torch.zeros(2, 5, dtype=torch.bool))
    assert said.dtype == torch.float32
    expected = torch.nn.functional.linear((shown[0] if shown else h).float(), residual.weight, residual.bias)
    assert torch.equal(said, expected)
