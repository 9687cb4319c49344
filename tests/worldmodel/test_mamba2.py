"""The Mamba-2 layer: mamba-ssm's weights, and steps that give the sequence."""

import math

import pytest
import torch

from worldmodel.config import MambaConfig
from worldmodel.mamba2 import Mamba2


def layer(width=12, **config):
    torch.manual_seed(0)
    return Mamba2(width, MambaConfig(**{"d_state": 5, "headdim": 8, "chunk_size": 4} | config))


def inputs(rows, length, width=12, seed=0):
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width,d_state,d_conv,expand,headdim", [(64, 16, 4, 2, 32), (48, 8, 3, 4, 16)])
def test_parameters_are_those_of_mamba_ssm(width, d_state, d_conv, expand, headdim):
    mamba = Mamba2(width, MambaConfig(d_state=d_state, d_conv=d_conv, expand=expand, headdim=headdim))
    inner = expand * width
    heads, conv = inner // headdim, inner + 2 * d_state
    assert {name: tuple(value.shape) for name, value in mamba.state_dict().items()} == {
        "in_proj.weight": (2 * inner + 2 * d_state + heads, width),
        "conv1d.weight": (conv, 1, d_conv),
        "conv1d.bias": (conv,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (inner,),
        "out_proj.weight": (width, inner),
    }


def reference(mamba, u):
    """The layer written down from the formulas of mamba-ssm, one position at a time: [z, x, B, C, dt]."""
    w = {name: value.double() for name, value in mamba.state_dict().items()}
    inner, N, H = mamba.inner, mamba.state, mamba.heads
    z, xBC, dt = (u.double() @ w["in_proj.weight"].T).split([inner, inner + 2 * N, H], -1)
    xBC = torch.nn.functional.conv1d(
        torch.nn.functional.pad(xBC.transpose(1, 2), (mamba.taps - 1, 0)),
        w["conv1d.weight"],
        w["conv1d.bias"],
        groups=xBC.shape[-1],
    ).transpose(1, 2)
    x, B, C = torch.nn.functional.silu(xBC).split([inner, N, N], -1)
    dt = torch.nn.functional.softplus(dt + w["dt_bias"])
    A = -w["A_log"].exp()
    h = torch.zeros(len(u), H, inner // H, N, dtype=torch.float64)
    ys = []
    for t in range(u.shape[1]):
        x_t = x[:, t].unflatten(-1, (H, -1))
        h = h * (dt[:, t] * A).exp()[..., None, None] + dt[:, t, :, None, None] * x_t[..., None] * B[:, t, None, None]
        ys.append(((h @ C[:, t, None, :, None]).squeeze(-1) + w["D"][:, None] * x_t).flatten(1))
    y = torch.stack(ys, 1) * torch.nn.functional.silu(z)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["norm.weight"]
    return y @ w["out_proj.weight"].T


def test_forward_is_the_reference_formula():
    mamba = layer()
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    u = inputs(2, 11)
    torch.testing.assert_close(mamba(u).double(), reference(mamba, u), rtol=1e-4, atol=1e-5)


def of_mamba_ssm(d_model, d_state, d_conv, expand, headdim):
    """A state dict as `mamba_ssm.modules.mamba2.Mamba2` has it for one group: names and shapes as written there."""
    g = torch.Generator().manual_seed(d_model)
    d_inner = expand * d_model
    nheads, conv_dim = d_inner // headdim, d_inner + 2 * d_state
    shapes = {
        "dt_bias": (nheads,),
        "A_log": (nheads,),
        "D": (nheads,),
        "in_proj.weight": (2 * d_inner + 2 * d_state + nheads, d_model),
        "conv1d.weight": (conv_dim, 1, d_conv),
        "conv1d.bias": (conv_dim,),
        "norm.weight": (d_inner,),
        "out_proj.weight": (d_model, d_inner),
    }
    return {name: torch.randn(shape, generator=g) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "width,d_state,d_conv,expand,headdim", [(768, 128, 4, 2, 64), (24, 3, 2, 2, 8), (20, 16, 3, 3, 60), (8, 5, 4, 1, 2)]
)
def test_weights_of_mamba_ssm_come_and_go_to_the_bit(width, d_state, d_conv, expand, headdim):
    theirs = of_mamba_ssm(width, d_state, d_conv, expand, headdim)
    mamba = Mamba2(width, MambaConfig(d_state=d_state, d_conv=d_conv, expand=expand, headdim=headdim, chunk_size=4))
    mamba.load_state_dict(theirs, strict=True)
    ours = mamba.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # They mean the same, too: z, x, B, C and dt come out of in_proj in this order.
    u = inputs(1, 3, width)
    expected = reference(mamba, u)
    torch.testing.assert_close(mamba(u).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


def test_initial_step_sizes_and_decays_are_in_their_ranges():
    mamba = layer(width=128)
    dt = torch.nn.functional.softplus(mamba.dt_bias)
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 0.1 * 1.001
    assert mamba.A_log.min() >= 0
    assert mamba.A_log.max() <= math.log(16)


def test_steps_give_the_sequence():
    mamba, u = layer(), inputs(3, 13)
    y = mamba(u)
    state = mamba.initial_state(3)
    for t in range(13):
        kept = [s.clone() for s in state]
        y_t, new = mamba.step(u[:, t], state)
        assert all(torch.equal(a, b) for a, b in zip(state, kept))
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-4, atol=1e-6)
        state = new


@torch.no_grad()
def test_a_few_positions_at_once_are_as_many_steps_and_leave_the_state_alone():
    mamba, u = layer(), inputs(3, 7)
    _, state = mamba.extend(inputs(3, 4, seed=1), mamba.initial_state(3))
    kept = [s.clone() for s in state]
    y, last = mamba.extend(u, state)
    assert all(torch.equal(a, b) for a, b in zip(state, kept))
    for t in range(7):
        y_t, state = mamba.step(u[:, t], state)
        torch.testing.assert_close(y[:, t], y_t, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, state, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 4, 9])
def test_going_on_from_a_state(cut):
    mamba, u = layer(), inputs(2, 13)
    y1, state = mamba.extend(u[:, :cut], mamba.initial_state(2))
    y2, _ = mamba.extend(u[:, cut:], state)
    torch.testing.assert_close(torch.cat([y1, y2], 1), mamba(u), rtol=1e-4, atol=1e-6)


def test_a_reset_is_a_new_sequence_for_its_row_alone():
    mamba, u = layer(), inputs(3, 13)
    reset = torch.zeros(3, 13, dtype=torch.bool)
    reset[1, 6] = reset[2, 0] = reset[2, 3] = reset[2, 4] = True
    y = mamba(u, reset)
    for row, pieces in ((0, [(0, 13)]), (1, [(0, 6), (6, 13)]), (2, [(0, 3), (3, 4), (4, 13)])):
        for a, b in pieces:
            torch.testing.assert_close(y[row, a:b], mamba(u[row : row + 1, a:b])[0], rtol=1e-4, atol=1e-6)


def test_it_is_causal_to_the_bit():
    mamba, u = layer(), inputs(2, 13)
    later = u.clone()
    later[:, 7:] += 100
    assert torch.equal(mamba(u)[:, :7], mamba(later)[:, :7])


def test_a_width_that_heads_do_not_divide_is_named():
    with pytest.raises(ValueError, match="headdim = 7"):
        layer(headdim=7)
