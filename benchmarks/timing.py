"""What every measurement here shares: CPU time, wall time, the machine's own matrix product, and where it was taken.

Needs nothing but PyTorch, for it also runs in the environments of other projects.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def wall_seconds(work: Callable[[], Any], repeats: int, threads: Sequence[int]) -> dict[int, float]:
    """Median wall time of `work` by number of threads; the numbers take turns, so that all see the same minutes."""
    before, times = torch.get_num_threads(), {count: list[float]() for count in threads}
    try:
        for turn in range(repeats + 1):
            for count in threads:
                torch.set_num_threads(count)
                began = time.perf_counter()
                work()
                if turn:
                    times[count].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return {count: statistics.median(values) for count, values in times.items()}


def matmul_rate(repeats: int) -> float:
    """GFLOP per CPU-second of a 1024^3 product in fp32."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / cpu_seconds(lambda: a @ b, repeats) / 1e9


def machine() -> dict[str, Any]:
    """What it ran on; other work on the same cores shows in the load."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def revision() -> dict[str, Any]:
    """The commit, and whether a tracked file other than a result differed from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(*arguments: str) -> str:
    command = ("git", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor()
