"""Three layouts of the same tokens: what goes in comes back, and the model's loss and gradients do not care."""

from functools import partial

import pytest
import torch
from small_models import CONFIGS, random_batch, random_model

from worldmodel.layout import Layout
from worldmodel.losses import LossConfig, world_model_loss


def slots(share, seed=0):
    g = torch.Generator().manual_seed(seed)
    used = torch.rand(3, 8, generator=g) < share
    used[:, 0] = True
    return used, torch.randn(3, 8, 2, generator=g)


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_is_laid_out_comes_back_and_keeps_its_order(kind, share):
    used, x = slots(share)
    layout = Layout(used, kind)
    laid = layout.lay(x)
    assert laid.shape[:2] == layout.present.shape
    assert torch.equal(laid[layout.present], x[used])  # row after row, in order
    assert torch.equal(layout.back(laid)[used], x[used])
    before = used.long().cumsum(1) - 1
    expected = torch.stack([row[u][b] for row, u, b in zip(x, used, before)])
    assert torch.equal(layout.back(laid), expected)  # an empty slot shows what stood before it


def test_packed_rows_have_no_pads_and_padded_ones_are_as_long_as_the_fullest():
    used, _ = slots(0.4)
    assert Layout(used, "packed").present.shape == (1, int(used.sum()))
    assert Layout(used, "padded").present.shape == (3, int(used.sum(1).max()))
    assert Layout(used, "dense").present is used


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_and_padded_training_have_the_same_loss_and_gradients(name):
    results = []
    for packed in (False, True):
        model, batch = random_model(CONFIGS[name]).train(), random_batch(CONFIGS[name])
        batch.start[1, 0] = False  # rows do not run into each other even where nothing says that a piece begins
        model.forward = partial(model.forward, packed=packed)
        loss, notes = world_model_loss(
            model, batch, LossConfig(), key=torch.arange(len(batch.index)), generator=torch.Generator().manual_seed(0)
        )
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), notes, grads))
    (loss, notes, grads), (packed_loss, packed_notes, packed_grads) = results
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed_notes, notes, rtol=1e-4, atol=1e-4)
    assert packed_grads.keys() == grads.keys()
    for n, grad in grads.items():
        torch.testing.assert_close(
            packed_grads[n], grad, rtol=2e-3, atol=1e-3 * float(grad.abs().max() + 1e-3), msg=lambda m, n=n: f"{n}: {m}"
        )
