"""Every mechanism and its settings, and models that combine them: pairwise by a covering array, or at random."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

from small_models import BESIDE, RECORD, STRIDE

from worldmodel.config import CausalConfig, LatentConfig, ModelConfig, OutcomeConfig
from worldmodel.specs import ActionSpec, ObservationSpec

# The first setting of each is off, or the plain one.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "observation": ("image", "grid", "vector", "record"),
    "action": ("discrete", "multi_discrete", "box"),
    "boundary": ("stride", "learned", "tried", "surprise", "change", "random", "none"),
    "order": ("raster", "hilbert"),
    "mask": (0.0, 0.4),
    "paint_past": (False, True),
    "sees_past": (False, True),
    "time": ("", "change", "learned"),
    "rounds": (1, 2, 3),
    "latent": ("categorical", "gaussian"),
    "slots": (False, True),
    "forget": (0.0, 0.3),
    "grown": (0, 1),  # images only
    "inject": ("padding", "add", "token"),
    "path": (0, 8),
    "values": (False, True),
    "depth": (1, 2, 3),
    "frame_boundary": (True, False),
    "extra": (0.0, 1.3),
    "residual": ("linear", "none", "mamba", "attention"),
    "cut_off": (False, True),
    "lengths": (False, True),
    "core": ("", "t1", "T2"),
    "certainty": (False, True),
    "budget": (0.0, 5.0),
    "keys": ("loop", "last"),
    "warm_start": (False, True),
    "exit": (0.0, 0.3),
    "clock": (False, True),
}
Choice = dict[str, Any]
PLAIN: Choice = {name: settings[0] for name, settings in SETTINGS.items()}


def build(choice: Choice) -> ModelConfig:
    """The small model with these settings; what a setting needs is set along with it."""
    c = PLAIN | choice
    observation, patch, chunks = STRIDE.observation, 4, 4.0
    if c["observation"] == "grid":
        observation, patch = ObservationSpec(shape=(3, 4, 2), kind="grid", scale=10.0), 1
    elif c["observation"] == "vector":
        observation, patch = ObservationSpec(shape=(7,), dtype="float32", kind="vector", scale=1.0), 1
        chunks = 3.0
    elif c["observation"] == "record":
        observation, chunks = RECORD, 3.0
    action = {
        "discrete": ActionSpec(sizes=(5,)),
        "multi_discrete": ActionSpec(kind="multi_discrete", sizes=(3, 2, 4)),
        "box": ActionSpec(kind="box", sizes=(2,), low=-2.0, high=3.0),
    }[c["action"]]
    grown = c["grown"] if c["observation"] == "image" else 0
    if grown:
        observation = replace(observation, shape=(*(2 * n for n in observation.shape[:2]), *observation.shape[2:]))
    frame = replace(
        STRIDE.frame,
        patch=patch,
        chunks=chunks,
        max_chunks=8 if observation.parts else 6,
        beside=BESIDE if observation.parts else (),
        grown=grown,
        boundary=c["boundary"],
        order=c["order"],
        mask=c["mask"],
        paint_past=c["paint_past"],
        sees_past=c["sees_past"],
    )
    extra = c["extra"] or (1.3 if not c["frame_boundary"] or c["certainty"] else 0.0)
    outermost = replace(
        STRIDE.causal[0],
        extra=extra,
        frame_boundary=c["frame_boundary"],
        residual=c["residual"],
        cut_off=c["cut_off"],
        lengths=c["lengths"],
        encoder_layers="m1t1" if c["values"] else "m1",
    )
    # Inner stages see fewer tokens, and their router can place fewer boundaries.
    width = (24, 40, 56)
    causal: tuple[CausalConfig, ...] = tuple(
        replace(outermost, width=width[level], extra=extra * 0.6**level) for level in range(c["depth"])
    )
    latent = LatentConfig(kind=c["latent"], groups=5 if c["latent"] == "gaussian" else 3, classes=4, forget=c["forget"])
    if c["slots"]:
        latent = replace(latent, groups=6, slots=2)  # fewer than a chunk has patches: some have to share
    loop = replace(
        STRIDE.main.loop,
        layers=c["core"],
        coda="t1" if c["core"] == "T2" else "",
        loops=2.0,
        max_loops=4,
        backprop=2,
        certainty=c["certainty"] and bool(c["core"]),
        budget=c["budget"] if c["core"] else 0.0,
        keys=c["keys"] if c["core"] else "loop",
        warm_start=c["warm_start"] and bool(c["core"]),
        exit=c["exit"] if c["core"] else 0.0,
    )
    return replace(
        STRIDE,
        observation=observation,
        action=action,
        frame=frame,
        time=replace(
            STRIDE.time,
            layers=c["time"] and "m1",
            boundary=c["time"] or "change",
            changes=3.0,
            rounds=c["rounds"],
            changes_outer=6.0,
        ),
        latent=latent,
        side=replace(STRIDE.side, action=c["inject"], path=c["path"], values=c["values"]),
        causal=causal,
        main=replace(STRIDE.main, width=72, loop=loop),
        outcome=OutcomeConfig(clock=c["clock"]),
    )


def pairwise(seed: int = 0, tries: int = 40) -> list[Choice]:
    """Choices among which any two settings of any two mechanisms meet at least once (a greedy covering array)."""
    rng = random.Random(seed)
    names = list(SETTINGS)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in SETTINGS[a] for y in SETTINGS[b]}

    def newly_met(choice: Choice) -> set[Any]:
        return {pair for pair in itertools.combinations(choice.items(), 2) if pair in missing}

    choices: list[Choice] = []
    while missing:
        (a, x), (b, y) = min(missing, key=repr)
        candidates = [{name: rng.choice(SETTINGS[name]) for name in names} | {a: x, b: y} for _ in range(tries)]
        best = max(candidates, key=lambda choice: len(newly_met(choice)))
        missing -= newly_met(best)
        choices.append(best)
    return choices
