"""Which implementation of a kernel runs: in torch, ours in C or in Triton, or a library's.

A kernel lists its implementations, the fastest first. Left alone, a tensor on a GPU takes the first one that is
installed, and a tensor on the CPU the one in C if there is a compiler, else the one in torch. By hand: the argument
`backend="triton"` of every kernel, or the variable

    WORLDMODEL_BACKEND=torch                           every kernel that has it
    WORLDMODEL_BACKEND=ssd_scan=triton,attention=torch these two

Triton's kernels run on the CPU as well, slowly, in its interpreter: that is how they are tested (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that the command line can name MissingBackend without waiting for torch
    from torch import Tensor

VARIABLE = "WORLDMODEL_BACKEND"
# What each backend needs to import. The first two run anywhere; where a kernel has both, "reference" is the one that is
# written to be read, and left to autograd.
ANYWHERE = ("torch", "reference")
NEEDS = {
    "torch": "torch",
    "reference": "torch",
    "native": "worldmodel.kernels.native",
    "triton": "triton",
    "mamba": "mamba_ssm.ops.triton.ssd_combined",
    "flash": "flash_attn",
    "varlen": "torch.nn.attention.varlen",
}
PACKAGES = {
    "native": "a C compiler",
    "triton": "triton",
    "mamba": "mamba-ssm",
    "flash": "flash-attn",
    "varlen": "torch 2.10 or newer",
}


class MissingBackend(RuntimeError):
    """A backend was asked for that is not installed, or cannot run where the tensors are; the message says which."""


@functools.cache
def why_missing(backend: str) -> str | None:
    """Why a backend cannot be imported; None where it can. A broken installation counts as missing."""
    try:
        importlib.import_module(NEEDS[backend])
    except Exception as error:  # a library built for another torch fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"{PACKAGES[backend]} is installed but cannot be used: {reason}", stacklevel=2)
        return reason
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter is on."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def asked_for(kernel: str, implementations: Mapping[str, Callable[..., Any]]) -> str | None:
    """What `WORLDMODEL_BACKEND` says about this kernel.

    Raises:
        MissingBackend: it names a backend that no kernel has, or that this kernel has not.
    """
    for part in filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(",")):
        name, _, backend = part.rpartition("=")
        if backend not in NEEDS:
            raise MissingBackend(f"{VARIABLE}={part}: there is no backend {backend!r}, only {', '.join(NEEDS)}")
        if name == kernel and backend not in implementations:
            raise MissingBackend(f"{VARIABLE}={part}: {kernel} has only {', '.join(implementations)}")
        if name == kernel or (not name and backend in implementations):
            return backend
    return None


def choose(
    kernel: str, x: Tensor, backend: str | None, implementations: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """The implementation that is to run.

    Args:
        kernel: its name, as in `WORLDMODEL_BACKEND`.
        x: one of its tensors; where it is decides what can run.
        backend: asked for by hand; None leaves it to the variable, and to what is installed.
        implementations: name of a backend to function, the fastest first; "torch" is always among them.

    Raises:
        MissingBackend: the one asked for is not installed, or cannot run on `x`'s device.
    """
    asked = backend or asked_for(kernel, implementations)
    if asked is None:
        if x.device.type == "cpu":
            native = "native" in implementations and str(x.dtype) == "torch.float32" and why_missing("native") is None
            return implementations["native" if native else "torch"]
        possible = (name for name in implementations if name != "native" and why_missing(name) is None)
        return implementations[next(possible)]
    if asked not in implementations:
        raise MissingBackend(f"{kernel} has no backend {asked!r}, only {', '.join(implementations)}")
    if reason := why_missing(asked):
        how = "install one" if asked == "native" else "install 'worldmodel[cuda]'"
        raise MissingBackend(
            f"the backend {asked!r} of {kernel} needs {PACKAGES[asked]}, which cannot be imported ({reason}): {how}, "
            f"or ask for another of {', '.join(implementations)}"
        )
    if asked == "native" and x.device.type != "cpu":
        raise MissingBackend(f"the backend 'native' of {kernel} runs on a CPU, not on {x.device}")
    if asked not in (*ANYWHERE, "native") and x.device.type == "cpu" and not (asked == "triton" and interpreted()):
        hint = ", or set TRITON_INTERPRET=1 to run it in Triton's slow interpreter" if asked == "triton" else ""
        raise MissingBackend(f"the backend {asked!r} of {kernel} runs on a GPU, not on a CPU: use 'torch'{hint}")
    return implementations[asked]
