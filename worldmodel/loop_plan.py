"""How often a looped core runs for each token, and what it starts from.

A pass has one base number of loops: drawn in training, chosen otherwise. A token gets more or fewer than that by two
rules, which combine: a boundary that was nearly certain gets more, and a budget of loops a frame is shared by the
frame's tokens, as many as those before it had. Both look back only, so steps decide as whole rows do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from worldmodel.config import LoopConfig
from worldmodel.kernels.noise import row_hash, to_normal, uniform

COUNT_STREAM, STATE_STREAM = 101, 102  # of the rows' noise; what a frame draws is stream 0
STATE_STD = 0.4**0.5
LATELY = 8  # frames by which a budget expects how many tokens the next one has
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


@dataclass
class Purse:
    """What a row has left of its budget, `(B,)` each: between two tokens.

    Attributes:
        owed: loops that the frame may still spend; below 0 where it has overdrawn.
        frame: int64, the frame of the row's last token.
        index: int64, its place among the tokens of that frame.
        usual: tokens of a frame that has any, in the mean of the last few.
    """

    owed: Tensor
    frame: Tensor
    index: Tensor
    usual: Tensor

    @classmethod
    def empty(cls, like_B: Tensor) -> Purse:
        """Of rows that have had no token."""
        zero = torch.zeros_like(like_B, dtype=torch.int64)
        return cls(zero.float(), zero, zero, zero.float())

    def where(self, keep_B: Tensor, other: Purse) -> Purse:
        """This one in some rows, the other one in the rest."""
        return Purse(*(torch.where(keep_B, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


def plan_loops(config: LoopConfig, base: float, cues: LoopCues) -> int | Tensor:
    """How many loops each token of whole rows gets, 1 to `max_loops`.

    Args:
        base: loops of a token that no rule favours.
        cues: as the rules in the config ask for.

    Returns:
        One number where all tokens get the same, else `(B, M)` int64.

    Raises:
        ValueError: a rule is on and its cue is missing.
    """
    favour = _favour(config, cues)
    if config.budget > 0:
        return _share_out(config.budget * base / config.loops, config.max_loops, favour, cues)
    if isinstance(favour, Tensor):
        return _rounded(base * favour, config.max_loops)
    return min(max(math.floor(base + 0.5), 1), config.max_loops)


def plan_step(
    config: LoopConfig, base: float, cues: LoopCues, purse: Purse | None
) -> tuple[int | Tensor, Purse | None]:
    """The same for one token a row, with what is left for the next one; there is a purse where there is a budget."""
    if purse is None:
        return plan_loops(config, base, cues), None
    return _spend(config.budget * base / config.loops, config.max_loops, _favour(config, cues), cues, purse)


def plan_backprop(config: LoopConfig, cues: LoopCues) -> int | Tensor:
    """Through how many of a token's last loops the gradient goes: as a budget stretches its loops, so `backprop`.

    So a pass keeps about as many activations as its frames would at `loops` loops a token, however many tokens there
    are. At least 1. Shapes and errors are those of `plan_loops`.
    """
    if config.budget == 0:
        return config.backprop
    return _share_out(config.budget * config.backprop / config.loops, config.max_loops, 1.0, cues)


def starting_noise(key_BM: Tensor, place_BM: Tensor, width: int) -> Tensor:
    """s_0 in training, `(B, M, width)`: normal with variance 2/5, cut at 3 standard deviations (Geiping et al.).

    Args:
        key_BM: int64 noise key of each token's row.
        place_BM: int64, a number that the token shares with no other of its row.
    """
    word = row_hash(key_BM, place_BM, STATE_STREAM)
    return to_normal(BEYOND_3_STD + (1 - 2 * BEYOND_3_STD) * uniform(word, width)) * STATE_STD


def _favour(config: LoopConfig, cues: LoopCues) -> float | Tensor:
    """How much more than others a token gets: from 1/2 to 3/2."""
    if not config.certainty:
        return 1.0
    if cues.certainty is None:
        raise ValueError("LoopConfig.certainty needs the boundary probability of every main token: give certainty")
    return 0.5 + (2 * cues.certainty.detach().float() - 1).clamp(0, 1)


def _share_out(budget: float, most: int, favour: float | Tensor, cues: LoopCues) -> Tensor:
    """What the tokens of whole rows get of a budget, `(B, M)`, one behind the other."""
    if cues.frames is None or cues.tokens is None:
        raise ValueError("LoopConfig.budget counts what a row has had so far: give frames and tokens")
    purse, shares = Purse.empty(cues.frames[:, 0]), []
    for m in range(cues.frames.shape[1]):
        own = favour[:, m] if isinstance(favour, Tensor) else favour
        share, purse = _spend(budget, most, own, LoopCues(None, cues.frames[:, m], cues.tokens[:, m]), purse)
        shares.append(share)
    return torch.stack(shares, 1)


def _spend(budget: float, most: int, favour: float | Tensor, cues: LoopCues, purse: Purse) -> tuple[Tensor, Purse]:
    """What one token a row gets, and what is left.

    A token gets its share of what its frame may still spend, among as many tokens as the frames before it had. What is
    left over or overdrawn goes into the next frame, but no more than what one frame may spend.
    """
    if cues.frames is None or cues.tokens is None:
        raise ValueError("LoopConfig.budget counts what a row has had so far: give frames and tokens")
    purse = Purse.empty(cues.tokens).where(cues.tokens <= 1, purse)  # a piece begins
    passed = cues.frames - purse.frame
    carried = (purse.owed + budget * (passed - 1)).clamp(-budget, budget)
    owed = torch.where(passed > 0, carried + budget, purse.owed)
    index = torch.where(passed > 0, 0, purse.index + 1)
    weight = (1 / (cues.frames - 1).clamp(min=1)).clamp(min=1 / LATELY)
    usual = torch.lerp(purse.usual, (purse.index + 1).float(), weight * ((passed > 0) & (cues.frames > 1)))
    loops = _rounded(owed / (usual - index).clamp(min=1) * favour, most)
    return loops, Purse(owed - loops, cues.frames, index, usual)


def _rounded(wanted: Tensor, most: int) -> Tensor:
    return (wanted + 0.5).floor().clamp(1, most).long()
