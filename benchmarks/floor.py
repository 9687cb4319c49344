"""How far each piece of work is from its floor: its matrix products at the rate of the machine's own 1024^3 product.

Elementwise work, memory, and PyTorch's own cost of an operation come on top; the profile says which.
"""

from __future__ import annotations

from typing import Any

import torch
from rates import Work, agent_update, all_distinct, dream_state, dreaming, training
from timing import cpu_seconds, matmul_rate
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.envs.segments import FrameTable
from worldmodel.model import WorldModel
from worldmodel.training import TrainConfig

SHOWN = 6  # operations of a profile
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def works(model: WorldModel, table: FrameTable) -> dict[str, Work]:
    """What is measured, one call each."""
    config = TrainConfig()
    narrow, wide = dream_state(model, table, 16), dream_state(model, table, 1024)
    return {
        "an update of the model": training(model, table, config),
        "the same, every frame distinct": training(model, all_distinct(table), config),
        "16 dreamed steps with pictures": dreaming(model, narrow, 1, pixels=True),
        "1,024 latent dream steps": dreaming(model, wide, 1, pixels=False),
        "an update of the agent": agent_update(model, table),
    }


def measure(model: WorldModel, table: FrameTable, repeats: int) -> dict[str, dict[str, Any]]:
    """GFLOP, milliseconds at the floor and milliseconds measured of each work, and where its time goes."""
    entries = {}
    for name, work in works(model, table).items():
        with FlopCounterMode(display=False) as counter:
            work()
        rate = matmul_rate(repeats)
        gflop = counter.get_total_flops() / 1e9
        entries[name] = {
            "gflop": gflop,
            "floor_ms": 1e3 * gflop / rate,
            "measured_ms": 1e3 * cpu_seconds(work, repeats),
            "profile": profile(work),
        }
    return entries


def profile(work: Work, calls: int = 3) -> dict[str, float]:
    """Share of the time by operation: all matrix products together, then the costliest of the others."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(calls):
            work()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(times.values())
    shares = {"matrix products": sum(t for key, t in times.items() if key in PRODUCTS) / total}
    others = sorted((key for key in times if key not in PRODUCTS), key=lambda key: -times[key])
    return shares | {key.removeprefix("aten::"): times[key] / total for key in others[:SHOWN]}
