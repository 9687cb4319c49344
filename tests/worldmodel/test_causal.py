"""The causal stage by itself, token by token: nothing looks ahead, in any part of it, and steps are the row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, EXTRA, LEARNED, STRIDE, random_batch, random_model

from worldmodel.causal import CausalStage
from worldmodel.layers import Memory
from worldmodel.model import WorldModel
from worldmodel.router import Router
from worldmodel.side import Widening
from worldmodel.tokens import Marks, Side, number_frames

NAMES = [
    "stride",
    "learned",
    "extra",
    "stride_extra",
    "vector_learned",
    "deep",
    "merging",
    "told",
    "bare",
    "added",
    "token",
]
every_stage = pytest.mark.parametrize("name", NAMES)


def stage_of(name: str, push: float = 0.0) -> CausalStage:
    """A stage in which everything matters; `push` makes its router want more (or fewer) boundaries."""
    stage = random_model(CONFIGS[name]).causal_stage
    for module in stage.modules():
        if isinstance(module, Router):
            module.logit_tau -= push
    return stage


class Tokens:
    """Rows of tokens with their own numbers of chunks a frame, pads on the right, and rows that restart."""

    def __init__(self, stage: CausalStage, action_width: int, seed: int = 0, frames: int = 6) -> None:
        g = torch.Generator().manual_seed(seed)
        rows = []
        for b in range(3):
            row = []
            for t in range(frames):
                restart = t == 0 or (b == 1 and t == 3) or (b == 2 and t in (2, 4))
                chunks = int(torch.randint(1, 5, (), generator=g))
                row += [(True, restart, t)] + [(False, False, t)] * chunks
            rows.append(row)
        self.length = max(map(len, rows))
        self.valid, self.is_frame, self.reset = (torch.zeros(3, self.length, dtype=torch.bool) for _ in range(3))
        actions = torch.randn(3, frames, action_width, generator=g)
        self.action = torch.zeros(3, self.length, action_width)
        self.frame_of = torch.full((3, self.length), -1)
        for b, row in enumerate(rows):
            for i, (is_frame, restart, t) in enumerate(row):
                self.valid[b, i], self.is_frame[b, i], self.reset[b, i] = True, is_frame, restart
                self.action[b, i], self.frame_of[b, i] = actions[b, t], t
        self.number = number_frames(self.is_frame, self.reset)
        self.content = torch.randn(3, self.length, STRIDE.frame.width, generator=g)
        self.values = torch.randn(3, self.length, 12 + action_width, generator=g)

    @torch.no_grad()
    def run(self, stage: CausalStage, content: torch.Tensor | None = None, action: torch.Tensor | None = None):
        side = Side(self.action if action is None else action, self.number, self.values)
        place = torch.arange(self.length).expand(3, -1)
        marks = Marks(self.is_frame, self.reset, self.valid, torch.arange(3)[:, None].expand(3, self.length), place)
        y, said = stage(self.content if content is None else content, side, marks)
        return y, said.routing

    def step(self, stage: CausalStage, rows: slice, i: int, memory: Memory, active: torch.Tensor | None = None):
        """Token `i` of some rows; a frame's later tokens take its action and number."""
        side = Side(self.action[rows, i], self.number[rows, i], self.values[rows, i])
        frame = bool(self.is_frame[rows, i].all())
        return stage.step(self.content[rows, i], side, memory, active, frame=frame, own=not frame)

    def chunk(self, stage: CausalStage, rows: slice, i: int, memory: Memory, active: torch.Tensor | None = None):
        """The content of token `i` as a chunk of the first frame, whatever it is in its row."""
        side = Side(self.action[rows, 0], self.number[rows, 0], self.values[rows, i])
        return stage.step(self.content[rows, i], side, memory, active, frame=False, own=True)


def tokens_for(name: str, stage: CausalStage, seed: int = 0) -> Tokens:
    return Tokens(stage, CONFIGS[name].action.width + 1, seed)


@torch.no_grad()
def step_row(stage: CausalStage, tokens: Tokens, b: int) -> torch.Tensor:
    memory: Memory = stage.initial_memory(1)
    out = []
    for i in range(int(tokens.valid[b].sum())):
        if tokens.reset[b, i]:
            memory = stage.initial_memory(1)
        out.append(tokens.step(stage, slice(b, b + 1), i, memory)[0])
    return torch.stack(out)


@every_stage
@pytest.mark.parametrize("push", [0.0, 2.0, -2.0])
def test_every_token_of_a_row_is_its_step(name: str, push: float) -> None:
    stage = stage_of(name, push)
    tokens = tokens_for(name, stage)
    y, _ = tokens.run(stage)
    for b in range(3):
        torch.testing.assert_close(step_row(stage, tokens, b), y[b, tokens.valid[b]], atol=1e-4, rtol=1e-4)


@every_stage
def test_no_part_of_the_stage_looks_ahead(name: str) -> None:
    stage = stage_of(name)
    tokens = tokens_for(name, stage)
    said: dict[str, torch.Tensor] = {}
    for part in ("encoder", "decoder"):
        getattr(stage, part).register_forward_hook(lambda _m, _i, out, part=part: said.__setitem__(part, out))
    stage.inner.register_forward_hook(lambda _m, _i, out: said.__setitem__("inner", out[0]))
    y, routing = tokens.run(stage)
    before = {**said, "y": y}
    boundary = tokens.is_frame if CONFIGS[name].causal[0].frame_boundary else tokens.reset
    if "stage0" in routing:
        before["probability"] = routing["stage0"].probability
    for cut in range(1, tokens.length):
        content, action = tokens.content.clone(), tokens.action.clone()
        content[:, cut:] = torch.randn(content[:, cut:].shape)
        # A whole frame takes its action: the first frame that begins at the cut or behind it, if the row has one.
        begins = tokens.frame_of[:, cut : cut + 1] + (~tokens.is_frame[:, cut : cut + 1])
        action[tokens.frame_of >= torch.where(tokens.valid[:, cut : cut + 1], begins, 99)] += 1.0
        y, routing = tokens.run(stage, content, action)
        after = {**said, "y": y}
        if "stage0" in routing:
            after["probability"] = routing["stage0"].probability
        for part in ("encoder", "decoder", "y", "probability"):
            if part in before:
                torch.testing.assert_close(before[part][:, :cut], after[part][:, :cut], atol=2e-6, rtol=1e-5)
        for b in range(3):  # at least so many tokens inside
            n = int(boundary[b, :cut].sum())
            torch.testing.assert_close(before["inner"][b, :n], after["inner"][b, :n], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before["y"], after["y"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "token"])  # whose action is in the contents
def test_an_action_reaches_its_own_frame_token_and_no_earlier_one(name: str) -> None:
    stage = stage_of(name)
    tokens = tokens_for(name, stage)
    y, _ = tokens.run(stage)
    for t in range(6):
        action = tokens.action.clone()
        action[tokens.frame_of == t] += 1.0
        other, _ = tokens.run(stage, action=action)
        earlier = tokens.valid & (tokens.frame_of < t)
        torch.testing.assert_close(y[earlier], other[earlier], atol=1e-6, rtol=1e-6)
        here = tokens.is_frame & (tokens.frame_of == t)
        assert ((y - other).abs().amax(-1)[here] > 1e-5).all()


@pytest.mark.parametrize("name", ["stride", "learned", "extra", "deep", "added"])
def test_every_widening_takes_in_the_action_by_itself(name: str) -> None:
    """With all other side vectors silenced, one still carries it."""
    stage = stage_of(name)
    tokens = tokens_for(name, stage)
    widenings = [module for module in stage.modules() if isinstance(module, Widening)]
    assert len(widenings) == len(CONFIGS[name].causal) + 1
    weights = [widening.action.weight.detach().clone() for widening in widenings]
    for kept in range(len(widenings)):
        with torch.no_grad():
            for i, widening in enumerate(widenings):
                widening.action.weight.copy_(weights[i] if i == kept else torch.zeros_like(weights[i]))
        y, _ = tokens.run(stage)
        other, _ = tokens.run(stage, action=tokens.action + 1.0)
        assert ((y - other).abs().amax(-1)[tokens.is_frame] > 1e-6).all(), kept


@every_stage
def test_pads_move_nothing(name: str) -> None:
    stage = stage_of(name)
    tokens = tokens_for(name, stage)
    assert not tokens.valid.all()
    y, routing = tokens.run(stage)
    pads = ~tokens.valid
    other, other_routing = tokens.run(
        stage,
        tokens.content.masked_fill(pads.unsqueeze(-1), 1e3),
        tokens.action.masked_fill(pads.unsqueeze(-1), -1e3),
    )
    assert torch.equal(y[tokens.valid], other[tokens.valid])
    for level, said in routing.items():
        for label in ("hard_rate", "soft_rate", "ratio_loss"):
            assert torch.equal(getattr(said, label), getattr(other_routing[level], label))


@pytest.mark.parametrize("name", ["extra", "stride_extra"])
def test_pads_and_forced_boundaries_stay_out_of_the_routers_statistics(name: str) -> None:
    stage = stage_of(name)
    tokens = tokens_for(name, stage)
    stage.train()
    kept = []
    for filler in (0.0, 1e3):
        content = tokens.content.masked_fill(~tokens.valid.unsqueeze(-1), filler)
        routing = tokens.run(stage, content)[1]["stage0"]
        kept.append((stage.router.mean.clone(), stage.router.logit_tau.clone(), routing.hard_rate, routing.soft_rate))
        free = (tokens.valid & ~tokens.is_frame).float()
        torch.testing.assert_close(routing.hard_rate, (routing.boundary * free).sum() / free.sum())
        torch.testing.assert_close(routing.soft_rate, (routing.probability * free).sum() / free.sum())
    torch.testing.assert_close(*kept)


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_extra_boundaries_are_capped_frame_by_frame_without_looking_ahead(cap: int) -> None:
    config = replace(EXTRA, causal=(replace(EXTRA.causal[0], max_extra=cap),))
    stage = random_model(config).causal_stage
    stage.router.logit_tau -= 3.0
    tokens = Tokens(stage, config.action.width + 1)
    runs: list[int] = []
    stage.inner.register_forward_hook(lambda _m, args, _out: runs.append(args[0].shape[1]))
    y, routing = tokens.run(stage)
    wanted = routing["stage0"].boundary & ~tokens.is_frame & tokens.valid
    assert wanted.sum() > 30  # far more than may run
    fullest = 0
    for b in range(3):
        for t in range(6):
            runs_here = 1 + min(cap, int(wanted[b, tokens.frame_of[b] == t].sum()))
            assert runs_here <= 1 + cap
        fullest = max(fullest, sum(1 + min(cap, int(wanted[b, tokens.frame_of[b] == t].sum())) for t in range(6)))
    assert runs == [fullest]
    for b in range(3):
        torch.testing.assert_close(step_row(stage, tokens, b), y[b, tokens.valid[b]], atol=1e-4, rtol=1e-4)


def test_a_new_model_is_a_plain_h_net_in_which_actions_do_nothing_yet() -> None:
    torch.manual_seed(0)
    stage = WorldModel(LEARNED).eval().causal_stage
    tokens = Tokens(stage, LEARNED.action.width + 1)
    assert torch.equal(tokens.run(stage)[0], tokens.run(stage, action=tokens.action + 5.0)[0])
    assert (stage.residual.weight == 0).all()
    assert (stage.residual.bias == 0).all()


@pytest.mark.parametrize("shape", NAMES)
def test_rows_that_sit_a_token_out_keep_every_bit_and_the_others_go_on_alone(shape: str) -> None:
    """As a dream does with rows whose frame has ended."""
    stage = stage_of(shape, push=2.0)
    tokens = tokens_for(shape, stage)
    memory, alone = stage.initial_memory(3), stage.initial_memory(1)
    with torch.no_grad():
        tokens.step(stage, slice(3), 0, memory)
        tokens.step(stage, slice(1), 0, alone)
        for i in range(1, 4):
            kept = {label: value.clone() for label, value in memory.items()}
            active = torch.tensor([True, False, i == 1])
            y = tokens.chunk(stage, slice(3), i, memory, active)
            y_alone = tokens.chunk(stage, slice(1), i, alone)
            torch.testing.assert_close(y[:1], y_alone, rtol=1e-4, atol=1e-5)
            for label, value in memory.items():
                assert torch.equal(value[~active], kept[label][~active]), label
        assert memory["stage0.count"].tolist() == [4, 1, 2]
        for label, value in alone.items():
            torch.testing.assert_close(memory[label][:1], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", NAMES)
def test_a_frame_leaves_the_tensors_of_the_frame_before_alone(shape: str) -> None:
    stage = stage_of(shape, push=2.0)
    tokens = tokens_for(shape, stage)
    memory = stage.initial_memory(3)
    with torch.no_grad():
        for _ in range(2):
            before, kept = dict(memory), {label: value.clone() for label, value in memory.items()}
            tokens.step(stage, slice(3), 0, memory)
            for i in range(1, 4):
                tokens.chunk(stage, slice(3), i, memory)
            for label, value in before.items():
                assert torch.equal(value, kept[label]), label


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"width": 16}, "growing width"),
        ({"width": 17}, "growing width"),
        ({"extra": 4.0}, r"causal\.0\.extra=4 is too many: of a frame 4 tokens reach that stage beside F_t"),
        ({"extra": 1.0, "extra_first": 9.0}, "extra=9 is too many"),
        ({"extra": 5.0, "frame_boundary": False}, "of a frame 5 tokens reach that stage, and fewer"),
    ],
)
def test_widths_that_do_not_grow_and_too_many_chunks_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModel(replace(STRIDE, causal=(replace(STRIDE.causal[0], **changes),)))


def test_a_router_is_told_how_many_tokens_there_are_at_every_time() -> None:
    deep = replace(STRIDE.causal[0], extra=2.0)
    few = replace(STRIDE, frame=replace(STRIDE.frame, boundary="learned", chunks_first=2.0), causal=(deep,))
    with pytest.raises(ValueError, match="extra=2 is too many: of a frame 2 tokens reach that stage beside F_t"):
        WorldModel(few)  # in the end four do, but not while the target of the chunks moves
    inner = replace(deep, width=deep.width + 4, extra=1.0)
    with pytest.raises(ValueError, match=r"causal\.1\.extra=1 is too many: of a frame 0\.2 tokens"):
        WorldModel(replace(STRIDE, causal=(replace(deep, extra_first=0.2), inner)))
    model = WorldModel(replace(STRIDE, frame=replace(STRIDE.frame, boundary="none"), causal=(deep,)))
    router, patches = model.causal_stage.router, model.frame_stage.patches.count
    assert router is not None and router.rate.item() == pytest.approx(2 / patches)
    model.anneal(frames=0.5, causal=0.5)
    assert router.rate.item() == pytest.approx(2 / patches)


@pytest.mark.parametrize("outer,inner", [(False, True), (True, False), (False, False), (True, True)])
def test_stages_that_force_boundaries_may_stand_in_stages_that_do_not(outer: bool, inner: bool) -> None:
    """The rate of the inner router is that of the tokens that reach it and may start a chunk."""
    first = replace(STRIDE.causal[0], extra=1.5, frame_boundary=outer)
    second = replace(first, width=first.width + 4, extra=0.4, frame_boundary=inner)
    config = replace(STRIDE, causal=(first, second))
    stage = WorldModel(config).causal_stage.inner
    assert isinstance(stage, CausalStage) and stage.router is not None
    tokens = 1 + config.frame.chunks
    arriving = 1.5 + outer
    frames = 1.0 if outer else 1.5 / tokens  # as many F_t as other tokens
    assert stage.router.rate.item() == pytest.approx(0.4 / (arriving - frames * inner))
    model = random_model(config)
    batch = random_batch(config, rows=3, length=10)
    with torch.no_grad():
        assert model(batch, torch.arange(3)).y.isfinite().all()
    model.anneal(frames=1.0, causal=1.0)
    assert stage.router.rate.item() == pytest.approx(0.4 / (arriving - frames * inner))


def test_what_is_cut_off_needs_a_decoder_to_be_shown_to() -> None:
    with pytest.raises(ValueError, match="it needs decoder_layers"):
        replace(STRIDE.causal[0], cut_off=True, decoder_layers="")


def test_x0_is_what_is_cut_off_and_every_block_of_the_decoder_is_shown_it() -> None:
    own = replace(STRIDE.causal[0], cut_off=True, decoder_layers="m2")
    stage = random_model(replace(STRIDE, main=replace(STRIDE.main, width=48), causal=(own,))).causal_stage
    assert stage.recall is not None and stage.decoder.gain is not None
    up = torch.randn(3, 7, 48)
    for entry in range(48):
        other = up.clone()
        other[..., entry] += 1
        (kept, x0), (other_kept, other_x0) = stage._narrow(up, None), stage._narrow(other, None)
        assert torch.equal(x0, other_x0) == (entry < own.width), "an entry is kept, or else it is cut off"
        assert torch.equal(kept, other_kept) == (entry >= own.width)
    stage.decoder(torch.randn(3, 7, own.width), x0=stage._narrow(up, None)[1]).square().sum().backward()
    assert (stage.decoder.gain.grad != 0).all() and len(stage.decoder.gain) == 2


def test_a_chunk_is_told_how_many_tokens_the_one_before_it_had() -> None:
    stage = stage_of("merging")
    tokens, taken = tokens_for("merging", stage), []
    hook = stage.inner.register_forward_hook(lambda _inner, args, _out: taken.append(args))
    with torch.no_grad():
        tokens.run(stage)
        assert stage.embed_length is not None
        stage.embed_length.zero_()
        tokens.run(stage)
        stage.embed_length.copy_(torch.arange(len(stage.embed_length))[:, None].expand_as(stage.embed_length))
        tokens.run(stage)
    hook.remove()
    (_, _, marks), (silent, _, _), (told, _, _) = taken
    lengths = (told - silent)[..., 0].round().long()
    for row in range(3):
        for i in range(1, int(marks.present[row].sum())):
            before = marks.place[row, i] - marks.place[row, i - 1]
            assert lengths[row, i] == (0 if marks.reset[row, i] else before)
    assert len(lengths[marks.present].unique()) > 2


def test_values_are_told_the_code_of_their_token_and_its_action() -> None:
    model = random_model(CONFIGS["told"])
    heard = []
    hook = model.causal_stage.register_forward_hook(lambda _stage, args, _out: heard.append(args[1:]))
    batch = random_batch(CONFIGS["told"])
    with torch.no_grad():
        whole = model(batch, torch.arange(3))
    hook.remove()
    ((side, marks),) = heard
    Z, valid = model.latent.width, whole.chunks.valid.view(3, 9, -1)
    codes = side.values[..., :Z]
    assert (codes[marks.is_frame] == 0).all()
    assert torch.equal(codes[marks.present & ~marks.is_frame], whole.latent[valid])
    assert torch.equal(side.values[..., Z:], side.action)
