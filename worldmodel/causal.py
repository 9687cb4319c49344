"""A causal stage: tokens in their order, and inside, for those that start a chunk, the next stage or the main network.

    tokens of frame t:  F_t  C_{t,1} ... C_{t,K}      F_t carries the action that led to frame t

Mamba-2 reads the tokens, widened by a side vector that carries the action. Where a chunk starts (at F_t if that is
forced, and where the router says so) what is inside runs; its output is smoothed over chunks, joined with the residual
and read by the decoder. What comes out at a token of the outermost stage, y, predicts the next token of the frame.

`forward` runs whole rows at once, `step` one token on a carried memory; both give the same numbers.

Shape suffixes: B rows, L tokens, M tokens that start a chunk, d width from outside, D own width, E width inside.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import ModelConfig
from worldmodel.kernels.compaction import compact, spread, take
from worldmodel.kernels.ema import ema_scan
from worldmodel.layers import Memory, Stack
from worldmodel.main_network import MainNetwork
from worldmodel.residual import Residual
from worldmodel.router import Router, on_the_way, straight_through
from worldmodel.side import Widening, action_width
from worldmodel.tokens import Marks, Said, Side

LONGEST = 32  # lengths of chunks from here on are told as one


class CausalStage(nn.Module):
    """Tokens of the width around it in, tokens of its own width out.

    Args:
        config: of the whole model.
        latent_width: Z.
        tokens: of a frame that reach the stage on average, and the fewest that do while targets move.
        frames: how many of those are F_t: 1, or fewer if a stage around this one forces none.
        level: which of the causal stages this is, 0 the outermost.

    Raises:
        ValueError: its router is to start more chunks than there are tokens, or than its cap lets it.
    """

    def __init__(
        self,
        config: ModelConfig,
        latent_width: int,
        tokens: tuple[float, float],
        frames: float = 1.0,
        level: int = 0,
    ) -> None:
        super().__init__()
        causal, side, mamba = config.causal[level], config.side, config.mamba
        around = config.frame.width if level == 0 else config.causal[level - 1].width
        entries = action_width(config.action)
        values = latent_width + entries if side.values else 0
        self.config, self.level = causal, level
        self.name, self.width = f"stage{level}", causal.width
        self.frame_boundary, self.max_extra = causal.frame_boundary, causal.max_extra
        # The parallel encoder begins on the outermost tokens; from there on its output joins every widening.
        self.widen = Widening(around, causal.width, side, entries, side.path if level else 0)
        self.path_in = nn.Linear(around, side.path, bias=False) if side.path and level == 0 else None
        self.path = Stack("m1", side.path, heads=1, mamba=mamba, causal=True) if side.path else None

        def stack(layers: str, *, recalls: bool = False) -> Stack:
            return Stack(
                layers,
                causal.width,
                heads=causal.heads,
                mamba=mamba,
                causal=True,
                window=causal.window,
                value_width=values,
                recalls=recalls,
            )

        self.encoder = stack(causal.encoder_layers)
        self.decoder = stack(causal.decoder_layers, recalls=causal.cut_off)
        innermost = level + 1 == len(config.causal)
        fewest = min(causal.extra_first or causal.extra, causal.extra)
        forced = frames * causal.frame_boundary
        inside = (forced + causal.extra, forced + fewest)
        frames_inside = self._frames_inside(causal.extra, tokens[0], frames)
        self.inner: CausalStage | MainNetwork = (
            MainNetwork(config, latent_width)
            if innermost
            else CausalStage(config, latent_width, inside, frames_inside, level + 1)
        )
        self.recall = nn.Linear(self.inner.width - causal.width, causal.width, bias=False) if causal.cut_off else None
        self.residual = None if causal.residual == "none" else Residual(causal, mamba)
        self.embed_length = nn.Parameter(torch.zeros(LONGEST + 1, causal.width)) if causal.lengths else None
        self.router = None
        if causal.extra > 0:
            if max(causal.extra, causal.extra_first) >= (free := min(tokens) - forced):
                raise ValueError(
                    f"causal.{level}.extra={max(causal.extra, causal.extra_first):g} is too many: of a frame {free:g} "
                    f"tokens reach that stage{' beside F_t' * self.frame_boundary}, and fewer should start a chunk"
                )
            for name, mean in (("extra", causal.extra), ("extra_first", causal.extra_first)):
                if mean > causal.max_extra:
                    raise ValueError(
                        f"causal.{level}.{name}={mean:g} is the mean of what causal.{level}.max_extra="
                        f"{causal.max_extra} caps: raise the cap"
                    )
            self.router = Router(causal.width, rate=causal.extra / (tokens[0] - forced))
        self.smoothed_width = self.inner.width if causal.cut_off else causal.width
        self.inner_names = tuple(self.inner.initial_memory(1))

    def _frames_inside(self, extra: float, tokens: float, frames: float) -> float:
        """F_t of a frame that reach what is inside: all that come here, or as many of them as of other tokens."""
        return frames if self.frame_boundary else frames * extra / tokens

    def anneal(self, progress: float, tokens: float, frames: float = 1.0) -> None:
        """Set the routers' rates to where they stand, for so many `tokens` a frame; see `WorldModel.anneal`."""
        extra, forced = 0.0, frames * self.frame_boundary
        if self.router is not None:
            extra = on_the_way(self.config.extra_first, self.config.extra, progress, depth=1 + self.level)
            self.router.aim(extra / (tokens - forced))
        if isinstance(self.inner, CausalStage):
            self.inner.anneal(progress, forced + extra, self._frames_inside(extra, tokens, frames))

    # ---- whole rows -----------------------------------------------------------------------------------------------

    def forward(self, x_BLd: Tensor, side: Side, marks: Marks) -> tuple[Tensor, Said]:
        """Run whole rows.

        Args:
            x_BLd: tokens of the width around.
            side: what comes with them.
            marks: which of them are what.

        Returns:
            `y_BLD`, and what there is to say beside it.
        """
        h = self.encoder(self.widen(x_BLd, side.action, side.path), marks.reset, values=side.values)
        path = None
        if self.path is not None:
            path = self.path(side.path if self.path_in is None else self.path_in(x_BLd).to(h.dtype), marks.reset)
        forced = marks.is_frame if self.frame_boundary else marks.reset
        boundary, p, certainty = forced & marks.present, forced.float(), None
        if self.router is not None:
            routing = self.router(h, (marks.present & ~forced).float(), marks.present.float())
            extra = routing.boundary & ~forced & marks.present
            boundary = boundary | (extra & (_earlier_in_frame(extra, side.frame, marks.reset) < self.max_extra))
            p = torch.where(forced, 1.0, routing.probability)
            certainty = routing.certainty.masked_fill(marks.reset, 0.0)  # there is nothing before it

        index, kept = compact(boundary)
        chosen = side.take(
            index,
            path=None if path is None else take(path, index),
            certainty=None if certainty is None else certainty.gather(1, index),
        )
        inner = marks.take(index, kept)
        started = take(h, index)
        if self.embed_length is not None:
            length = F.pad(index[:, 1:] - index[:, :-1], (1, 0)).masked_fill(inner.reset, 0)
            started = started + self.embed_length[length.clamp(0, LONGEST)]
        z, said = self.inner(started, chosen, inner)
        if self.router is not None:
            said.routing = {self.name: routing} | said.routing
        z = z[..., : self.smoothed_width]
        if self.router is not None:
            z, _ = ema_scan(z, p.gather(1, index) * kept)
        up = spread(z, boundary)
        if self.router is not None:
            up = up * straight_through(p, boundary).unsqueeze(-1)
        residual = None if self.residual is None else self.residual(h, marks.reset)
        narrow, x0 = self._narrow(up, residual)
        return self.decoder(narrow, marks.reset, values=side.values, x0=x0), said

    def _narrow(self, up: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Narrowed by cutting off, as in H-Net, and joined with the residual; what was cut off, made as wide."""
        x0 = None if self.recall is None else self.recall(up[..., self.width :])
        up = up[..., : self.width]
        return up if residual is None else up + residual, x0

    # ---- one token at a time --------------------------------------------------------------------------------------

    def initial_memory(self, batch: int) -> Memory:
        """Zeros for everything that a row remembers."""
        name, parameter = self.name, self.widen.rest
        memory = self.encoder.initial_memory(batch, f"{name}.encoder")
        memory |= self.inner.initial_memory(batch)
        memory |= self.decoder.initial_memory(batch, f"{name}.decoder")
        if self.path is not None:
            memory |= self.path.initial_memory(batch, f"{name}.path")
        if self.residual is not None:
            memory |= self.residual.initial_memory(batch, f"{name}.residual")
        memory[f"{name}.smoothed"] = parameter.new_zeros(batch, self.smoothed_width)  # what the inside last said
        counters = ["count"]
        if self.router is not None:
            memory[f"{name}.encoded"] = parameter.new_zeros(batch, self.width)  # it compares with the token before
            counters += ["extra", "frame"]
        if self.embed_length is not None:
            counters += ["begun"]
        for counter in counters:
            memory[f"{name}.{counter}"] = torch.zeros(batch, dtype=torch.int64, device=parameter.device)
        return memory

    def step(
        self, x_Bd: Tensor, side: Side, memory: Memory, active_B: Tensor | None = None, *, frame: bool, own: bool
    ) -> Tensor:
        """One token for every row.

        Args:
            x_Bd: the tokens, of the width around.
            side: what comes with them.
            memory: entries are replaced.
            active_B: False in rows that have no such token; their memory stays, and their y is anything.
            frame: whether the tokens are F_t.
            own: whether the tensors in `memory` belong to nobody else and may be written to. F_t makes new ones in
                their place, the tokens behind it write into those.

        Returns:
            `y_BD`.
        """
        name = self.name
        count = memory[f"{name}.count"]
        wide = self.widen(x_Bd, side.action, side.path)
        h = self.encoder.step(wide, memory, f"{name}.encoder", count, active_B, in_place=own, values=side.values)
        path = None
        if self.path is not None:
            path_in = side.path if self.path_in is None else self.path_in(x_Bd).to(h.dtype)
            assert path_in is not None
            path = self.path.step(path_in, memory, f"{name}.path", count, active_B, in_place=own)
        if frame and self.frame_boundary:
            certainty = None if self.router is None else self._certainty_step(self.router, h, side, memory, active_B)
            z = self._inside(h, side, path, certainty, memory, active_B, frame=True, own=own)
            smoothed = memory[f"{name}.smoothed"]
            memory[f"{name}.smoothed"] = z if active_B is None else where_rows(active_B, z, smoothed)
        elif self.router is not None:
            self._route_step(self.router, h, side, path, memory, active_B, frame=frame, own=own)
        residual = None
        if self.residual is not None:
            residual = self.residual.step(h, memory, f"{name}.residual", count, active_B, in_place=own)
        narrow, x0 = self._narrow(memory[f"{name}.smoothed"], residual)
        y = self.decoder.step(
            narrow, memory, f"{name}.decoder", count, active_B, in_place=own, values=side.values, x0=x0
        )
        if self.router is not None:
            encoded = memory[f"{name}.encoded"]
            memory[f"{name}.encoded"] = h if active_B is None else where_rows(active_B, h, encoded)
        memory[f"{name}.count"] = count + (1 if active_B is None else active_B)
        return y

    def extend(self, x_BLd: Tensor, side: Side, memory: Memory, valid_BK: Tensor | None = None) -> Tensor:
        """A frame whose chunks are known: F_t and all of them.

        Args:
            x_BLd: its `1 + K` tokens.
            side: of the frame, as for one token; only its values are those of each token, `(B, 1 + K, S)`.
            memory: entries are replaced; the tensors themselves are left alone.
            valid_BK: which chunks there are, None for all.

        Returns:
            y at every token, `(B, 1 + K, D)`; where there is no chunk, y of the last one.
        """
        name, L = self.name, x_BLd.shape[1]
        tokens = [replace(side, values=None if side.values is None else side.values[:, i]) for i in range(L)]
        if self.router is not None or valid_BK is not None:
            said = [self.step(x_BLd[:, 0], tokens[0], memory, frame=True, own=False)]
            for i in range(1, L):
                active = None if valid_BK is None else valid_BK[:, i - 1]
                y = self.step(x_BLd[:, i], tokens[i], memory, active, frame=False, own=True)
                said.append(y if active is None else where_rows(active, y, said[-1]))
            return torch.stack(said, dim=1)
        count = memory[f"{name}.count"]
        wide = self.widen(x_BLd, side.action.unsqueeze(1))
        h = self.encoder.extend(wide, memory, f"{name}.encoder", count, values=side.values)
        path = None
        if self.path is not None and self.path_in is not None:
            path = self.path.extend(self.path_in(x_BLd).to(h.dtype), memory, f"{name}.path", count)[:, 0]
        z = self._inside(h[:, 0], tokens[0], path, None, memory, None, frame=True, own=False)
        memory[f"{name}.smoothed"] = z
        memory[f"{name}.count"] = count + L
        residual = None if self.residual is None else self.residual.extend(h, memory, f"{name}.residual", count)
        narrow, x0 = self._narrow(z.unsqueeze(1), residual)
        narrow = narrow.expand(-1, L, -1)
        return self.decoder.extend(narrow, memory, f"{name}.decoder", count, values=side.values, x0=x0)

    def _inside(
        self,
        h: Tensor,
        side: Side,
        path: Tensor | None,
        certainty: Tensor | None,
        memory: Memory,
        active_B: Tensor | None,
        *,
        frame: bool,
        own: bool,
    ) -> Tensor:
        """What is inside, run on a token that starts a chunk."""
        if self.embed_length is not None:
            count, begun = memory[f"{self.name}.count"], memory[f"{self.name}.begun"]
            h = h + self.embed_length[(count - begun).clamp(max=LONGEST)]
            memory[f"{self.name}.begun"] = count if active_B is None else torch.where(active_B, count, begun)
        chosen = Side(side.action, side.frame, side.values, path, certainty)
        return self.inner.step(h, chosen, memory, active_B, frame=frame, own=own)[..., : self.smoothed_width]

    def _certainty_step(self, router: Router, h: Tensor, side: Side, memory: Memory, active_B: Tensor | None) -> Tensor:
        """At a forced F_t: what the router would have said. Its frame begins with no extra chunks."""
        extra, frame = memory[f"{self.name}.extra"], memory[f"{self.name}.frame"]
        memory[f"{self.name}.extra"] = torch.zeros_like(extra) if active_B is None else extra.masked_fill(active_B, 0)
        memory[f"{self.name}.frame"] = side.frame if active_B is None else torch.where(active_B, side.frame, frame)
        fresh = memory[f"{self.name}.count"] == 0
        return router.probability(memory[f"{self.name}.encoded"], h).masked_fill(fresh, 0.0)

    def _route_step(
        self,
        router: Router,
        h: Tensor,
        side: Side,
        path: Tensor | None,
        memory: Memory,
        active_B: Tensor | None,
        *,
        frame: bool,
        own: bool,
    ) -> None:
        """Run what is inside in those rows whose token starts a chunk, as the router or the beginning has it."""
        name = self.name
        p = router.probability(memory[f"{name}.encoded"], h)
        extra, before = memory[f"{name}.extra"], memory[f"{name}.frame"]
        extra = extra.masked_fill(side.frame != before, 0)
        wanted, boundary, certainty = p > 0.5, p > 0.5, p
        if frame:  # and not forced, but for the first of a piece
            fresh = memory[f"{name}.count"] == 0
            wanted, p, certainty = wanted & ~fresh, p.masked_fill(fresh, 1.0), p.masked_fill(fresh, 0.0)
            boundary = wanted & (extra < self.max_extra) | fresh
        else:
            boundary = wanted & (extra < self.max_extra)
        if active_B is not None:
            wanted, boundary = wanted & active_B, boundary & active_B
            memory[f"{name}.frame"] = torch.where(active_B, side.frame, before)
            extra = torch.where(active_B, extra, memory[f"{name}.extra"])
        else:
            memory[f"{name}.frame"] = side.frame
        memory[f"{name}.extra"] = extra + wanted  # counts refused ones too, as the whole-row pass does
        if not own:  # the tokens behind this one will write into what is inside, whether it runs now or not
            memory.update({entry: memory[entry].clone() for entry in self.inner_names})
        if not boundary.any():
            return
        z = self._inside(h, side, path, certainty, memory, boundary, frame=frame, own=True)
        share = (p * boundary).unsqueeze(-1)
        memory[f"{name}.smoothed"] = torch.lerp(memory[f"{name}.smoothed"], z, share)


def _earlier_in_frame(extra_BL: Tensor, frame_BL: Tensor, reset_BL: Tensor) -> Tensor:
    """How many extra boundaries came before each token in its own frame; looks back only."""
    before = extra_BL.long().cumsum(1) - extra_BL.long()
    begins = F.pad(frame_BL[:, 1:] != frame_BL[:, :-1], (1, 0), value=True) | reset_BL
    return before - torch.where(begins, before, 0).cummax(1).values


def where_rows(mask_B: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Rows of `yes` where the mask is True, of `no` elsewhere, whatever comes behind the batch axis."""
    return torch.where(mask_B.view(-1, *[1] * (yes.dim() - 1)), yes, no)
