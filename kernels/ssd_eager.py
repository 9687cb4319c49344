"""The SSD scan in torch with a gradient written by hand: what a CPU trains with.

The same blocks as in the reference, but autograd would keep, and walk through again, some ten (Q, Q) matrices a head.
The decays E are enough. The gradient of a decay follows from what is at hand
anyway: with x' = dt x, raising the log decay of step t scales every pair (s < t <= q) of
y_q = sum_s E_qs (c_q b_s) x'_s, so

    d loss / d log_decay_t = <dh, h> + sum_{u >= t} <dy_u, y_u> - <dx'_u, x'_u>

with u up to the end of t's block and h the state that leaves it: pairs with s and q both behind t cancel, and so does
all of a later sequence in the same block. Over a whole row the sums would grow, and with them what is lost in fp32.

Shape suffixes: those of kernels/ssd.py, K for the C blocks of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 64  # one block up to here: twice the work in the matrices, but no states in between


class Blocks:
    """How a row of L positions is cut into K blocks of Q, and which pairs of positions see each other."""

    def __init__(self, reset_BL: Tensor | None, B: int, L: int, chunk_size: int) -> None:
        self.B, self.L = B, L
        self.K = 1 if L <= LONGEST else -(-L // chunk_size)
        self.Q = -(-L // self.K)
        self.pad = self.K * self.Q - L
        self.seen: Tensor | None = None  # (B, K, Q, Q) bool, or None where only order counts
        self.alone: Tensor | None = None  # (B, K, Q): no reset since the block began
        self.to_end: Tensor | None = None  # (B, K, Q): none until it ends
        if reset_BL is not None:
            piece = self.cut(reset_BL.long()).cumsum(-1)
            self.seen = (piece.unsqueeze(-1) == piece.unsqueeze(-2)).tril()
            self.alone, self.to_end = piece == 0, piece == piece[..., -1:]

    def cut(self, x_BL: Tensor) -> Tensor:
        """`(B, L, ...)` to `(B, K, Q, ...)`, zeros behind the end: with dt = 0 they neither decay nor add."""
        if self.pad:
            x_BL = F.pad(x_BL, [0, 0] * (x_BL.dim() - 2) + [0, self.pad])
        return x_BL.reshape(self.B, self.K, self.Q, *x_BL.shape[2:])

    def whole(self, x_BKQ: Tensor) -> Tensor:
        """`(B, K, Q, ...)` back to `(B, L, ...)`."""
        return x_BKQ.reshape(self.B, self.K * self.Q, *x_BKQ.shape[3:])[:, : self.L]


class Kept(NamedTuple):
    """What the way back needs of the way there. Blocks first: x and y are `(B, K, H, Q, P)`, b and c `(B, K, Q, N)`."""

    x: Tensor  # dt x
    b: Tensor
    c: Tensor
    E: Tensor  # (B, K, H, Q, Q)
    cb: Tensor  # (B, K, Q, Q): c b^T where a pair sees each other, 0 elsewhere
    y: Tensor
    survives: Tensor | None  # (B, K, H, Q): how much of the entering state is left
    leaves: Tensor | None  # (B, K, H, Q): how much of what enters is left at the block's end
    last: Tensor | None  # (B, H, P, N)
    states: list[Tensor]  # that enter the blocks

    def flat(self) -> list[Tensor | None]:
        """As autograd keeps it."""
        return [*self[:-1], *self.states]

    @classmethod
    def rebuilt(cls, flat: list[Tensor | None]) -> Kept:
        """From `flat`."""
        fields = len(cls._fields) - 1
        return cls._make([*flat[:fields], flat[fields:]])


def run(
    blocks: Blocks,
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    initial_BHPN: Tensor | None,
    final_state: bool,
) -> Kept:
    """The scan."""
    x = blocks.cut(x_BLHP * dt_BLH.unsqueeze(-1)).transpose(2, 3).contiguous()
    b, c = blocks.cut(B_BLN), blocks.cut(C_BLN)
    g = blocks.cut(dt_BLH * A_H).transpose(2, 3).cumsum(-1)  # (B, K, H, Q)
    E = (g.unsqueeze(-1) - g.unsqueeze(-2)).clamp_(max=0).exp_()
    cb = c @ b.transpose(-1, -2)
    cb = cb.tril_() if blocks.seen is None else cb.mul_(blocks.seen)
    y = (E * cb.unsqueeze(2)) @ x

    states: list[Tensor] = []
    survives = leaves = None
    state = initial_BHPN
    if blocks.K > 1 or initial_BHPN is not None or final_state:
        survives, leaves = g.exp(), E[..., -1, :]
        if blocks.alone is not None and blocks.to_end is not None:
            survives, leaves = survives * blocks.alone.unsqueeze(2), leaves * blocks.to_end.unsqueeze(2)
        added = (x * leaves.unsqueeze(-1)).transpose(-1, -2) @ b.unsqueeze(2)  # (B, K, H, P, N)
        for i in range(blocks.K):
            states.append(torch.zeros_like(added[:, i]) if state is None else state)
            if state is None:
                state = added[:, i]
            else:
                y[:, i] += (c[:, i, None] @ state.transpose(-1, -2)) * survives[:, i].unsqueeze(-1)
                state = state * survives[:, i, :, -1, None, None] + added[:, i]
    return Kept(x, b, c, E, cb, y, survives, leaves, state, states)


def run_back(
    blocks: Blocks, kept: Kept, dy: Tensor, dlast: Tensor | None, has_initial: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """From the gradient of y `(B, K, H, Q, P)` and of the last state to those of `dt x`, of the log decay `dt A`, of b
    and c, all `(B, L, ...)`, and of the initial state."""
    x, b, c, E, cb, y, survives, leaves, last, states = kept
    dx = (E * cb.unsqueeze(2)).transpose(-1, -2) @ dy
    dcb = ((dy @ x.transpose(-1, -2)).mul_(E)).sum(2)
    dcb = dcb.tril_() if blocks.seen is None else dcb.mul_(blocks.seen)
    dc, db = dcb @ b, dcb.transpose(-1, -2) @ c

    dstate = dlast
    through = dx.new_zeros(blocks.B, blocks.K, 1, dx.shape[2])  # <dh, h> of the states that leave the blocks, by head
    if survives is not None and leaves is not None:
        dyc = dy * survives.unsqueeze(-1)
        for i in reversed(range(blocks.K)):
            if dstate is not None:
                leaving = [*states, last][i + 1]
                assert leaving is not None
                through[:, i, 0] = (dstate * leaving).sum((-2, -1))
                dx[:, i] += (b[:, i, None] @ dstate.transpose(-1, -2)) * leaves[:, i].unsqueeze(-1)
                db[:, i] += ((x[:, i] * leaves[:, i].unsqueeze(-1)) @ dstate).sum(1)
            dc[:, i] += (dyc[:, i] @ states[i]).sum(1)
            if i > 0 or has_initial:
                entering = dyc[:, i].transpose(-1, -2) @ c[:, i, None]
                if dstate is not None:
                    entering += dstate * survives[:, i, :, -1, None, None]
                dstate = entering

    dg = (dy * y).sum(-1).sub_((dx * x).sum(-1)).transpose(2, 3)  # (B, K, Q, H)
    dlog = blocks.whole(dg.flip(2).cumsum(2).flip(2) + through)  # (B, L, H)
    dx = blocks.whole(dx.transpose(2, 3))
    return dx, dlog, blocks.whole(db), blocks.whole(dc), dstate if has_initial else None


class SsdScan(torch.autograd.Function):
    """See the module; arguments are those of `ssd_scan`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x_BLHP: Tensor,
        dt_BLH: Tensor,
        A_H: Tensor,
        B_BLN: Tensor,
        C_BLN: Tensor,
        reset_BL: Tensor | None,
        initial_BHPN: Tensor | None,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        blocks = Blocks(reset_BL, dt_BLH.shape[0], dt_BLH.shape[1], chunk_size)
        kept = run(blocks, x_BLHP, dt_BLH, A_H, B_BLN, C_BLN, initial_BHPN, final_state=True)
        ctx.save_for_backward(x_BLHP, dt_BLH, A_H, *kept.flat())
        ctx.blocks, ctx.has_initial = blocks, initial_BHPN is not None
        ctx.set_materialize_grads(False)
        return blocks.whole(kept.y.transpose(2, 3)), kept.last

    @staticmethod
    def backward(ctx: Any, dy_BLHP: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_BLHP, dt_BLH, A_H, *tensors = ctx.saved_tensors
        kept = Kept.rebuilt(tensors)
        blocks: Blocks = ctx.blocks
        if dy_BLHP is None:
            dy = torch.zeros_like(kept.y)
        else:
            dy = blocks.cut(dy_BLHP).transpose(2, 3).contiguous()
        with torch.autocast(dy.device.type, enabled=False):
            dx, dlog, db, dc, dinitial = run_back(blocks, kept, dy, dlast, ctx.has_initial)
        ddt = torch.addcmul((dx * x_BLHP).sum(-1), dlog, A_H)
        dA = (dlog * dt_BLH).sum((0, 1))
        return dx * dt_BLH.unsqueeze(-1), ddt, dA, db, dc, None, dinitial, None


def ssd_scan_eager(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    reset_BL: Tensor | None = None,
    initial_BHPN: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` in torch, its gradient by hand."""
    tensors = [t if t.dtype == torch.float64 else t.float() for t in (x_BLHP, dt_BLH, A_H, B_BLN, C_BLN)]
    with torch.autocast(x_BLHP.device.type, enabled=False):
        y, last = SsdScan.apply(*tensors, reset_BL, initial_BHPN, chunk_size)
    return y.to(x_BLHP.dtype), last
