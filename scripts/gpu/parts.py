"""The parts of the GPU check, in their order, and the process that runs them one by one."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.kernels.backend import VARIABLE, MissingBackend, interpreted, why_missing
from worldmodel.scripts.gpu import models
from worldmodel.scripts.gpu.compare import Case, check, milliseconds
from worldmodel.scripts.gpu.index_cases import index_cases
from worldmodel.scripts.gpu.sequence_cases import sequence_cases
from worldmodel.scripts.gpu.sizes import Sizes, all_sizes

Result = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """One thing to find out; `about` goes into the report as it is."""

    group: str  # "machine", "kernels" or "models"
    name: str
    about: Result
    run: Callable[[torch.device], Result]


def all_parts(quick: bool) -> list[Part]:
    """What is to be found out, the most telling first."""
    repeats, updates, frames = (1, 40, 20) if quick else (20, 200, 1000)
    parts = [
        Part("machine", "machine", {}, machine),
        Part("machine", "rates", {}, lambda device: rates(device, repeats, 256 if quick else 8192)),
    ]
    every = all_sizes(quick)
    for sizes in every:
        for case in (*sequence_cases(sizes), *index_cases(sizes)):
            parts += _kernel(case, repeats)
    for sizes in every:
        for boundary in ("stride", "learned"):
            parts.append(_model(models.as_on_the_cpu, sizes, boundary))
            parts.append(_model(models.steps_as_parallel, sizes, boundary))
    for boundary, layout in (("stride", "dense"), ("learned", "packed"), ("learned", "padded")):
        parts.append(_model(models.training, every[0], boundary, layout, updates))
    for boundary, more in (("stride", ("fp32 captured", "bf16 captured")), ("learned", ())):
        for rows in (1, every[0].rows, every[0].dreams):
            for how in ("fp32", "bf16", *more):  # what a router decides cannot be captured
                parts.append(_model(models.dreaming, every[0], boundary, rows, how, frames))
    return parts


def _kernel(case: Case, repeats: int) -> Iterator[Part]:
    for precision in case.precisions:
        for backend in case.backends:
            if backend == "native":  # in C, for CPUs
                continue
            about = {"kernel": case.kernel, "size": case.size, "precision": precision, "backend": backend}

            def run(device: torch.device, precision: str = precision, backend: str = backend) -> Result:
                return check(case, precision, backend, device, repeats)

            yield Part("kernels", f"{case.kernel} | {case.size} | {precision} | {backend}", about, run)


def _model(run: Callable[..., Result], sizes: Sizes, boundary: str, *more: Any) -> Part:
    about = {"what": run.__name__, "model": sizes.name, "boundary": boundary, "arguments": list(more)}
    words = [run.__name__, sizes.name, boundary, *map(str, more)]

    def part(device: torch.device) -> Result:
        return run(sizes, boundary, *more, device=device)

    return Part("models", " | ".join(words), about, part)


def machine(device: torch.device) -> Result:
    """What it runs on."""
    commit, changed = _output("git", "rev-parse", "HEAD"), _output("git", "status", "--porcelain", "-uno")
    out: Result = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit,
        "changed": None if changed is None else bool(changed),
        "backends_asked_for": os.environ.get(VARIABLE),
        "missing": {name: reason for name in ("triton", "mamba", "flash", "varlen") if (reason := why_missing(name))},
    }
    if "triton" not in out["missing"]:
        import triton

        out["triton"] = triton.__version__
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        out |= {"device": card.name, "memory_bytes": card.total_memory, "multiprocessors": card.multi_processor_count}
        out["capability"] = f"{card.major}.{card.minor}"
        out["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return out


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def rates(device: torch.device, repeats: int, side: int) -> Result:
    """What the card does in a copy (bytes read plus bytes written) and in a square matrix product."""
    source = torch.randn(side * side * 4, device=device)
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), device, repeats)
    out: Result = {"copy_gb_per_s": 2 * source.numel() * 4 / copied / 1e6}
    a, b = torch.randn(2, side, side, device=device)
    out["fp32_tflop_per_s"] = _product(a, b, repeats)
    torch.set_float32_matmul_precision("high")
    try:
        out["tf32_tflop_per_s"] = _product(a, b, repeats)
    finally:
        torch.set_float32_matmul_precision("highest")
    out["bf16_tflop_per_s"] = _product(a.bfloat16(), b.bfloat16(), repeats)
    return out


def _product(a: Tensor, b: Tensor, repeats: int) -> float:
    return 2 * len(a) ** 3 / milliseconds(lambda: a @ b, a.device, repeats) / 1e9


def work(connection: Connection, device: str, quick: bool, names: list[str]) -> None:
    """Run parts by name, in a process of its own: sends something once it has started, and each part's result.

    It ends early when the card does not answer any more. A kernel that wrote where it must not leaves a process that
    can use the card no longer, and somebody has to start another for the parts that are left.
    """
    parts = {part.name: part for part in all_parts(quick)}
    connection.send("ready")
    for name in names:
        began = time.perf_counter()
        result = guarded(parts[name], torch.device(device))
        connection.send(result | {"seconds": time.perf_counter() - began})
        if device == "cuda" and not _answers():
            connection.close()
            os._exit(0)  # without tidying up, which would ask the card


def guarded(part: Part, device: torch.device) -> Result:
    """A part's result, or why there is none: "missing" where something is not installed, "error" for all else."""
    backend = part.about.get("backend")
    try:
        if backend is not None and (why := _why_not(backend, device)):
            return {"status": "missing", "reason": why}
        result = part.run(device)
        return {"status": "pass"} | result
    except (MissingBackend, UserError) as error:
        return {"status": "missing", "reason": str(error)}
    except Exception as error:
        said = _in_one_line(error) + (f" ({_in_one_line(error.__cause__)})" if error.__cause__ else "")
        tail = traceback.format_exc()[-3000:]
        return {"status": "error", "reason": f"{type(error).__name__}: {said}", "traceback": tail}
    finally:
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # the card is gone, and whoever asks next is told so
                torch.cuda.empty_cache()


def _in_one_line(error: BaseException) -> str:
    # A compiler's first line says where and its last one what, with a caret under it.
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    return " ... ".join(dict.fromkeys((*lines[:1], *lines[-1:])))[:300] or type(error).__name__


def _why_not(backend: str, device: torch.device) -> str | None:
    if backend != "reference" and (reason := why_missing(backend)):
        return reason
    if device.type == "cpu" and backend not in ("torch", "reference") and not (backend == "triton" and interpreted()):
        return "runs on a GPU only"
    return None


def _answers() -> bool:
    try:
        torch.cuda.synchronize()
        return int(torch.ones(2, device="cuda").sum()) == 2
    except RuntimeError:
        return False
