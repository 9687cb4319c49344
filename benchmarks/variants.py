"""What is ablated: variants of the `tiny` model by their settings, the groups they are compared in, the environments.

A variant is named once and trained once, whatever number of groups it stands in: `plain`, the preset as it is, is the
fixed stride among the boundaries, the padding among the ways of the action, and no core among the loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timing import ROOT

EDITION = 2  # of what all variants have in common, the preset and its training; raised, all of them are to be run anew

CORE = ("main.loop.layers=T1", "main.loop.loops=4")
EXTRA = ("causal.0.extra=1",)
# One code of 64 bits for all of a chunk, which wants to be drawn towards what the prior expects; and one of 16 bits.
WHOLE = (
    "latent.slots=0",
    "latent.groups=16",
    "latent.classes=16",
    "training.pictures_first=2500",
    "training.losses.representation=0.05",
)
SCARCE = (*WHOLE, "latent.groups=4")
RESTS = ("training.past_first=1500",)

# As `worldmodel train --set` takes them; `training.` settings too.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "learned": ("frame.boundary=learned",),
    "learned_handed_over": ("frame.boundary=learned", "training.stride_first=700"),
    "learned_from_many": (
        "frame.boundary=learned",
        "frame.chunks_first=12",
        "frame.max_chunks=16",
        "training.anneal=1000",
    ),
    "learned_sees_past": ("frame.boundary=learned", "frame.sees_past=true"),
    "learned_sees_past_rests": (*RESTS, "frame.boundary=learned", "frame.sees_past=true"),
    "tried": ("frame.boundary=tried",),
    "surprise": ("frame.boundary=surprise",),
    "change": ("frame.boundary=change",),
    "random": ("frame.boundary=random",),
    "none": ("frame.boundary=none",),
    "scarce": SCARCE,
    **{f"scarce_{way}": (*SCARCE, f"frame.boundary={way}") for way in ("learned", "tried", "surprise", "change")},
    "action_add": ("side.action=add",),
    "action_token": ("side.action=token",),
    "loops_1": ("main.loop.layers=T1", "main.loop.loops=1"),
    "loops_2": ("main.loop.layers=T1", "main.loop.loops=2"),
    "loops_4": CORE,
    "loops_8": ("main.loop.layers=T1", "main.loop.loops=8"),
    "sees_past": ("frame.sees_past=true",),
    "sees_past_rests": (*RESTS, "frame.sees_past=true"),
    "paint_past": ("frame.paint_past=true",),
    "time": ("time.layers=m1",),
    "time_rounds": ("time.layers=m1", "time.rounds=2", "time.changes_outer=8"),
    "time_learned": ("time.layers=m1", "time.boundary=learned"),
    "time_learned_rests": (*RESTS, "time.layers=m1", "time.boundary=learned"),
    "not_settled": ("training.settle=false",),
    "little_decay": ("training.weight_decay=0.01",),
    "mask": ("frame.mask=0.25",),
    "mask_heavily": ("frame.mask=0.75",),
    "forget": ("latent.forget=0.1",),
    "not_loose": ("training.loose=0",),
    "not_mixed": ("training.mix=0",),
    "not_rare": ("training.rare_share=0",),
    "hilbert": ("frame.order=hilbert",),
    "path": ("side.path=32",),
    "values": ("side.values=true",),
    "residual_none": ("causal.0.residual=none",),
    "residual_mamba": ("causal.0.residual=mamba",),
    "residual_attention": ("causal.0.residual=attention",),
    "cut_off": ("causal.0.cut_off=true",),
    "whole": WHOLE,
    "gaussian": ("latent.kind=gaussian", "latent.groups=26"),
    "extra": EXTRA,
    "extra_lengths": (*EXTRA, "causal.0.lengths=true"),
    "extra_unforced": (*EXTRA, "causal.0.frame_boundary=false"),
    "extra_values": (*EXTRA, "side.values=true"),
    "two_stages": (*EXTRA, "causal.1.width=160", "causal.1.extra=0"),
    "extra_loops": (*EXTRA, *CORE),
    "certainty": (*EXTRA, *CORE, "main.loop.certainty=true"),
    "budget": (*EXTRA, *CORE, "main.loop.budget=4"),
    "certainty_budget": (*EXTRA, *CORE, "main.loop.certainty=true", "main.loop.budget=4"),
    "exit": (*CORE, "main.loop.exit=0.05"),
    "warm_start": (*CORE, "main.loop.warm_start=true"),
    "keys_last": (*CORE, "main.loop.keys=last"),
}

# By group, the rows of its table: what a variant is called there. The first is what the others are held against.
GROUPS: dict[str, dict[str, str]] = {
    "boundaries": {
        "fixed stride": "plain",
        "learned router": "learned",
        "router that learns by trying": "tried",
        "router by surprise": "surprise",
        "where a patch differs from the last": "change",
        "at random": "random",
        "every patch a chunk": "none",
    },
    "scarce": {
        "fixed stride": "scarce",
        "learned router": "scarce_learned",
        "router that learns by trying": "scarce_tried",
        "router by surprise": "scarce_surprise",
        "where a patch differs from the last": "scarce_change",
    },
    "codes": {"a slot for each patch": "plain", "of the whole chunk": "whole"},
    "time": {"each frame whole": "plain", "merged through time first": "time"},
    "action": {"in the padding": "plain", "added": "action_add", "a token's content": "action_token"},
    "loops": {
        "no core": "plain",
        "core, 1 loop": "loops_1",
        "2 loops": "loops_2",
        "4 loops": "loops_4",
        "8 loops": "loops_8",
    },
    "mechanisms": {
        "plain": "plain",
        "the encoder sees the frame before": "sees_past",
        "- and rests after 1,500 updates of rows": "sees_past_rests",
        "the painter sees the past": "paint_past",
        "temporal merging": "time",
        "- in two rounds": "time_rounds",
        "- by a learned router": "time_learned",
        "- - at rest after 1,500 updates of rows": "time_learned_rests",
        "learned router, handed over from a stride": "learned_handed_over",
        "learned router, from 12 chunks to 4": "learned_from_many",
        "learned router that sees the frame before": "learned_sees_past",
        "- that rests after 1,500 updates of rows": "learned_sees_past_rests",
        "a quarter of the patches masked": "mask",
        "three quarters of them": "mask_heavily",
        "a tenth of each code forgotten": "forget",
        "an encoder that goes on learning": "not_settled",
        "weights decay a thirtieth as much": "little_decay",
        "no loose frames": "not_loose",
        "loose frames not mixed": "not_mixed",
        "no rows drawn to rare frames": "not_rare",
        "patches along a Hilbert curve": "hilbert",
        "a parallel path, 32 wide": "path",
        "value embeddings": "values",
        "no residual": "residual_none",
        "a Mamba-2 layer as residual": "residual_mamba",
        "an attention layer as residual": "residual_attention",
        "the decoder sees what is cut off": "cut_off",
        "two normals a slot as latent": "gaussian",
        "one extra main token a frame": "extra",
        "- and lengths of chunks": "extra_lengths",
        "- and value embeddings": "extra_values",
        "- none forced at the frame": "extra_unforced",
        "- and a second causal stage": "two_stages",
        "- and a core of 4 loops": "extra_loops",
        "- - more loops where certain": "certainty",
        "- - a budget of 4 loops a frame": "budget",
        "- - both": "certainty_budget",
        "a core of 4 loops": "loops_4",
        "- left early": "exit",
        "- started from the last token's state": "warm_start",
        "- with keys of the last loop": "keys_last",
    },
}
SEEDS = {"boundaries": 3, "scarce": 3, "codes": 3, "action": 3, "loops": 3, "mechanisms": 1}


@dataclass(frozen=True)
class Environment:
    """Where variants are trained: 20,000 random steps, collected once.

    Attributes:
        id: Gymnasium's.
        steps: random actions to learn from.
        groups: what is compared there, with how many seeds; the seeds of a variant are the most of its groups.
        test_episodes: of the random player, in the test set; 50 where frames repeat, few where each is new.
        folder: of the episodes. The test set lies beside it.
    """

    id: str
    steps: int
    groups: dict[str, int]
    test_episodes: int
    folder: Path


ENVIRONMENTS = {
    "doorkey": Environment("MiniGrid-DoorKey-5x5-v0", 20_000, SEEDS, 50, ROOT / "data" / "doorkey"),
    # Of nine games the one whose detail is most uneven: a quarter of its 8x8 patches holds 89% of the variance inside
    # patches, 57% of them are flat (Breakout 49% and 34%, Ms. Pac-Man 35% and 9%).
    "pong": Environment(
        "ALE/Pong-v5", 20_000, {"boundaries": 1, "scarce": 1, "codes": 1, "time": 1}, 5, ROOT / "data" / "pong"
    ),
}


def variants_of(environment: Environment) -> dict[str, int]:
    """The variants that are trained in an environment, and with how many seeds."""
    seeds: dict[str, int] = {}
    for group, count in environment.groups.items():
        for variant in GROUPS[group].values():
            seeds[variant] = max(count, seeds.get(variant, 0))
    return seeds
