"""Settings that do nothing as long as something else is off: who asks for one should be told, not left in belief."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from worldmodel.config import ModelConfig

# What a setting's name begins with, whether it does nothing in a config, and what it waits for.
IDLE: tuple[tuple[str, Callable[[ModelConfig], bool], str], ...] = (
    ("main.loop.", lambda c: not c.main.loop.layers, "main.loop.layers, as in main.loop.layers=T1"),
    ("time.", lambda c: not c.time.layers, "time.layers, as in time.layers=m1"),
    ("frame.max_chunks", lambda c: c.frame.boundary in ("stride", "none"), "a frame.boundary that is not fixed"),
    ("frame.readers", lambda c: c.latent.slots > 0, "codes of whole chunks, latent.slots=0"),
    ("latent.classes", lambda c: c.latent.kind == "gaussian", "latent.kind=categorical"),
    ("training.anneal", lambda c: not c.first_targets, "a target that moves, as in frame.chunks_first=12"),
    ("latent.unimix", lambda c: c.latent.kind == "gaussian", "latent.kind=categorical"),
)
ROUTED = re.compile(r"causal\.(\d+)\.max_extra")


def idle(names: Iterable[str], config: ModelConfig) -> str | None:
    """One sentence about the first of some settings that does nothing in a config; None if all do something.

    Args:
        names: of settings, as in `main.loop.loops`.
        config: that they were put into.
    """
    for name in names:
        for begins, does_nothing, waits_for in IDLE:
            if name.startswith(begins) and does_nothing(config):
                return f"{name} does nothing without {waits_for}"
        if (stage := ROUTED.fullmatch(name)) and not config.causal[int(stage[1])].extra:
            return f"{name} does nothing without a router: set causal.{stage[1]}.extra above 0"
    return None
