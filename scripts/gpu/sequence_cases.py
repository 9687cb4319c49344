"""The kernels that walk along sequences - Mamba-2, smoothing, attention - at their sizes in training and in dreams.

The work counted: at a position the scan makes C B^T once (2 Q N), and for each head it mixes a block (2 Q P), reads the
state and updates it (2 P N each). Attention makes 4 E a head for each pair of positions, one of which sees the other.

Shape suffixes: those of the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.config import MambaConfig
from worldmodel.kernels.attention import ATTENTION, varlen_attention
from worldmodel.kernels.ema import EMA_SCAN, ema_scan
from worldmodel.kernels.mamba_mix import MAMBA_MIX, mamba_mix
from worldmodel.kernels.mamba_step import MAMBA_STEP, StepWeights, mamba_step
from worldmodel.kernels.ssd import SSD_SCAN, ssd_scan
from worldmodel.scripts.gpu.compare import Case, Tensors, normal, often
from worldmodel.scripts.gpu.sizes import Sizes


def sequence_cases(sizes: Sizes) -> Iterator[Case]:
    """All of them, those of one kernel together."""
    config = sizes.config
    places = (
        ("frame", sizes.distinct, sizes.patches, config.frame.width),
        ("causal", sizes.rows, sizes.tokens, config.causal[0].width),
        ("packed", 1, sizes.rows * sizes.tokens, config.causal[0].width),  # all rows one behind the other
        ("main", sizes.rows, sizes.frames, config.main.width),
    )
    yield from (_mix(sizes, *place) for place in places)
    yield from (_scan(sizes, *place) for place in places)
    yield _ema(sizes)
    for place, width in (("causal", config.causal[0].width), ("main", config.main.width)):
        for rows in (1, sizes.rows, sizes.dreams):
            yield _mamba_step(sizes, place, rows, width)
    yield _attention(sizes, "frame", [sizes.patches] * sizes.distinct, config.frame.width, config.frame.heads)
    pieces = [length for n in range(sizes.rows) for length in _halves(sizes.frames, n)]
    yield _attention(sizes, "main", pieces, config.main.width, config.main.heads, config.main.window)


def _halves(length: int, n: int) -> list[int]:
    """A row in two pieces, or in one."""
    return [length - n, n] if 0 < n < length else [length]


def _weights(g: torch.Generator, m: MambaConfig, inner: int) -> Tensors:
    """What lies between the projections of a layer."""
    H, W = inner // m.headdim, inner + 2 * m.d_state
    return {
        "filters_WK": normal(g, W, m.d_conv) / m.d_conv**0.5,
        "filter_bias_W": normal(g, W),
        "dt_bias_H": normal(g, H) - 2,
        "A_log_H": torch.linspace(1, 16, H, device=g.device).log(),
        "D_H": normal(g, H),
        "norm_I": 1 + 0.1 * normal(g, inner),
    }


def _scan_flops(m: MambaConfig, B: int, L: int, inner: int) -> int:
    Q, N, P = min(m.chunk_size, L), m.d_state, m.headdim
    return B * L * (2 * Q * N + inner // P * (2 * Q * P + 4 * P * N))


def _mix(sizes: Sizes, place: str, B: int, L: int, width: int) -> Case:
    m = sizes.config.mamba
    inner, N = m.expand * width, m.d_state

    def inputs(g: torch.Generator) -> Tensors:
        u = normal(g, B, L, 2 * inner + 2 * N + inner // m.headdim)
        return {"u": u, "reset": often(g, 0.02, B, L), **_weights(g, m, inner)}

    def call(given: Tensors, backend: str) -> Sequence[Tensor]:
        weights = StepWeights(**{name: given[name] for name in StepWeights._fields})
        reset, Q = None if place == "frame" else given["reset"], m.chunk_size
        return [mamba_mix(given["u"], weights, state_width=N, reset_BL=reset, chunk_size=Q, backend=backend)]

    return Case(
        kernel="mamba_mix",
        size=f"{sizes.name} {place}: B {B}, L {L}, I {inner}, N {N}",
        backends=tuple(MAMBA_MIX),
        inputs=inputs,
        call=call,
        learned=("u", *StepWeights._fields),
        wide=StepWeights._fields,
        flops=_scan_flops(m, B, L, inner),
    )


def _scan(sizes: Sizes, place: str, B: int, L: int, width: int) -> Case:
    m = sizes.config.mamba
    inner, N, P = m.expand * width, m.d_state, m.headdim
    H, Q = inner // P, min(m.chunk_size, L)
    goes_on = place == "causal"  # from a state

    def inputs(g: torch.Generator) -> Tensors:
        made = {
            "xBC": normal(g, B, L, inner + 2 * N),  # slices of one tensor, as in the layer
            "dt": F.softplus(normal(g, B, L, H) - 2),
            "A": -torch.linspace(1, 16, H, device=g.device),
            "reset": often(g, 0.02, B, L),
        }
        return made | ({"initial": normal(g, B, H, P, N)} if goes_on else {})

    def call(given: Tensors, backend: str) -> Sequence[Tensor]:
        x, b, c = given["xBC"].split([inner, N, N], dim=-1)
        tensors = (x.unflatten(-1, (H, P)), given["dt"], given["A"], b, c)
        state = given.get("initial")
        y, last = ssd_scan(*tensors, reset_BL=given["reset"], initial_BHPN=state, chunk_size=Q, backend=backend)
        assert last is not None
        return y, last

    return Case(
        kernel="ssd_scan",
        size=f"{sizes.name} {place}: B {B}, L {L}, H {H}, P {P}, N {N}",
        backends=tuple(SSD_SCAN),
        inputs=inputs,
        call=call,
        learned=("xBC", "dt", "A", "initial") if goes_on else ("xBC", "dt", "A"),
        wide=("dt", "A", "initial"),
        flops=_scan_flops(m, B, L, inner),
    )


def _ema(sizes: Sizes) -> Case:
    B, M, D = sizes.rows, 2 * sizes.frames, sizes.config.causal[0].width  # one boundary a frame beside the forced one

    def inputs(g: torch.Generator) -> Tensors:
        p = torch.sigmoid(2 * normal(g, B, M))
        p[:, ::2] = 1.0  # F_t
        p[:, -1] = 0.0  # a pad
        return {"z": normal(g, B, M, D), "p": p}

    return Case(
        kernel="ema_scan",
        size=f"{sizes.name} causal: B {B}, M {M}, D {D}",
        backends=tuple(EMA_SCAN),
        inputs=inputs,
        call=lambda given, backend: ema_scan(given["z"], given["p"], backend=backend),
        learned=("z", "p"),
        wide=("p",),
    )


def _mamba_step(sizes: Sizes, place: str, B: int, width: int) -> Case:
    m = sizes.config.mamba
    inner, N, K = m.expand * width, m.d_state, m.d_conv
    H, W = inner // m.headdim, inner + 2 * N
    in_place = place == "causal"  # as chunk tokens are stepped; the main network runs at frame tokens

    def inputs(g: torch.Generator) -> Tensors:
        return {
            "u": normal(g, B, inner + W + H),
            "conv": normal(g, B, K - 1, W),
            "ssm": normal(g, B, N, inner),
            **_weights(g, m, inner),
            "active": often(g, 0.7, B).index_fill_(0, torch.zeros(1, dtype=torch.int64, device=g.device), True),
        }

    def call(given: Tensors, backend: str) -> Sequence[Tensor]:
        weights = StepWeights(**{name: given[name] for name in StepWeights._fields})
        active = given["active"] if in_place else None
        memory = given["conv"], given["ssm"]
        return mamba_step(given["u"], *memory, weights, active_B=active, in_place=in_place, backend=backend)

    def defined(given: Tensors, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return (outputs[0][given["active"]], *outputs[1:]) if in_place else outputs

    return Case(
        kernel="mamba_step",
        size=f"{sizes.name} {place}: B {B}, I {inner}, N {N}",
        backends=tuple(MAMBA_STEP),
        inputs=inputs,
        call=call,
        wide=("conv", "ssm", *StepWeights._fields),
        defined=defined,
    )


def _attention(sizes: Sizes, place: str, lengths: list[int], width: int, heads: int, window: int = 0) -> Case:
    T, E, longest, causal = sum(lengths), width // heads, max(lengths), window > 0
    sees = [min(t + 1, window) if causal else length for length in lengths for t in range(length)]

    def inputs(g: torch.Generator) -> Tensors:
        bounds = torch.tensor([0, *lengths], device=g.device).cumsum(0).int()
        return {"qkv": normal(g, T, 3, heads, E), "bounds": bounds}

    def call(given: Tensors, backend: str) -> Sequence[Tensor]:
        q, k, v = given["qkv"].unbind(1)
        return [varlen_attention(q, k, v, given["bounds"], longest, causal=causal, window=window, backend=backend)]

    return Case(
        kernel="attention",
        size=f"{sizes.name} {place}: T {T}, longest {longest}, H {heads}, E {E}, window {window}",
        backends=tuple(ATTENTION),
        inputs=inputs,
        call=call,
        learned=("qkv",),
        flops=4 * E * heads * sum(sees),
    )
