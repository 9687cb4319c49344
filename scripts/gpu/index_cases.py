"""The kernels around boundaries and chance - routing, compaction, noise - at their sizes in training and in dreams.

Shape suffixes: those of the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from worldmodel.kernels import compaction, noise
from worldmodel.kernels.routing import BOUNDARY_LOGIT, boundary_logit
from worldmodel.scripts.gpu.compare import Case, Tensors, normal, often
from worldmodel.scripts.gpu.sizes import Sizes


def index_cases(sizes: Sizes) -> Iterator[Case]:
    """All of them, those of one kernel together."""
    U, P, B, L, K = sizes.distinct, sizes.patches, sizes.rows, sizes.tokens, sizes.chunks
    frame, causal = sizes.config.frame, sizes.config.causal[0]
    yield _routing(f"{sizes.name} patches", U, P, frame.width)
    yield _routing(f"{sizes.name} tokens", B, L, causal.width)
    for what, rows, slots, share in (("patches", U, P, K / P), ("tokens", B, L, 1 / (1 + K))):
        yield _compact(f"{sizes.name} {what}", rows, slots, share)
        yield _pack(f"{sizes.name} {what}", rows, slots, share)
    yield _spread(f"{sizes.name} tokens", B, sizes.frames, L, causal.width)
    yield _spread(f"{sizes.name} patches", U, K, P, frame.readers * frame.width)
    yield _take(f"{sizes.name} tokens", B, L, sizes.frames, causal.width)
    yield from _noise(sizes)


def _routing(what: str, B: int, L: int, D: int) -> Case:
    names = ("x", "mean", "q", "k")

    def inputs(g: torch.Generator) -> Tensors:
        near = torch.eye(D, device=g.device) + 0.1 * normal(g, 2, D, D)
        return {"x": normal(g, B, L, D).cumsum(1), "mean": normal(g, D), "q": near[0], "k": near[1]}

    def call(given: Tensors, backend: str) -> Sequence[Tensor]:
        x, mean, q, k = (given[name] for name in names)
        return [boundary_logit(x[:, :-1], x[:, 1:], mean, q, k, backend=backend)]

    return Case(
        kernel="boundary_logit",
        size=f"{what}: B {B}, L {L}, D {D}",
        backends=tuple(BOUNDARY_LOGIT),
        inputs=inputs,
        call=call,
        learned=("x", "q", "k"),
        precisions=("fp32",),  # where the model runs in bf16, this does not
        flops=4 * B * (L - 1) * D * D,
    )


def _mask(g: torch.Generator, share: float, rows: int, slots: int) -> Tensors:
    mask = often(g, share, rows, slots)
    mask[:, 0] = True
    return {"mask": mask}


def _compact(what: str, rows: int, slots: int, share: float) -> Case:
    def defined(given: Tensors, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        index, valid = outputs
        return index.masked_fill(~valid, -1), valid

    return Case(
        kernel="compact",
        size=f"{what}: B {rows}, S {slots}",
        backends=tuple(compaction.COMPACT),
        inputs=lambda g: _mask(g, share, rows, slots),
        call=lambda given, backend: compaction.compact(given["mask"], backend=backend),
        precisions=("exact",),
        defined=defined,
    )


def _pack(what: str, rows: int, slots: int, share: float) -> Case:
    return Case(
        kernel="pack",
        size=f"{what}: B {rows}, S {slots}",
        backends=tuple(compaction.PACK),
        inputs=lambda g: _mask(g, share, rows, slots),
        call=lambda given, backend: compaction.pack(given["mask"], backend=backend)[:2],
        precisions=("exact",),
    )


def _spread(what: str, B: int, M: int, L: int, D: int) -> Case:
    def inputs(g: torch.Generator) -> Tensors:
        chunk = torch.arange(L, device=g.device) * M // L
        # Chunks of many lengths, some of them empty.
        moved = (chunk + torch.randint(-1, 2, (B, L), generator=g, device=g.device)).clamp(-1, M - 1)
        return {"z": normal(g, B, M, D), "chunk": moved.cummax(1).values}

    return Case(
        kernel="spread",
        size=f"{what}: B {B}, M {M}, L {L}, D {D}",
        backends=tuple(compaction.SPREAD),
        inputs=inputs,
        call=lambda given, backend: [compaction.spread(given["z"], given["chunk"], backend=backend)],
        learned=("z",),
    )


def _take(what: str, B: int, S: int, M: int, D: int) -> Case:
    def inputs(g: torch.Generator) -> Tensors:
        order = torch.rand(B, S, generator=g, device=g.device).argsort(1)
        return {"x": normal(g, B, S, D), "index": order[:, :M].sort(1).values}

    return Case(
        kernel="take",
        size=f"{what}: B {B}, S {S}, M {M}, D {D}",
        backends=("torch",),  # there is no other
        inputs=inputs,
        call=lambda given, backend: [compaction.take(given["x"], given["index"])],
        learned=("x",),
    )


def _noise(sizes: Sizes) -> Iterator[Case]:
    B, n = sizes.dreams, 2 + sizes.chunks * (1 + sizes.config.latent.groups)

    def words(g: torch.Generator) -> Tensors:
        return {"word": torch.randint(0, 1 << 32, (B,), generator=g, device=g.device)}

    def rows(g: torch.Generator) -> Tensors:
        return {"key": words(g)["word"] << 31 | words(g)["word"], "step": words(g)["word"] >> 16}

    def case(kernel: str, size: str, backends: dict, inputs, call) -> Case:
        names = tuple(backends)
        return Case(kernel=kernel, size=size, backends=names, inputs=inputs, call=call, precisions=("exact",))

    what = f"{sizes.name} dreams: B {B}"
    yield case("row_hash", what, noise.ROW_HASH, rows, lambda t, b: [noise.row_hash(t["key"], t["step"], 3, backend=b)])
    yield case("uniform", f"{what}, n {n}", noise.UNIFORM, words, lambda t, b: [noise.uniform(t["word"], n, backend=b)])
