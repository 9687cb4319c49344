"""One kernel by one backend: how far from the reference in fp64, and how long it takes.

Errors are |got - expected| / |expected|, once by the norm of the whole tensor and once by its largest entry. Times are
medians of CUDA events around a call, each after a sweep that empties the card's cache. What a call has to move is
counted as every input read once and every output written once, and with the gradient, every input and gradient of an
output read again, and the gradient of every learned input written.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Half = contextlib.AbstractContextManager[Any]  # autocast, or nothing
SWEEP = 1 << 28  # bytes, several times the largest cache
# Of the norm's error: outputs, gradients. The largest entry may be wrong by four times as much.
TOLERANCES = {"fp32": (2e-5, 1e-4), "bf16": (1e-2, 5e-2), "exact": (0.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel at one size.

    Attributes:
        kernel: its name, as in `WORLDMODEL_BACKEND`.
        size: what it is the size of, for people.
        backends: names of its implementations.
        inputs: makes them with this generator and on its device, floating ones in fp32.
        call: runs the kernel on the inputs by a backend.
        learned: inputs that have gradients.
        wide: inputs that stay in fp32 where the others are bf16.
        precisions: keys of `TOLERANCES`. "exact": inputs as they are, and the bits of the reference on the CPU.
        flops: of one call forward; None where moving is all the work. The gradient counts twice as much.
        defined: what the kernel promises of its outputs, given the inputs, where that is not all.
    """

    kernel: str
    size: str
    backends: Sequence[str]
    inputs: Callable[[torch.Generator], Tensors]
    call: Callable[[Tensors, str], Sequence[Tensor]]
    learned: Sequence[str] = ()
    wide: Sequence[str] = ()
    precisions: Sequence[str] = ("fp32", "bf16")
    flops: float | None = None
    defined: Callable[[Tensors, Sequence[Tensor]], Sequence[Tensor]] | None = None

    @property
    def reference(self) -> str:
        """The backend that the others are held to."""
        return "reference" if "reference" in self.backends else "torch"


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers on the generator's device."""
    return torch.randn(*shape, generator=g, device=g.device)


def often(g: torch.Generator, share: float, *shape: int) -> Tensor:
    """True in about this share of the places."""
    return torch.rand(*shape, generator=g, device=g.device) < share


def check(case: Case, precision: str, backend: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Errors, times and counted work of one case; "status" is "pass" or "fail"."""
    given = case.inputs(torch.Generator(device).manual_seed(0))
    if precision == "bf16":
        given = {n: t.bfloat16() if t.is_floating_point() and n not in case.wide else t for n, t in given.items()}
    if precision == "exact":
        best = {name: t.cpu() for name, t in given.items()}
    else:
        best = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    expected, right = _run(case, best, case.reference, contextlib.nullcontext())
    with poisoned():
        got, gradients = _run(case, given, backend, half)
    limit, gradient_limit = TOLERANCES[precision]
    result: dict[str, Any] = {
        "outputs": [_error(*pair, limit) for pair in zip(got, expected, strict=True)],
        "gradients": {name: _error(gradients[name], right[name], gradient_limit) for name in case.learned},
    }
    errors = [*result["outputs"], *result["gradients"].values()]
    result["status"] = "pass" if all(error["pass"] for error in errors) else "fail"
    return result | _timed(case, given, backend, half, device, repeats)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an entry nobody writes does not hold the right number from the call before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about operations that have no deterministic version
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def _run(case: Case, inputs: Tensors, backend: str, half: Half) -> tuple[list[Tensor], Tensors]:
    """What the kernel promises, and the gradients of a sum weighed by fixed random numbers."""
    fresh = {n: t.detach().clone().requires_grad_(n in case.learned) for n, t in inputs.items()}
    with half:  # and not around the gradient, as in training
        outputs = case.call(fresh, backend)
    seen = [t.detach() for t in (case.defined(inputs, outputs) if case.defined else outputs)]
    if not case.learned:
        return seen, {}
    weighed = [t for t in outputs if t.requires_grad]
    leaves = [fresh[name] for name in case.learned]
    gradients = torch.autograd.grad(weighed, leaves, _weights(weighed), allow_unused=True)
    # What does not depend on an input has the gradient 0.
    return seen, {n: torch.zeros_like(x) if g is None else g for n, g, x in zip(case.learned, gradients, leaves)}


def _weights(outputs: Sequence[Tensor]) -> list[Tensor]:
    # Numbers that bf16 holds exactly, so that every precision is asked for the same gradient.
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    made = (torch.randn(t.shape, generator=generator, device=t.device).bfloat16() for t in outputs)
    return [weight.to(t.dtype) for weight, t in zip(made, outputs)]


def _error(got: Tensor, expected: Tensor, limit: float) -> dict[str, Any]:
    if got.shape != expected.shape:
        return {"pass": False, "reason": f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"}
    got, expected = got.double(), expected.to(got.device).double()
    wrong = got - expected
    norm, largest = float(expected.norm()) or 1.0, float(expected.abs().max()) if expected.numel() else 0.0
    by_norm, absolute = float(wrong.norm()) / norm, float(wrong.abs().max()) if wrong.numel() else 0.0
    by_largest = absolute / (largest or 1.0)
    # Written so that NaN fails.
    return {
        "pass": by_norm <= limit and by_largest <= 4 * limit,
        "by_norm": by_norm,
        "by_largest": by_largest,
        "absolute": absolute,
    }


def _timed(case: Case, inputs: Tensors, backend: str, half: Half, device: torch.device, repeats: int) -> dict[str, Any]:
    fixed = {name: t.detach() for name, t in inputs.items()}

    def forward() -> Sequence[Tensor]:
        with torch.no_grad(), half:
            return case.call(fixed, backend)

    moved = size_in_bytes(fixed.values()) + size_in_bytes(outputs := forward())
    result: dict[str, Any] = {"forward_ms": milliseconds(forward, device, repeats), "forward_bytes": moved}
    if case.flops is not None:
        result["forward_flops"] = case.flops
    if not case.learned:
        return result

    leaves = {name: t.clone().requires_grad_(name in case.learned) for name, t in fixed.items()}
    weights, learned = _weights([t for t in outputs if t.is_floating_point()]), [leaves[name] for name in case.learned]

    def both() -> object:
        with half:
            wanted = [t for t in case.call(leaves, backend) if t.requires_grad]
        return torch.autograd.grad(wanted, learned, weights, allow_unused=True)

    result["both_ms"] = milliseconds(both, device, repeats)
    result["both_bytes"] = moved + size_in_bytes([*fixed.values(), *outputs, *learned])
    if case.flops is not None:
        result["both_flops"] = 3 * case.flops
    return result


def size_in_bytes(tensors: Any) -> int:
    """Of all of them."""
    return sum(t.numel() * t.element_size() for t in tensors)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of `work` after a warm-up."""
    if device.type != "cuda":
        work()
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
    sweep = torch.empty(SWEEP, dtype=torch.int8, device=device)
    for _ in range(3):
        work()
    pairs = []
    for _ in range(repeats):
        sweep.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def achieved(result: Mapping[str, Any], rates: Mapping[str, float], precision: str) -> dict[str, float]:
    """GB/s and TFLOP/s of a result, and the larger of its shares of the card's own copy and matrix product."""
    which = "both" if "both_ms" in result else "forward"
    seconds = result[f"{which}_ms"] / 1e3
    out = {"gb_per_s": result[f"{which}_bytes"] / seconds / 1e9}
    shares = [out["gb_per_s"] / rates["copy_gb_per_s"]] if rates.get("copy_gb_per_s") else []
    if f"{which}_flops" in result:
        out["tflop_per_s"] = result[f"{which}_flops"] / seconds / 1e12
        product = rates.get(f"{precision}_tflop_per_s")
        shares += [out["tflop_per_s"] / product] if product else []
    return out | ({"share_of_card": max(shares)} if shares else {})
