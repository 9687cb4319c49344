"""Every knob of the model: small frozen dataclasses, one a part, and every mechanism a field whose default is off.

A config travels as JSON beside the weights (`config.json`), so it holds only numbers, strings, tuples and configs.
`worldmodel.presets` puts them together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from worldmodel.specs import ActionSpec, ObservationSpec

FORMAT_VERSION = 2  # 1 had a single causal stage, not a tuple of them

MAY_BE_ZERO = ("max_extra", "unimix", "spread")


def _check_numbers(config: Any) -> None:
    """Refuse text, nothing, zero and less where a part needs a number: in a layer it would fail in riddles.

    Raises:
        ValueError: names the part, the field and its value.
    """
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), type(f.default)
        if kind not in (int, float):
            continue
        wanted = "a whole number" if kind is int else "a number"
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise ValueError(f"{type(config).__name__}: {f.name} must be {wanted}, not {value!r}")
        zero = f.default == 0 or f.name in MAY_BE_ZERO
        if not (value >= 0 if zero else value > 0):
            raise ValueError(f"{type(config).__name__}: {f.name} must be {wanted} above 0, not {value!r}")


def _check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    if (value := getattr(config, name)) not in choices:
        listed = ", ".join(f"'{choice}'" for choice in choices)
        raise ValueError(f"{type(config).__name__}: {name} must be one of {listed}, not {value!r}")


BOUNDARIES = ("stride", "learned", "tried", "surprise", "change", "random", "none")


@dataclass(frozen=True, kw_only=True)
class BesideConfig:
    """A modality beside the first one, in observations that have several: cut up by itself, by a target of its own."""

    patch: int = 1
    chunks: float = 1.0
    chunks_first: float = 0.0

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """The frame stage: patches, bidirectional attention, Mamba-2, router."""

    patch: int = 8  # side of a square patch, in pixels (cells of a grid, entries of a vector)
    width: int = 64  # d0
    encoder_layers: str = "T1m1"  # attention sees the frame first, Mamba-2 compresses after it
    decoder_layers: str = "m1T1"  # the mirror image
    heads: int = 4
    order: str = "raster"  # in which the patches follow one another: "raster" or "hilbert"
    readers: int = 4  # ways in which a patch's place weighs what a chunk pools from it and paints onto it
    paint_past: bool = False  # whether the painter also sees y, what the past says; it makes the code lazy
    sees_past: bool = False  # whether the encoder also sees the frame before and the action between (as in Δ-IRIS)
    mask: float = 0.0  # share of the patches that the encoder does not get to see in training
    # Where chunks start: "stride" (fixed), "learned" (H-Net's router), "tried" (a router that learns by trying),
    # "surprise" (where much has come together that could not be foretold), "change" (where a patch is unlike the last),
    # "random" (a hash of the frame), "none" (every patch is a chunk).
    boundary: str = "stride"
    chunks: float = 4.0  # chunks a frame: exact for "stride", the target mean for the others
    chunks_first: float = 0.0  # the target when training begins (0: the same), on its way while the targets anneal
    # Cap where chunks are not fixed: the most probable boundaries of a frame win. Where it bites there are fewer than
    # `chunks` in the mean.
    max_chunks: int = 8
    # Where observations have several modalities, `patch` and what is said of chunks is about the first of them, the cap
    # about all; these are the others.
    beside: tuple[BesideConfig, ...] = ()
    grown: int = 0  # how often images were doubled since the model was born: an outer encoder and decoder each time

    def __post_init__(self) -> None:
        _check_choice(self, "boundary", BOUNDARIES)
        _check_choice(self, "order", ("raster", "hilbert"))
        _check_numbers(self)
        if self.chunks_first > 0 and self.boundary in ("stride", "none"):
            raise ValueError(f"FrameConfig: chunks_first needs boundaries that can move, not '{self.boundary}'")
        if self.mask >= 1:
            raise ValueError(f"FrameConfig: mask is a share below 1, not {self.mask!r}")

    @property
    def targets(self) -> tuple[tuple[float, float], ...]:
        """Wanted chunks a frame of each modality: when training begins (0: the same), and in the end."""
        others = ((part.chunks_first, part.chunks) for part in self.beside)
        return (self.chunks_first, self.chunks), *others


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """Temporal merging: a stage that follows each patch through time, before space is merged. Off without layers."""

    layers: str = ""  # Mamba-2 over time, as in "m1"
    boundary: str = "change"  # what a patch has to do to begin anew; "learned" asks a router
    changes: float = 4.0  # patches a frame that begin anew; the others stay in their old chunk and cost no token
    changes_first: float = 0.0  # the target when rows are first learned (0: the same), on its way while targets anneal
    rounds: int = 1  # time, then space, then time again: what is new in one round is asked again in the next
    space: str = "t1"  # attention over the new patches of a frame, between two rounds
    changes_outer: float = 0.0  # patches that are new in the first round, fewer from round to round (0: as in the last)

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_choice(self, "boundary", ("change", "learned"))


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The latent of one chunk: `groups` categoricals of `classes` each."""

    kind: str = "categorical"  # or "gaussian", with `groups` numbers
    groups: int = 16
    classes: int = 16
    slots: int = 0  # parts of a code that are of one patch each (0: all of the code is of the whole chunk)
    unimix: float = 0.01  # share of the uniform distribution mixed in, in the losses only
    forget: float = 0.0  # share of a code's groups that the tokens are not told in training

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name in ("unimix", "forget"):
            if (value := getattr(self, name)) >= 1:
                raise ValueError(f"LatentConfig: {name} is a share below 1, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class SideConfig:
    """What comes to the tokens from the side, in the causal stages and the main network."""

    # How the action enters: "padding" (in the side vector of every widening), "add" (added to what is widened), or
    # "token" (as the content of F_t, and nowhere else).
    action: str = "padding"
    path: int = 0  # width of a parallel encoder whose output is chunked as the main path and joins the side vector
    values: bool = False  # value embeddings of latents and actions in the attention layers

    def __post_init__(self) -> None:
        _check_choice(self, "action", ("padding", "add", "token"))
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """One causal stage around the next: Mamba-2 in, Mamba-2 out, and inside it runs only what a chunk starts with."""

    width: int = 128  # d1
    encoder_layers: str = "m1"
    decoder_layers: str = "m1"
    heads: int = 4
    window: int = 128  # tokens that attention layers here look back on, if there are any
    frame_boundary: bool = True  # whether F_t always starts a chunk, so that what is inside runs at least once a frame
    # Boundaries a frame that the router sets, beside the forced one at F_t. Where patches are followed through time, of
    # a frame that is cut up whole: one with a third of the chunks has a third of them.
    extra: float = 0.0
    extra_first: float = 0.0  # the target when training begins (0: the same), on its way while the targets anneal
    max_extra: int = 2  # cap of those, a frame; where it bites, there are fewer than `extra` in the mean
    residual: str = "linear"  # from encoder to decoder: "none", "linear", "mamba" (a layer), "attention" (a layer)
    cut_off: bool = False  # whether what is cut off on the way out is shown to the decoder's layers (x0)
    lengths: bool = False  # whether a chunk is told how many tokens the chunk before it had

    def __post_init__(self) -> None:
        _check_choice(self, "residual", ("none", "linear", "mamba", "attention"))
        _check_numbers(self)
        if self.extra_first > 0 and self.extra == 0:
            raise ValueError("CausalConfig: extra_first is where extra begins; it needs an extra above 0 to go to")
        if self.cut_off and not self.decoder_layers:
            raise ValueError("CausalConfig: cut_off shows the decoder what is cut off; it needs decoder_layers")
        if not self.frame_boundary and self.extra == 0:
            raise ValueError("CausalConfig: without a boundary at every frame the router must set some: extra above 0")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Recurrent depth (Geiping et al. 2025): a core that is run several times. Off without layers."""

    layers: str = ""  # the core; attention only, "t" or "T": a Mamba-2 would need a state for every loop
    coda: str = ""  # layers behind the core; those of the main network come before it
    loops: float = 4.0  # the mean in training; what is run otherwise
    spread: float = 0.5  # sigma of the log-normal rate of the Poisson draw in training; below 0.001 all runs are alike
    max_loops: int = 16
    backprop: int = 4  # last loops that the gradient goes through
    certainty: bool = False  # more loops for tokens whose boundary was nearly certain
    budget: float = 0.0  # loops a frame, over all of its tokens, kept up over a row's past (0: do not count)
    exit: float = 0.0  # outside of training, a token stops once a loop moves it by less than this share (0: never)
    keys: str = "loop"  # a token's past is read from "loop": the same loop, or "last": the last loop it was given
    warm_start: bool = False  # whether a token's state starts from that of the token before it

    def __post_init__(self) -> None:
        _check_choice(self, "keys", ("loop", "last"))
        _check_numbers(self)
        if set(self.layers) & set("mM"):
            raise ValueError(f"LoopConfig: a core is made of attention, 't' and 'T', not {self.layers!r}")


@dataclass(frozen=True, kw_only=True)
class MainConfig:
    """The main network: attention over the past, a Mamba-2 layer before each."""

    width: int = 192  # d2
    layers: str = "m1T1"
    heads: int = 4
    window: int = 16  # main tokens that attention looks back on, in training and in dreams alike
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig:
    """What is said on arriving at a frame: reward and termination."""

    clock: bool = False  # whether time comes first in saying how large a reward is, and the past second

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Shared by all Mamba-2 layers; names and meaning as in mamba-ssm."""

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    headdim: int = 32
    chunk_size: int = 32

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to rebuild a `WorldModel`: the stages from the patches to the main network, and the rest."""

    observation: ObservationSpec
    action: ActionSpec
    time: TimeConfig = field(default_factory=TimeConfig)
    frame: FrameConfig = field(default_factory=FrameConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    side: SideConfig = field(default_factory=SideConfig)
    causal: tuple[CausalConfig, ...] = (CausalConfig(),)  # the outermost first
    main: MainConfig = field(default_factory=MainConfig)
    outcome: OutcomeConfig = field(default_factory=OutcomeConfig)
    mamba: MambaConfig = field(default_factory=MambaConfig)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not self.causal:
            raise ValueError("ModelConfig: there must be at least one causal stage around the main network")
        if len(self.frame.beside) != len(self.observation.modalities) - 1:
            raise ValueError(
                f"ModelConfig: observations have {len(self.observation.modalities)} modalities, so frame.beside must "
                f"describe all but the first, not {len(self.frame.beside)}"
            )
        if self.frame.grown and self.observation.kind != "image":
            raise ValueError(
                f"ModelConfig: only models of images can grow (frame.grown above 0), an observation of kind "
                f"{self.observation.kind!r} has no half size"
            )

    @property
    def first_targets(self) -> tuple[str, ...]:
        """Names of the targets that begin elsewhere than where they are to arrive."""
        named = [("frame", self.frame.chunks_first)]
        named += [(f"frame.beside.{i}", part.chunks_first) for i, part in enumerate(self.frame.beside)]
        chunks = tuple(f"{name}.chunks_first" for name, first in named if first)
        changes = ("time.changes_first",) if self.time.changes_first and self.time.layers else ()
        extra = tuple(f"causal.{i}.extra_first" for i, stage in enumerate(self.causal) if stage.extra_first)
        return chunks + changes + extra

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: the data were written by a newer version, or a field is unknown.
        """
        data = dict(data)
        version = data.get("format_version", 1)
        if version > FORMAT_VERSION:
            raise ValueError(f"config.json has format version {version}; this worldmodel reads {FORMAT_VERSION}")
        data["format_version"] = FORMAT_VERSION
        for name, part in PARTS.items():
            if name in data:
                data[name] = _rebuild(part, data[name])
        if "causal" in data:
            stages = [data["causal"]] if version == 1 else data["causal"]
            data["causal"] = tuple(_rebuild(CausalConfig, stage) for stage in stages)
        return _rebuild(cls, data)


PARTS = {
    "observation": ObservationSpec,
    "action": ActionSpec,
    "time": TimeConfig,
    "frame": FrameConfig,
    "latent": LatentConfig,
    "side": SideConfig,
    "main": MainConfig,
    "outcome": OutcomeConfig,
    "mamba": MambaConfig,
}

LISTS: dict[type, dict[str, type]] = {
    FrameConfig: {"beside": BesideConfig},
    ObservationSpec: {"parts": ObservationSpec},
}


def _rebuild(cls: type, values: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(values) - known:
        raise ValueError(f"config has a field that this version does not know: {', '.join(sorted(unknown))}")
    if cls is MainConfig and "loop" in values:
        values = values | {"loop": _rebuild(LoopConfig, values["loop"])}
    for name, inner in LISTS.get(cls, {}).items():
        if name in values:
            values = values | {name: tuple(_rebuild(inner, value) for value in values[name])}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
