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
    "chunks_first": (False, True),
    "order": ("raster", "hilbert"),
    "mask": (0.0, 0.4),
    "paint_past": (False, True),
    "sees_past": (False, True),
    "time": ("", "change", "learned"),
    "rounds": (1, 2, 3),
    "changes_first": (False, True),
    "latent": ("categorical", "gaussian"),
    "slots": (False, True),
    "forget": (0.0, 0.3),
    "grown": (0, 1),
    "inject": ("padding", "add", "token"),
    "path": (0, 8),
    "values": (False, True),
    "depth": (1, 2, 3),
    "inner_unlike": (False, True),  # whether stages inside are made of other parts than the outermost
    "frame_boundary": (True, False),
    "extra": (False, True),
    "extra_first": (False, True),
    "max_extra": (2, 1),
    "residual": ("linear", "none", "mamba", "attention"),
    "cut_off": (False, True),
    "lengths": (False, True),
    "core": ("", "t1", "T2"),
    "coda": ("", "t1"),
    "spread": (0.5, 0.0),
    "certainty": (False, True),
    "budget": (0.0, 3.5),
    "keys": ("loop", "last"),
    "warm_start": (False, True),
    "exit": (0.0, 0.8),
    "clock": (False, True),
}
Choice = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]  # two mechanisms, each with its setting
PLAIN: Choice = {name: settings[0] for name, settings in SETTINGS.items()}

# What others have to be set to, or a mechanism means nothing and is off. Nothing that is needed has needs itself.
LOOPED = {"core": ("t1", "T2")}
ROUTED = {"extra": (True,)}
NEEDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "chunks_first": {"boundary": ("learned", "tried", "surprise", "change", "random")},  # the others cannot move
    "order": {"observation": ("image", "grid", "record")},  # a vector has one, whatever the curve
    "rounds": {"time": ("change", "learned")},
    "changes_first": {"time": ("change", "learned")},
    "inner_unlike": {"depth": (2, 3)},
    "coda": LOOPED,
    "spread": LOOPED,
    "grown": {"observation": ("image",)},
    "frame_boundary": ROUTED,  # to be False: somebody has to set boundaries
    "extra_first": ROUTED,
    "max_extra": ROUTED,
    "certainty": LOOPED | ROUTED,
    "budget": LOOPED,
    "keys": LOOPED,
    "warm_start": LOOPED,
    "exit": LOOPED,
}


def effective(choice: Choice) -> Choice:
    """All settings of the model that comes of a choice: what lacks what it needs is off."""
    full = PLAIN | choice
    for name, needs in NEEDS.items():
        if any(full[other] not in fitting for other, fitting in needs.items()):
            full[name] = PLAIN[name]
    return full


def build(choice: Choice) -> ModelConfig:
    """The small model with these settings, as far as they are effective."""
    c = effective(choice)
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
    if c["grown"]:
        observation = replace(observation, shape=(*(2 * n for n in observation.shape[:2]), *observation.shape[2:]))
    numbers, choice_of_some = BESIDE
    if c["chunks_first"]:
        numbers = replace(numbers, chunks_first=1.5)
    frame = replace(
        STRIDE.frame,
        patch=patch,
        chunks=chunks,
        chunks_first=5.0 if c["chunks_first"] else 0.0,
        max_chunks=8 if observation.parts else 6,
        beside=(numbers, choice_of_some) if observation.parts else (),
        grown=c["grown"],
        boundary=c["boundary"],
        order=c["order"],
        mask=c["mask"],
        paint_past=c["paint_past"],
        sees_past=c["sees_past"],
    )
    # Inner stages see fewer tokens, and their router can place fewer boundaries.
    extra = [c["extra"] * min(1.3, 0.9 * c["max_extra"]) * 0.6**level for level in range(c["depth"])]
    causal = tuple(
        replace(
            STRIDE.causal[0],
            width=width,
            extra=here,
            extra_first=0.7 * here if c["extra_first"] else 0.0,
            max_extra=c["max_extra"],
            frame_boundary=c["frame_boundary"],
            residual=c["residual"],
            cut_off=c["cut_off"],
            lengths=c["lengths"],
            encoder_layers="m1t1" if c["values"] else "m1",
        )
        for width, here in zip((24, 40, 56), extra)
    )
    if c["inner_unlike"]:
        causal = causal[0], *(unlike(stage) for stage in causal[1:])
    latent = LatentConfig(kind=c["latent"], groups=5 if c["latent"] == "gaussian" else 3, classes=4, forget=c["forget"])
    if c["slots"]:
        latent = replace(latent, groups=6, slots=2)  # fewer than a chunk has patches: some have to share
    loop = replace(
        STRIDE.main.loop,
        layers=c["core"],
        coda=c["coda"],
        spread=c["spread"],
        loops=3.0,
        max_loops=4,
        backprop=2,
        certainty=c["certainty"],
        budget=c["budget"],
        keys=c["keys"],
        warm_start=c["warm_start"],
        exit=c["exit"],
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
            changes_first=3.9 if c["changes_first"] else 0.0,
            changes_outer=5.0,
        ),
        latent=latent,
        side=replace(STRIDE.side, action=c["inject"], path=c["path"], values=c["values"]),
        causal=causal,
        main=replace(STRIDE.main, width=72, loop=loop),
        outcome=OutcomeConfig(clock=c["clock"]),
    )


def unlike(stage: CausalConfig) -> CausalConfig:
    """A stage of other parts: what stands in none of the others' way the other way round."""
    residual = {"linear": "attention", "none": "mamba", "mamba": "none", "attention": "linear"}[stage.residual]
    return replace(
        stage,
        residual=residual,
        cut_off=not stage.cut_off,
        lengths=not stage.lengths,
        decoder_layers="m1t1",
    )


def settings_of(config: ModelConfig) -> Choice:
    """What a model that was built really has: read from its config, and so the other way round than `build`."""
    frame, time, latent, loop, outermost = config.frame, config.time, config.latent, config.main.loop, config.causal[0]
    return {
        "observation": config.observation.kind,
        "action": config.action.kind,
        "boundary": frame.boundary,
        "chunks_first": any(first > 0 for first, _ in frame.targets),
        "order": frame.order,
        "mask": frame.mask,
        "paint_past": frame.paint_past,
        "sees_past": frame.sees_past,
        "time": time.boundary if time.layers else "",
        "rounds": time.rounds,
        "changes_first": time.changes_first > 0,
        "latent": latent.kind,
        "slots": latent.slots > 0,
        "forget": latent.forget,
        "grown": frame.grown,
        "inject": config.side.action,
        "path": config.side.path,
        "values": config.side.values,
        "depth": len(config.causal),
        "inner_unlike": outermost.decoder_layers != config.causal[-1].decoder_layers,
        "frame_boundary": outermost.frame_boundary,
        "extra": outermost.extra > 0,
        "extra_first": outermost.extra_first > 0,
        "max_extra": outermost.max_extra,
        "residual": outermost.residual,
        "cut_off": outermost.cut_off,
        "lengths": outermost.lengths,
        "core": loop.layers,
        "coda": loop.coda,
        "spread": loop.spread,
        "certainty": loop.certainty,
        "budget": loop.budget,
        "keys": loop.keys,
        "warm_start": loop.warm_start,
        "exit": loop.exit,
        "clock": config.outcome.clock,
    }


def pairs_of(choice: Choice) -> set[Pair]:
    """The pairs that meet in a model."""
    return set(itertools.combinations(choice.items(), 2))


def possible_pairs() -> set[Pair]:
    """All pairs but those of which one needs the other mechanism to be set otherwise (`NEEDS`)."""

    def lets(name: str, value: Any, other: str, its: Any) -> bool:
        return value == PLAIN[name] or its in NEEDS.get(name, {}).get(other, SETTINGS[other])

    each = itertools.combinations([(name, value) for name, values in SETTINGS.items() for value in values], 2)
    return {((a, x), (b, y)) for (a, x), (b, y) in each if a != b and lets(a, x, b, y) and lets(b, y, a, x)}


def pairwise(seed: int = 0, tries: int = 40) -> list[Choice]:
    """Effective choices in which all possible pairs meet at least once (a greedy covering array)."""
    rng = random.Random(seed)
    missing = possible_pairs()

    def at_random(wanted: Choice) -> Choice:
        choice = {name: rng.choice(values) for name, values in SETTINGS.items()}
        for name, value in wanted.items():
            if value != PLAIN[name]:
                choice |= {other: rng.choice(fitting) for other, fitting in NEEDS.get(name, {}).items()}
        return effective(choice | wanted)

    choices: list[Choice] = []
    while missing:
        wanted = dict(min(missing, key=repr))
        best = max((at_random(wanted) for _ in range(tries)), key=lambda choice: len(pairs_of(choice) & missing))
        missing -= pairs_of(best)
        choices.append(best)
    return choices
