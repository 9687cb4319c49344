"""mamba-ssm's fused layer: when it is taken, and what it is told.

The library runs on a GPU only, so a stand-in of its documented contract, in torch, takes its place here. Whether the
library keeps that contract is for a machine with a GPU.
"""

import sys
import types
import warnings

import pytest
import torch
import torch.nn.functional as F

from worldmodel.config import MambaConfig
from worldmodel.kernels import mamba_layer as layers
from worldmodel.kernels import mamba_mix as mixes
from worldmodel.kernels.backend import MissingBackend
from worldmodel.kernels.mamba_layer import mamba_layer, unfit
from worldmodel.kernels.mamba_step import StepWeights
from worldmodel.mamba2 import Mamba2


def layer(**config):
    torch.manual_seed(0)
    mamba = Mamba2(16, MambaConfig(**{"d_state": 4, "headdim": 8, "chunk_size": 8} | config))
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    w = mamba.conv1d.weight[:, 0], mamba.conv1d.bias, mamba.dt_bias, mamba.A_log, mamba.D, mamba.norm.weight
    return mamba, StepWeights(*w)


def fused(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None, seq_idx=None,
    dt_limit=(0.0, float("inf")), return_final_states=False, activation="silu", rmsnorm_weight=None, rmsnorm_eps=1e-6,
    outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1, norm_before_gate=True,
):  # fmt: skip
    """`mamba_split_conv1d_scan_combined`, position by position, for one group and a norm."""
    assert ngroups == 1
    assert seq_idx is None or (seq_idx.dtype == torch.int32 and seq_idx.is_contiguous())
    B, L, _ = zxbcdt.shape
    H, taps = len(D), conv1d_weight.shape[1]
    inner = H * headdim
    N = (len(conv1d_weight) - inner) // 2
    seq = torch.zeros(B, L, dtype=torch.int32) if seq_idx is None else seq_idx
    z, xbc, dt = zxbcdt.split([inner, inner + 2 * N, H], -1)
    dt = F.softplus(dt + dt_bias)
    h, ys = torch.zeros(B, H, headdim, N), []
    for t in range(L):
        mixed = conv1d_bias.expand(B, -1)
        for back in range(min(taps, t + 1)):
            same = (seq[:, t - back] == seq[:, t])[:, None]
            mixed = mixed + same * xbc[:, t - back] * conv1d_weight[:, taps - 1 - back]
        x, b, c = F.silu(mixed).split([inner, N, N], -1)
        x = x.unflatten(-1, (H, headdim))
        if t:
            h = h * (seq[:, t] == seq[:, t - 1])[:, None, None, None]
        h = h * (dt[:, t] * A).exp()[..., None, None] + (dt[:, t, :, None] * x)[..., None] * b[:, None, None]
        ys.append(((h * c[:, None, None]).sum(-1) + D[:, None] * x).flatten(1))
    y = torch.stack(ys, 1)
    if norm_before_gate:
        return F.rms_norm(y, (inner,), rmsnorm_weight, rmsnorm_eps) * F.silu(z)
    return F.rms_norm(y * F.silu(z), (inner,), rmsnorm_weight, rmsnorm_eps)


@pytest.mark.parametrize("resets", [False, True])
def test_the_library_is_told_what_our_layer_means(monkeypatch, resets):
    module = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")
    module.mamba_split_conv1d_scan_combined = fused
    monkeypatch.setitem(sys.modules, module.__name__, module)
    mamba, weights = layer()
    u = torch.randn(3, 9, 16)
    reset = torch.zeros(3, 9, dtype=torch.bool) if resets else None
    if resets:
        reset[0, 0] = reset[1, 4] = reset[2, 2] = reset[2, 3] = True
    y = mamba.out_proj(mamba_layer(mamba.in_proj(u), weights, reset, 8))
    torch.testing.assert_close(y, mamba(u, reset), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config,rows,length,dtype,words",
    [
        ({}, 2, 5, torch.bfloat16, None),
        ({"d_conv": 2}, 1, 2, torch.float16, None),
        ({}, 2, 5, torch.float32, "bf16 or fp16, not float32"),
        ({}, 2, 5, torch.float64, "bf16 or fp16, not float64"),
        ({"d_conv": 5}, 2, 5, torch.bfloat16, "2 to 4 positions long, not 5"),
        ({"d_conv": 1}, 2, 5, torch.bfloat16, "2 to 4 positions long, not 1"),
        ({"d_state": 5}, 2, 5, torch.bfloat16, "multiples of 8, not 32 and 42"),
        ({}, 1, 1, torch.bfloat16, "two positions or more"),
        ({}, 0, 5, torch.bfloat16, "two positions or more"),
    ],
)
def test_what_it_takes(monkeypatch, config, rows, length, dtype, words):
    monkeypatch.setattr(layers, "has_causal_conv1d", lambda: True)
    mamba, weights = layer(**config)
    u = torch.zeros(rows, length, mamba.in_proj.out_features, dtype=dtype)
    reason = unfit(u, weights)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    "dtype,state,expected", [(torch.bfloat16, 4, "fused"), (torch.float32, 4, "parts"), (torch.bfloat16, 5, "parts")]
)
def test_where_it_does_not_fit_the_parts_run_with_its_scan(monkeypatch, dtype, state, expected):
    monkeypatch.setattr(layers, "has_causal_conv1d", lambda: True)
    monkeypatch.setattr(layers, "mamba_layer", lambda u, weights, reset, chunk_size: "fused")
    scans = []
    scan = mixes.ssd_scan

    def ours(x, *tensors, backend, **options):
        scans.append((backend, x.dtype))
        return scan(x, *tensors, **options)

    monkeypatch.setattr(mixes, "ssd_scan", ours)
    mamba, weights = layer(d_state=state)
    u = torch.randn(2, 5, mamba.in_proj.out_features).to(dtype)
    y = mixes.MAMBA_MIX["mamba"](u, weights, state, None, 8)
    if expected == "fused":
        assert (y, scans) == ("fused", [])
    else:
        assert scans == [("mamba", dtype)]  # in the projection's precision: that is what makes it fast
        near = 1e-5 if dtype == torch.float32 else 5e-2
        wanted = mixes.mamba_mix(u, weights, state_width=state).float()
        torch.testing.assert_close(y.float(), wanted, rtol=near, atol=near)


def test_asked_for_and_missing_it_is_said_in_one_sentence():
    mamba, weights = layer()
    u = torch.randn(2, 5, mamba.in_proj.out_features)
    with pytest.raises(MissingBackend, match="'mamba' of mamba_mix needs mamba-ssm, which cannot be imported") as error:
        mixes.mamba_mix(u, weights, state_width=4, backend="mamba")
    assert "\n" not in str(error.value)


def test_without_causal_conv1d_it_is_not_taken():
    mamba, weights = layer()
    u = torch.zeros(2, 5, mamba.in_proj.out_features, dtype=torch.bfloat16)
    layers.has_causal_conv1d.cache_clear()
    with pytest.warns(UserWarning, match="needs causal-conv1d, which cannot be imported"):
        assert unfit(u, weights) == "it needs causal-conv1d"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert unfit(u, weights) == "it needs causal-conv1d"
