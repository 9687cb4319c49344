"""Kernels in C for the CPU: compiled on first use, by the machine's own compiler and for its own processor.

The sources are the `.c` and `.h` files of this folder: plain C over fp32 arrays, which takes a second or two to compile
and needs no headers of torch. Where there is no compiler, importing this fails and the kernels in torch run: slower,
the same numbers. The library is kept in `~/.cache/worldmodel`, under a name made of the sources and of what the
processor can do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# Sums may be taken in any order, which lets the compiler use the whole width of the processor. Not when linking: there
# the flag would make the whole process flush denormal numbers.
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fPIC", "-std=c11")
SMALL = 1 << 16  # numbers to walk over below which one thread is faster than several


def compiler() -> str:
    """The C compiler of this machine.

    Raises:
        ModuleNotFoundError: there is none.
    """
    found = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise ModuleNotFoundError("there is no C compiler on this machine")
    return found


def processor() -> str:
    """What a library for this processor must not be mistaken for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(line for line in lines if line.startswith(("model name", "flags")))[:4000]
    except OSError:
        return platform.processor() + platform.machine()


def build() -> ctypes.CDLL:
    """The library, compiled unless an equal one lies in the cache.

    Raises:
        ModuleNotFoundError: it cannot be compiled here.
    """
    cc = compiler()
    text = "\0".join([cc, *FLAGS, processor(), *(path.read_text() for path in [*SOURCES, *HEADERS])])
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "worldmodel"
    target = folder / f"native-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                objects = [Path(scratch) / f"{path.stem}.o" for path in SOURCES]
                for source, made in zip(SOURCES, objects):
                    _run(cc, *FLAGS, "-c", str(source), "-o", str(made))
                _run(cc, "-shared", *map(str, objects), "-lm", "-o", str(Path(scratch) / target.name))
                os.replace(Path(scratch) / target.name, target)  # whole or not at all, also for who comes at once
        except OSError as error:
            raise ModuleNotFoundError(f"kernels in C cannot be kept in {folder} ({error})") from error
    return ctypes.CDLL(str(target))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        said = next((line for line in lines if "error" in line), lines[0])
        raise ModuleNotFoundError(f"{command[0]} does not compile the kernels in C ({said})")


LIBRARY = build()
_POOL: dict[int, ThreadPoolExecutor] = {}


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin; NULL for None. They must be contiguous, and the tensor must outlive the call."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def over_rows(call: Callable[[int, int], object], rows: int, numbers: int) -> None:
    """`call(first, last)` for all rows, by as many threads as torch has, each with rows of its own.

    Args:
        call: a function of the library behind ctypes, which lets go of Python's lock.
        rows: how many there are.
        numbers: how many numbers are walked over in all; few are not worth a second thread.
    """
    threads = min(torch.get_num_threads(), rows) if numbers > SMALL else 1
    if threads <= 1:
        call(0, rows)
        return
    pool = _POOL.setdefault(threads, ThreadPoolExecutor(threads))
    cuts = [rows * i // threads for i in range(threads + 1)]
    for done in [pool.submit(call, a, b) for a, b in pairwise(cuts)]:
        done.result()
