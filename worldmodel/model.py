"""The world model: an H-Net over frames and actions.

    frame ─ frame stage ─ chunks ─ latents ─┐                          ┌─ next chunk's start and latent
                                            ├─ tokens ─ causal stage ─ y ─ reward, termination (at a frame's last token)
    action ──────── side vectors ───────────┘                          └─ past of the frame decoder ─ frame

`forward` runs whole segments for training; `observe` and `imagine` go one frame at a time on a `DreamState`. All three
share the same parts and give the same numbers. An agent sees `feature`: y of the frame's last token beside the mean of
its chunks, from the posterior where frames are seen and from the prior where they are dreamed; and the time, if rewards
depend on it: who does not know how late it is takes the pay of a late end for a mistake.

Shape suffixes: B rows, T frames, K chunks of the fullest frame, L tokens of the longest row, U distinct frames,
P patches, D width d0, E width d1, Z latent width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worldmodel.batch import Batch
from worldmodel.causal import CausalStage, where_rows
from worldmodel.chunks import Chunks
from worldmodel.clock import SCALES
from worldmodel.config import ModelConfig
from worldmodel.draws import Draws, frame_draws
from worldmodel.frames import FrameStage
from worldmodel.grow import grown_config, start_outermost
from worldmodel.heads import ChunkPrior, Outcome
from worldmodel.kernels import noise
from worldmodel.latents import make_latent, partly_forgotten
from worldmodel.layers import Memory
from worldmodel.layout import Layout
from worldmodel.loops import LoopedCore
from worldmodel.outputs import Pass, StepOutput
from worldmodel.seeing import check_frames, initial_sight, look_away, see_rows, see_step
from worldmodel.side import action_vector
from worldmodel.state import DreamState
from worldmodel.tokens import Contents, Marks, Side, lengths_before, number_frames

# Streams of a row's noise; what a step draws at once is stream 0.
CHANGES = 1  # which patches change
REALIGN = 2  # what a dreamed frame is seen with


class WorldModel(nn.Module):
    """See the module's docstring. Build one with `WorldModel(preset("tiny", observation, action))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d1 = config.causal[0].width
        self.latent = make_latent(config.latent)
        self.frame_stage = FrameStage(config, self.latent)
        P = self.frame_stage.patches.count
        self.contents = Contents(config, P, self.latent.width)
        end, fewest = (1 + chunks for chunks in self.frame_stage.cutting.wanted)
        self.causal_stage = CausalStage(config, self.latent.width, (end, fewest))
        changes = config.time.changes if config.time.layers else 0.0
        part = self.frame_stage.patches.part
        self.prior = ChunkPrior(d1, part, self.latent.parameters, starts=self.predicts_starts, rate=changes)
        self.outcome = Outcome(d1, clock=config.outcome.clock)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.contents.start.device

    @property
    def feature_width(self) -> int:
        """Entries of `feature`: d1 + d0, and the clock's hands."""
        return self.config.causal[0].width + self.config.frame.width + len(SCALES) * self.config.outcome.clock

    @property
    def fixed_starts(self) -> bool:
        """True where all frames have the same chunks, so that nothing is routed and no start is generated."""
        return self.frame_stage.cutting.router is None and self.frame_stage.time is None

    @property
    def predicts_starts(self) -> bool:
        """True where a dream has to say where chunks start: not at a fixed stride, of all patches or of new ones."""
        return self.frame_stage.cutting.router is not None

    @property
    def core(self) -> LoopedCore | None:
        """The looped core of the main network, if it has one."""
        inner = self.causal_stage.inner
        while isinstance(inner, CausalStage):
            inner = inner.inner
        return inner.core

    def set_loops(self, loops: float | None) -> None:
        """Choose how often the core runs outside of training; None is what the config says.

        Raises:
            ValueError: the model has no looped core, or that is less than 1 or more than `max_loops`.
        """
        if self.core is None:
            raise ValueError("this model has no looped core: main.loop.layers of its config is empty")
        self.core.set_loops(loops)

    def anneal(self, *, frames: float, causal: float) -> None:
        """Set what the routers aim at, on its way from `chunks_first`, `changes_first` and `extra_first` to the end.

        Args:
            frames: 0 at the first targets of the chunks, 1 and more where they have arrived.
            causal: the same of changes in time and of the causal stages; deeper ones arrive earlier (`on_the_way`).
        """
        if self.frame_stage.time is not None:
            self.frame_stage.time.anneal(causal)
        self.causal_stage.anneal(causal, 1 + self.frame_stage.cutting.anneal(frames))

    def grow(self) -> WorldModel:
        """A new model of images twice as high and wide, which says of them what this one says of them at half the size.

        Raises:
            ValueError: observations are no images.
        """
        grown = WorldModel(grown_config(self.config)).to(self.device).train(self.training)
        grown.load_state_dict(self.state_dict(), strict=False)
        grown.anneal(frames=1.0, causal=1.0)
        if grown.frame_stage.cutting.router is not None:
            grown.frame_stage.cutting.hold_stride(False)  # nobody would hand over to the router any more
        start_outermost(grown.frame_stage)
        return grown

    # ---- whole segments -------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, key: Tensor, *, packed: bool = False) -> Pass:
        """Run segments with their true frames.

        Args:
            batch: the segments.
            key: `(B,)` int64 noise key of each row; the same key and frames give the latents that `observe` samples.
            packed: whether all rows go through the causal stage as one long row without pads: the same numbers, no
                work on pads, but a scan that is as long as all rows together.
        """
        B, T = batch.index.shape
        if self.training and self.outcome.clock is not None:
            self.outcome.clock.fit(batch.elapsed, batch.reward, ~batch.start)
        action = action_vector(batch.action, batch.first, self.config.action)
        seen = see_rows(self.frame_stage, batch, action, key[0])
        chunks = seen.chunks.rows(seen.index.flatten())
        K = chunks.start.shape[1]
        start, valid = chunks.start.view(B, T, K), chunks.valid.view(B, T, K)
        posterior = seen.posterior[seen.index]

        draws = frame_draws(key[:, None], torch.arange(T, device=key.device), K, self.latent.draws)
        latent = self.latent.infer(posterior, draws.latent)
        # The code answers to the painter alone. Let into the encoder, the wish to be foretold makes it poor and sure of
        # itself before it has learned to tell a key from the floor.
        code = latent.detach()
        if self.training and self.config.latent.forget:
            code = partly_forgotten(code, self.config.latent, key)
        changed = None if seen.changed is None else seen.changed.unsqueeze(2)
        tokens = self.contents.tokens(self.contents.chunks(code, start), lengths_before(start, valid), changed)

        used = torch.cat([torch.ones_like(valid[..., :1]), valid], dim=2).flatten(1)
        layout = Layout(used, "dense" if self.fixed_starts and not packed else "packed" if packed else "padded")
        slots = torch.cat([self.contents.frames(action).unsqueeze(2), tokens], dim=2).flatten(1, 2)
        action = action.unsqueeze(2).expand(-1, -1, 1 + K, -1).flatten(1, 2)
        is_frame = torch.zeros(B, T, 1 + K, dtype=torch.bool, device=key.device)
        is_frame[:, :, 0] = True
        reset = is_frame & batch.start.unsqueeze(-1)
        reset[:, 0, 0] = True  # a row begins with nothing behind it, whatever layout it has
        is_frame, reset = (layout.lay(flag.flatten(1)) & layout.present for flag in (is_frame, reset))
        values = None
        if self.config.side.values:
            nothing = code.new_zeros(B, T, 1, code.shape[-1])
            values = layout.lay(torch.cat([torch.cat([nothing, code], dim=2).flatten(1, 2), action], dim=-1))
        side = Side(layout.lay(action), number_frames(is_frame, reset), values)
        place = torch.arange(slots.shape[1], device=key.device).expand(B, -1)
        keys = key[:, None].expand(B, slots.shape[1])
        marks = Marks(is_frame, reset, layout.present, layout.lay(keys), layout.lay(place))
        y, said = self.causal_stage(layout.lay(slots), side, marks)
        y = layout.back(y)
        y = y.view(B, T, 1 + K, -1)
        y_last = y.gather(2, valid.sum(2)[..., None, None].expand(-1, -1, 1, y.shape[-1])).squeeze(2)
        return Pass(seen, chunks, posterior, latent, y, y_last, seen.routing | said.routing, said.loops)

    # ---- one frame at a time --------------------------------------------------------------------------------------

    @torch.no_grad()
    def initial_state(self, batch_size: int, seed: int | Tensor = 0, elapsed: Tensor | None = None) -> DreamState:
        """A state that remembers nothing.

        Args:
            batch_size: B.
            seed: of the noise. A number gives every row its own key; a tensor `(B,)` int64 is taken as the keys.
            elapsed: `(B,)` int64, actions that led to the next frame since its episode began; none if not given.
        """
        rows = torch.arange(batch_size, device=self.device)
        keys = seed.to(rows).clone() if isinstance(seed, Tensor) else (rows << 32) + seed
        memory = self._forgotten(batch_size)
        memory["key"], memory["step"] = keys, torch.zeros_like(keys)
        memory["feature"] = self.contents.start.new_zeros(batch_size, self.feature_width)
        if elapsed is not None:
            memory["elapsed"] = elapsed.to(rows) - 1
        return DreamState(memory)

    def _forgotten(self, batch: int) -> Memory:
        """What rows remember when they begin an episode."""
        frames = torch.zeros(batch, dtype=torch.int64, device=self.device)
        counters = {"frames": frames, "elapsed": frames - 1}
        return self.causal_stage.initial_memory(batch) | initial_sight(self.frame_stage, batch) | counters

    @torch.no_grad()
    def observe(
        self, state: DreamState, action: Tensor | None, frame: Tensor, first: Tensor
    ) -> tuple[DreamState, StepOutput]:
        """Take in a true frame.

        Args:
            state: what the rows remember.
            action: `(B, *action shape)` that led to the frame; ignored where `first`, None if that is everywhere.
            frame: `(B, *observation shape)` in the observation's dtype.
            first: `(B,)` bool, rows that begin an episode: they forget everything before. A state that begins in
                mid-episode should have been told how late it is, see `initial_state`.

        Returns:
            The new state and the frame's output; reward and termination are what the model makes of the frame.

        Raises:
            ValueError: the frame has another shape or dtype, there is no action where one is needed, or no row at all.
        """
        B = state.batch_size
        check_frames(frame, B, self.config.observation)
        first = first.to(self.device)
        memory = dict(state.tensors)
        if first.any():
            fresh = self._forgotten(B)
            memory |= {name: where_rows(first, fresh[name], memory[name]) for name in fresh}
        if action is None:
            if not first.all():
                raise ValueError("observe needs the action that led to the frame, but for rows that begin an episode")
            action = torch.zeros(B, *self.config.action.shape, device=self.device)
        vector = action_vector(action.to(self.device), first, self.config.action)
        return self._see(memory, vector, *see_step(self.frame_stage, frame, vector, memory))

    @torch.no_grad()
    def imagine(self, state: DreamState, action: Tensor, *, greedy: bool = False) -> tuple[DreamState, StepOutput]:
        """Dream the next frame.

        Args:
            state: what the rows remember.
            action: `(B, *action shape)` taken at the last frame.
            greedy: take the most likely starts, latents and events instead of sampling them.
        """
        none = torch.zeros(state.batch_size, dtype=torch.bool, device=self.device)
        vector = action_vector(action.to(self.device), none, self.config.action)
        return self._dream(dict(state.tensors), vector, greedy)

    def _see(
        self, memory: Memory, action: Tensor, chunks: Chunks, posterior: Tensor, changed: Tensor | None
    ) -> tuple[DreamState, StepOutput]:
        """A frame whose chunks are known: all of its tokens at once."""
        draws = frame_draws(memory["key"], memory["step"], posterior.shape[1], self.latent.draws)
        latent = self.latent.infer(posterior, draws.latent)
        content = self.contents.chunks(latent, chunks.start)
        length = lengths_before(chunks.start, chunks.valid)
        tokens = self.contents.tokens(content, length, None if changed is None else changed.unsqueeze(1))
        tokens = torch.cat([self.contents.frames(action).unsqueeze(1), tokens], dim=1)
        stage, side = _of_the_stage(memory), Side(action, memory["frames"] + 1)
        if self.config.side.values:
            said = torch.cat([torch.zeros_like(latent[:, :1]), latent], dim=1)
            side.values = torch.cat([said, action.unsqueeze(1).expand(-1, said.shape[1], -1)], dim=-1)
        y = self.causal_stage.extend(tokens, side, stage, None if self.fixed_starts else chunks.valid)
        start = torch.where(chunks.valid, chunks.start, -1)
        entropy = torch.zeros(len(y), device=self.device)
        memory |= stage
        self._fill_canvas(memory, latent, y[:, :-1], chunks)
        return self._output(memory, draws, y[:, -1], start, content, entropy, latent, y[:, :-1], False)

    def _dream(self, memory: Memory, action: Tensor, greedy: bool) -> tuple[DreamState, StepOutput]:
        """F_t, then chunk after chunk, each drawn from what y says."""
        B, P, cutting = len(action), self.prior.patches, self.frame_stage.cutting
        draws = frame_draws(memory["key"], memory["step"], cutting.max_chunks, self.latent.draws)
        stage, side = _of_the_stage(memory), Side(action, memory["frames"] + 1)
        if self.config.side.values:
            side.values = torch.cat([action.new_zeros(B, self.latent.width), action], dim=-1)
        y = self.causal_stage.step(self.contents.frames(action), side, stage, frame=True, own=False)
        last = torch.full((B,), -1, device=self.device)
        entropy = torch.zeros(B, device=self.device)
        changed = None
        if self.frame_stage.time is not None:
            word = noise.row_hash(memory["key"], memory["step"], CHANGES)
            changed = self.prior.draw_changes(y, None if greedy else noise.uniform(word, P))
        known = cutting.known_starts(B, changed)
        latents, contents, pasts, starts = [], [], [], []
        for k in range(cutting.max_chunks):
            if known is not None:
                start = known[:, k]
            else:
                uniform = None if greedy else draws.start[:, k]
                start, doubt = self.prior.draw_start(y, last, uniform, changed, cutting.max_chunks - k)
                entropy = entropy + doubt
            active = start < P
            everyone = self.fixed_starts or bool(active.all())
            if k and not everyone and not active.any():
                break
            start = torch.where(active, start, 0)
            parameters = self.prior(y, start, changed)
            z = self.latent.mode(parameters) if greedy else self.latent.sample(parameters, draws.latent[:, k])
            content = self.contents.chunks(z, start)
            length = (start - last) * active if k else torch.zeros_like(start)
            latents.append(z)
            contents.append(content)
            pasts.append(y)
            starts.append(torch.where(active, start, -1))
            if self.config.side.values:
                side.values = torch.cat([z, action], dim=-1)
            token = self.contents.tokens(content, length, changed)
            said = self.causal_stage.step(token, side, stage, None if everyone else active, frame=False, own=True)
            if everyone:
                y, last = said, start
            else:
                # A row that has ended may only END again: nothing starts behind the last patch.
                y, last = where_rows(active, said, y), torch.where(active, start, P - 1)
        start, content, latent, past = (torch.stack(parts, 1) for parts in (starts, contents, latents, pasts))
        memory |= stage
        look_away(memory)
        if changed is not None:
            self._fill_canvas(memory, latent, past, Chunks.at(start.clamp(min=0), start >= 0, P, changed))
        return self._output(memory, draws, y, start, content, entropy, latent, past, greedy)

    def _fill_canvas(self, memory: Memory, latent: Tensor, past: Tensor, chunks: Chunks) -> None:
        """Where patches are followed through time, put what the painter reads of those that are new before it."""
        if (before := memory.get("seen.canvas")) is None:
            return
        new = self.frame_stage.code.tell(latent, past)
        index = chunks.of_patch.clamp(min=0).unsqueeze(-1).expand(-1, -1, new.shape[-1])
        memory["seen.canvas"] = torch.where((chunks.of_patch >= 0).unsqueeze(-1), new.gather(1, index), before)

    def _output(
        self,
        memory: Memory,
        draws: Draws,
        y: Tensor,
        start: Tensor,
        content: Tensor,
        entropy: Tensor,
        latent: Tensor,
        past: Tensor,
        greedy: bool,
    ) -> tuple[DreamState, StepOutput]:
        """What a frame came to, from y of its last token and from its chunks; starts are -1 where there is none."""
        valid = (start >= 0).unsqueeze(-1)
        count = valid.sum(1)
        counters = {name: memory[name] + 1 for name in ("step", "frames", "elapsed")}
        told = [y, (content * valid).sum(1) / count.clamp(min=1)]
        if self.outcome.clock is not None:
            told.append(self.outcome.clock.hands(counters["elapsed"]).to(y.dtype))
        feature = torch.cat(told, dim=-1)
        outcome = self.outcome.draw(y, counters["elapsed"], None if greedy else draws)
        state = DreamState(memory | counters | {"feature": feature})
        return state, StepOutput(
            feature, *outcome, count[:, 0], start, entropy, latent, past, memory.get("seen.canvas")
        )

    @torch.no_grad()
    def decode(self, output: StepOutput) -> Tensor:
        """The frames of `observe` or `imagine`: `(B, *observation shape)` in the observation's dtype."""
        if output.canvas is not None:
            return self.frame_stage.patches.inverse(self.frame_stage.paint_canvas(output.canvas, None))
        start = output.starts
        chunks = Chunks.at(start.clamp(min=0), start >= 0, self.frame_stage.patches.count)
        return self.frame_stage.patches.inverse(self.frame_stage.decode(output.latent, output.past, chunks))

    @torch.no_grad()
    def realign(self, before: DreamState, action: Tensor, output: StepOutput) -> tuple[DreamState, StepOutput]:
        """Show the model the frame that it dreamed: what it remembers is then what its encoder makes of its picture.

        A sampled code need not be one that the encoder would ever give. The dreamed tokens are dropped, the painted
        frame is taken in as a true one would be.

        Args:
            before: the state that `imagine` was given, which does not know of the frame.
            action: `(B, *action shape)` that `imagine` was given.
            output: what `imagine` returned.

        Returns:
            The state in place of the one that `imagine` returned, and the output with its feature. The frame, its
            reward and whether it is terminal stay as they were dreamed.
        """
        key, step = before.tensors["key"], before.tensors["step"]
        # Numbers of its own: those of the dreamed latents are already in the picture.
        aside = DreamState(before.tensors | {"key": noise.row_hash(key, step, REALIGN)})
        state, _ = self.observe(aside, action, self.decode(output), torch.zeros_like(key, dtype=torch.bool))
        return DreamState(state.tensors | {"key": key}), replace(output, feature=state.feature)


def _of_the_stage(memory: Memory) -> Memory:
    """The causal stages' part of a state: they know nothing of keys and features."""
    return {name: value for name, value in memory.items() if "." in name}
