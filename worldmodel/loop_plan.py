"""How often a looped core runs for each token, and what it starts from.

A pass has one base number of loops: drawn in training, chosen otherwise. A token gets more or fewer than that by two
rules, which combine: a boundary that was nearly certain gets more, and a budget of loops a frame is shared by however
many tokens the row has made of its frames so far. Both look back only, so steps decide as whole rows do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldmodel.config import LoopConfig
from worldmodel.kernels.noise import row_hash, to_normal, uniform

COUNT_STREAM, STATE_STREAM = 101, 102  # of the rows' noise; what a frame draws is stream 0
STATE_STD = 0.4**0.5
BEYOND_3_STD = math.erfc(3 / 2**0.5) / 2  # share of a normal distribution below -3 standard deviations


@dataclass
class LoopCues:
    """What tokens say about their loops: `(B, M)` for whole rows, `(B,)` for steps; None where no rule asks for it.

    Attributes:
        certainty: the router's recalibrated p' at the token, in [0, 1], at forced boundaries too.
        frames: int64, frames of the row's piece so far, the token's own among them.
        tokens: int64, main tokens of the row's piece so far, this one among them.
    """

    certainty: Tensor | None = None
    frames: Tensor | None = None
    tokens: Tensor | None = None


@dataclass
class LoopPlan:
    """What is decided before the core runs: tensors in one shape, or one number for all tokens.

    Attributes:
        loops: how many a token gets.
        backprop: through how many of its last ones the gradient goes; None for all of them.
        running: bool, which tokens run at all; None for all of them.
        exit: a token that moves by a smaller share than this is done; 0 for never.
    """

    loops: int | Tensor
    backprop: int | Tensor | None
    running: Tensor | None
    exit: float

    def map(self, change: Callable[[Tensor], Tensor]) -> LoopPlan:
        """The same plan with its tensors changed."""
        return replace(
            self,
            loops=change(self.loops) if isinstance(self.loops, Tensor) else self.loops,
            backprop=change(self.backprop) if isinstance(self.backprop, Tensor) else self.backprop,
            running=None if self.running is None else change(self.running),
        )


def draw_loops(config: LoopConfig, key: Tensor) -> float:
    """The base number of a training pass: 1 + Poisson(rate), rate log-normal (Geiping et al. 2025, section 3).

    The log-normal has the mean `loops - 1`, so that the draw has the mean `loops`, but for what is cut off at
    `max_loops`. On a GPU this costs one synchronisation with the host.

    Args:
        key: int64 noise key, a scalar; the same key gives the same number.
    """
    if config.spread < 1e-3 or config.loops <= 1:
        return config.loops
    u = uniform(row_hash(key.cpu(), torch.tensor(0), COUNT_STREAM), 2)
    rate = (config.loops - 1) * math.exp(config.spread * float(to_normal(u[0])) - config.spread**2 / 2)
    count, share = 1, math.exp(-rate)
    below, wanted = share, float(u[1])
    while below < wanted and count < config.max_loops:
        share *= rate / count
        below += share
        count += 1
    return count


def plan_loops(config: LoopConfig, base: float, cues: LoopCues) -> int | Tensor:
    """How many loops each token gets, 1 to `max_loops`.

    Args:
        base: loops of a token that no rule favours.
        cues: as the rules in the config ask for.

    Returns:
        One number where all tokens get the same, else int64 in the shape of the cues.

    Raises:
        ValueError: a rule is on and its cue is missing.
    """
    wanted: float | Tensor = base
    if config.budget > 0:
        wanted = _budgeted(config, cues) * (base / config.loops)
    if config.certainty:
        if cues.certainty is None:
            raise ValueError("LoopConfig.certainty needs the boundary probability of every main token: give certainty")
        wanted = wanted * (0.5 + (2 * cues.certainty.detach().float() - 1).clamp(0, 1))
    return _rounded(wanted, config.max_loops)


def plan_backprop(config: LoopConfig, cues: LoopCues) -> int | Tensor:
    """Through how many of a token's last loops the gradient goes: as a budget stretches its loops, so `backprop`.

    So a pass keeps about as many activations as its frames would at `loops` loops a token, however many tokens there
    are. At least 1. Shapes and errors are those of `plan_loops`.
    """
    if config.budget == 0:
        return config.backprop
    return _rounded(_budgeted(config, cues) * (config.backprop / config.loops), config.max_loops)


def starting_noise(key_BM: Tensor, place_BM: Tensor, width: int) -> Tensor:
    """s_0 in training, `(B, M, width)`: normal with variance 2/5, cut at 3 standard deviations (Geiping et al.).

    Args:
        key_BM: int64 noise key of each token's row.
        place_BM: int64, a number that the token shares with no other of its row.
    """
    word = row_hash(key_BM, place_BM, STATE_STREAM)
    return to_normal(BEYOND_3_STD + (1 - 2 * BEYOND_3_STD) * uniform(word, width)) * STATE_STD


def _budgeted(config: LoopConfig, cues: LoopCues) -> Tensor:
    if cues.frames is None or cues.tokens is None:
        raise ValueError("LoopConfig.budget counts what a row has had so far: give frames and tokens")
    return config.budget * cues.frames / cues.tokens.clamp(min=1)  # a pad may have had none


def _rounded(wanted: float | Tensor, most: int) -> int | Tensor:
    if isinstance(wanted, Tensor):
        return (wanted + 0.5).floor().clamp(1, most).long()
    return min(max(math.floor(wanted + 0.5), 1), most)
