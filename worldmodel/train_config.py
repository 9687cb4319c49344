"""Every knob of the training of a world model, and what they say of its course."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldmodel.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the world model is trained."""

    batch_size: int = 6  # rows an update
    length: int = 24  # frames a row; longer than the window that attention looks back on
    learning_rate: float = 3e-3
    warmup: int = 200  # updates until the rate is reached
    level: int = 4000  # updates until it falls again, as one over the square root of their number
    weight_decay: float = 0.3  # of matrices; with less, what is shown rarely is known by heart
    frame_decay: float = 0.01  # of those of the frame stage: with more, pictures blur
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # of the gradient's norm
    average: float = 0.995  # decay of the running average of the weights
    end_share: float = 0.25  # rows that hold a reward or a termination
    rare_share: float = 0.25  # rows that hold a frame drawn evenly from the distinct ones
    pictures_first: int = 1500  # updates that only paint loose frames, a third of the cost of the others
    past_first: int = 0  # updates behind them in which an encoder that learns their order learns on; 0: it never rests
    stride_first: int = 0  # updates, from the very first, that chunk at a fixed stride before a router takes over
    settle: bool = True  # whether the encoder, and what comes from it, stand still behind the pictures
    anneal: int = 0  # updates until `chunks_first` has become `chunks`; and behind the pictures all other first targets
    loose: int = 12  # frames that come along to be painted, rare ones as likely as common ones
    mix: float = 0.5  # share of those into which a rectangle of another is pasted
    save_every: int = 200  # updates between checkpoints
    log_every: int = 20
    losses: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "learning_rate", "warmup", "clip", "save_every", "log_every"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"TrainConfig: {name} must be above 0, not {value!r}")
        if not (0 <= self.average < 1 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"TrainConfig: average and betas are below 1, not {self.average!r} and {self.betas!r}")
        if not (self.losses.paint or self.loose):
            raise ValueError("TrainConfig: with losses.paint=0 and loose=0 nothing would be painted; set one above 0")

    def share_of_the_rate(self, update: int) -> float:
        """How much of the rate an update has: twice up in a straight line, for the pictures and for all the rest.

        In the last third of the pictures it falls to zero: what settles behind them is not what one large step left
        behind. Then it stays level, and falls as one over the square root, so that a run may end at any time.
        """
        pictures, warmup = self.pictures_first, self.warmup
        if update < pictures:
            return min(1.0, (update + 1) / warmup, 3 * (pictures - update) / pictures)
        behind = update - pictures + 1
        return min(1.0, behind / warmup, (self.level / behind) ** 0.5)
