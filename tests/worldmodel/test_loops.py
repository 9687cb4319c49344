"""The looped core against one that is written to be read: a token after the other, its past a list."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel import attention, loop_core
from worldmodel.attention import LONG
from worldmodel.config import LoopConfig
from worldmodel.loop_plan import LoopCues, plan_backprop, plan_loops, starting_noise
from worldmodel.loops import CoreNoise, LoopedCore

B, M, D = 3, 9, 8
PLAIN = LoopConfig(layers="T1t1", loops=3.0, max_loops=6, spread=0.0, backprop=2)
CONFIGS = {
    "plain": PLAIN,
    "certainty": replace(PLAIN, certainty=True),
    "budget": replace(PLAIN, budget=5.0),
    "exit": replace(PLAIN, exit=0.5),
    "last": replace(PLAIN, keys="last"),
    "warm": replace(PLAIN, warm_start=True),
    "all": replace(PLAIN, certainty=True, budget=6.0, exit=0.4, keys="last", warm_start=True),
}
ANY = st.builds(
    LoopConfig,
    layers=st.sampled_from(["t1", "T1", "T1t1"]),
    loops=st.floats(1, 5),
    max_loops=st.integers(5, 6),
    spread=st.just(0.0),
    backprop=st.integers(1, 6),
    certainty=st.booleans(),
    budget=st.sampled_from([0.0, 2.0, 6.0]),
    exit=st.sampled_from([0.0, 0.4, 0.8]),
    keys=st.sampled_from(["loop", "last"]),
    warm_start=st.booleans(),
)
many = settings(max_examples=40, deadline=None, derandomize=True)


def core_of(config, window=4, seed=0):
    """A core in which nothing is at its start any more."""
    torch.manual_seed(seed)
    core = LoopedCore(config, D, heads=2, window=window).eval()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return core


class Rows:
    """Three rows of noise: one piece, two and three of them, the last two with pads behind."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.e = torch.randn(B, M, D, generator=g)
        self.reset = torch.zeros(B, M, dtype=torch.bool)
        self.reset[:, 0] = self.reset[1, 4] = self.reset[2, 1] = self.reset[2, 2] = True
        self.present = torch.arange(M) < torch.tensor([[M], [M - 1], [5]])
        place = torch.arange(M)
        key = (torch.arange(B) + 100 * seed)[:, None].expand(B, M)
        self.noise = CoreNoise(key, place.expand(B, M))
        self.count = place - torch.where(self.reset, place, 0).cummax(1).values
        frames = (torch.rand(B, M, generator=g) < 0.6) | self.reset
        total = frames.long().cumsum(1)
        before = torch.where(self.reset, total - 1, 0).cummax(1).values
        self.cues = LoopCues(torch.rand(B, M, generator=g), total - before, self.count + 1)

    def run(self, core, e=None, cues=None):
        return core(self.e if e is None else e, cues or self.cues, self.reset, self.present, self.noise)


def at(cues, rows, columns):
    return LoopCues(*(x[rows, columns] for x in (cues.certainty, cues.frames, cues.tokens)))


def naive(core, rows, loops, backprop, s0, exit):
    """`s_BMD`, with zeros at pads. What does not learn is detached by hand."""
    out = torch.zeros(B, M, D)
    for b in range(B):
        pieces = [[]]
        for m in range(int(rows.present[b].sum())):
            if rows.reset[b, m]:
                pieces.append([])
                s = torch.zeros(D)
            past = pieces[-1]
            s = s if core.config.warm_start else s0[b, m]
            said = []
            for i in range(int(loops[b, m])):
                learns = i >= loops[b, m] - backprop[b, m]
                h, of_loop = core.adapter(torch.cat([s, rows.e[b, m]]))[None], []
                for j, block in enumerate(core.blocks):
                    q, k, v = (t[0] for t in block.project(h, rows.count[b, m, None]))
                    of_loop.append((k, v) if learns else (k.detach(), v.detach()))
                    seen = past[max(0, len(past) - core.window + 1) :]
                    deep = [t[-1 if core.config.keys == "last" else min(i, len(t) - 1)][j] for t in seen]
                    keys, values = (torch.stack(x) for x in zip(*deep, of_loop[-1]))
                    weight = (torch.einsum("he,whe->hw", q, keys) / q.shape[-1] ** 0.5).softmax(-1)
                    h = block.finish(h, torch.einsum("hw,whe->he", weight, values)[None])
                said.append(of_loop)
                new = h[0] if learns else h[0].detach()
                still = (new - s).norm() / new.norm() < exit
                s = new
                if still:
                    break
            past.append(said)
            out[b, m] = s
    return out


@given(ANY, st.sampled_from([1, 3, 20]), st.integers(0, 99))
@many
def test_whole_rows_are_tokens_one_after_the_other(config, window, seed):
    core, rows = core_of(config, window, seed), Rows(seed)
    loops = torch.as_tensor(plan_loops(config, config.loops, rows.cues)).expand(B, M)
    with torch.no_grad():
        expected = naive(core, rows, loops, loops, torch.zeros(B, M, D), config.exit)
        s, _ = rows.run(core)
    torch.testing.assert_close(s[rows.present], expected[rows.present], rtol=1e-4, atol=1e-4)


@given(ANY, st.sampled_from([1, 3, 20]), st.integers(0, 99))
@settings(many, max_examples=20)
def test_gradients_in_training_are_those_of_each_tokens_last_loops(config, window, seed):
    core, rows = core_of(config, window, seed).train(), Rows(seed)
    loops = torch.as_tensor(plan_loops(config, config.loops, rows.cues)).expand(B, M)
    backprop = torch.as_tensor(plan_backprop(config, rows.cues)).expand(B, M)
    rows.e.requires_grad_()
    weight = torch.randn(B, M, D, generator=torch.Generator().manual_seed(seed)) * rows.present.unsqueeze(-1)
    wanted = [rows.e, *core.parameters()]
    expected = naive(core, rows, loops, backprop, starting_noise(rows.noise.key, rows.noise.place, D), 0.0)
    s, _ = rows.run(core)
    torch.testing.assert_close(s[rows.present], expected[rows.present], rtol=1e-4, atol=1e-4)
    theirs = torch.autograd.grad((expected * weight).sum(), wanted)
    ours = torch.autograd.grad((s * weight).sum(), wanted)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 + 1e-4 * float(b.abs().max()))


@given(ANY, st.sampled_from([1, 3, 20]), st.integers(0, 99), st.booleans())
@many
def test_steps_give_the_row_at_any_pace(config, window, seed, in_place):
    """Rows sit out at random, so that they stand at different tokens; what is not to be written to is not."""
    core, rows = core_of(config, window, seed), Rows(seed)
    if seed % 2:
        core.set_loops(config.max_loops - 1)
    g = torch.Generator().manual_seed(seed)
    every, here = torch.arange(B), torch.zeros(B, dtype=torch.int64)
    with torch.no_grad():
        expected, _ = rows.run(core)
        memory, fresh = core.initial_memory(B, "core"), core.initial_memory(B, "core")
        while True:
            left = (here < M) & rows.present[every, here.clamp(max=M - 1)]
            if not left.any():
                break
            active = left & (torch.rand(B, generator=g) < 0.7)
            m = here.clamp(max=M - 1)
            restart = active & rows.reset[every, m]
            for name, value in memory.items():
                memory[name] = torch.where(restart.view(-1, *[1] * (value.dim() - 1)), fresh[name], value)
            kept = {name: (value, value.clone()) for name, value in memory.items()}
            everyone = None if active.all() else active
            cues, count = at(rows.cues, every, m), rows.count[every, m]
            s = core.step(rows.e[every, m], memory, "core", count, cues, everyone, in_place=in_place)
            torch.testing.assert_close(s[active], expected[every, m][active], rtol=1e-4, atol=1e-4)
            for name, (value, copy) in kept.items():
                assert in_place or torch.equal(value, copy)
                assert torch.equal(memory[name][~active], copy[~active])
            here += active


@pytest.mark.parametrize("label", ["plain", "certainty", "exit"])
def test_a_long_packed_row_is_what_a_mask_over_it_gives(label, monkeypatch):
    core, g = core_of(CONFIGS[label]), torch.Generator().manual_seed(0)
    e, p = torch.randn(1, LONG + 9, D, generator=g), torch.rand(1, LONG + 9, generator=g)
    reset = torch.rand(1, LONG + 9, generator=g) < 0.1
    reset[:, 0] = True
    args = (
        e,
        LoopCues(certainty=p),
        reset,
        torch.ones_like(reset),
        CoreNoise(torch.zeros_like(reset).long(), reset.long()),
    )
    with torch.no_grad():
        packed, _ = core(*args)
        monkeypatch.setattr(attention, "LONG", 10**6)
        masked, _ = core(*args)
    assert not torch.equal(packed, masked)  # it did go by pieces
    torch.testing.assert_close(packed, masked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", CONFIGS)
def test_the_future_and_the_neighbours_never_move_a_token(label):
    core, rows = core_of(CONFIGS[label], window=20), Rows()
    e, p = rows.e.clone(), rows.cues.certainty.clone()
    e[:, 5:] += 3
    e[1] += 1
    p[:, 5:] = 1 - p[:, 5:]
    with torch.no_grad():
        s, _ = rows.run(core)
        moved, _ = rows.run(core, e, replace(rows.cues, certainty=p))
    torch.testing.assert_close(moved[0, :5], s[0, :5], rtol=0, atol=1e-6)
    assert not torch.allclose(moved[0, 5:], s[0, 5:], atol=1e-2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("label", CONFIGS)
def test_pads_move_neither_tokens_nor_notes(label, training):
    core, rows = core_of(CONFIGS[label]).train(training), Rows()
    pads = ~rows.present
    e = rows.e.masked_fill(pads.unsqueeze(-1), 50.0)
    other = [x.masked_fill(pads, 0) for x in (rows.cues.certainty, rows.cues.frames, rows.cues.tokens)]
    (s, notes), (moved, moved_notes) = rows.run(core), rows.run(core, e, LoopCues(*other))
    torch.testing.assert_close(moved[rows.present], s[rows.present], rtol=0, atol=1e-6)
    for name, value in vars(notes).items():
        torch.testing.assert_close(vars(moved_notes)[name], value, rtol=0, atol=1e-6)
        assert not value.requires_grad


@pytest.mark.parametrize("label", CONFIGS)
def test_the_same_key_gives_the_same_bits_and_noise_is_for_training_only(label):
    config = replace(CONFIGS[label], spread=0.5)
    core, rows = core_of(config), Rows()
    other = Rows()
    other.noise.key = rows.noise.key + 7
    with torch.no_grad():
        assert torch.equal(rows.run(core)[0], other.run(core)[0])
        core.train()
        torch.manual_seed(1)
        a = rows.run(core)[0]
        torch.manual_seed(2)
        assert torch.equal(a, rows.run(core)[0])
        if not config.warm_start:
            assert not torch.equal(a, other.run(core)[0])


def test_one_draw_serves_the_whole_pass():
    core, rows = core_of(replace(PLAIN, spread=1.0)).train(), Rows()
    seen = set()
    for key in range(30):
        rows.noise.key = torch.tensor([key, 1, 2])[:, None].expand(B, M)
        mean = float(rows.run(core)[1].loops)
        assert mean == int(mean)
        seen.add(mean)
    assert len(seen) > 2


@pytest.mark.parametrize("label", CONFIGS)
def test_a_new_core_has_a_gradient_everywhere(label):
    torch.manual_seed(0)
    core, rows = LoopedCore(CONFIGS[label], D, heads=2, window=4).train(), Rows()
    rows.e.requires_grad_()
    s, _ = rows.run(core)
    (s * torch.randn(s.shape))[rows.present].sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (rows.e.grad.abs().amax(-1) > 0)[rows.present].all()


def test_the_gradient_through_enough_loops_is_the_whole_gradient():
    rows = Rows()
    rows.e.requires_grad_()

    def gradient(backprop):
        core = core_of(replace(PLAIN, backprop=backprop)).train()
        return torch.autograd.grad(rows.run(core)[0][rows.present].square().cumsum(0).sum(), rows.e)[0]

    assert torch.equal(gradient(3), gradient(6))
    assert not torch.allclose(gradient(1), gradient(3), rtol=1e-2)


@pytest.mark.parametrize("label", ["plain", "last", "certainty"])
def test_loops_can_be_chosen_when_it_runs(label):
    rows, chosen, made = Rows(), core_of(CONFIGS[label]), core_of(replace(CONFIGS[label], loops=5.0))
    made.load_state_dict(chosen.state_dict())
    chosen.set_loops(5)
    with torch.no_grad():
        assert torch.equal(rows.run(chosen)[0], rows.run(made)[0])
        chosen.set_loops(None)
        assert not torch.allclose(rows.run(chosen)[0], rows.run(made)[0], atol=1e-2)
    for bad in (0, 7):
        with pytest.raises(ValueError, match="between 1 and max_loops"):
            chosen.set_loops(bad)


def test_an_exit_saves_loops_outside_of_training():
    rows = Rows()
    core = core_of(replace(PLAIN, layers="t1", loops=30.0, max_loops=30, exit=0.03))
    with torch.no_grad():
        core.adapter.weight[:, :D] *= 0.1  # so that the loop comes to rest
        s, notes = rows.run(core)
        assert 1 < notes.loops < 20
        assert notes.moved < 0.03
        assert float(rows.run(core.train())[1].loops) == 30
        core.eval().config = replace(core.config, exit=0.0)
        rested, _ = rows.run(core)
    assert ((s - rested).norm(dim=-1) < 0.1 * rested.norm(dim=-1))[rows.present].all()


def test_tokens_that_are_done_are_not_computed(monkeypatch):
    """Loops are what a budget counts, so a loop that a token does not get must cost nothing."""
    core, rows = core_of(CONFIGS["certainty"]), Rows()
    ran = []
    monkeypatch.setattr(core.adapter, "forward", lambda x: ran.append(len(x)) or x[:, :D])
    _, notes = rows.run(core)
    assert sum(ran) == round(float(notes.loops) * int(rows.present.sum()))
    assert len(ran) == int(plan_loops(core.config, 3.0, rows.cues)[rows.present].max())


def test_tokens_that_are_all_alike_need_no_mask(monkeypatch):
    core, rows = core_of(PLAIN), Rows()
    turns = []
    once = loop_core.Core._once
    monkeypatch.setattr(loop_core.Core, "_once", lambda *args: turns.extend(args[-1]) or once(*args))
    rows.run(core)
    core.step(rows.e[:, 0], core.initial_memory(B, "core"), "core", rows.count[:, 0], LoopCues())
    assert [turn.index for turn in turns] == [None] * 6
    assert core.alike
    assert not any(core_of(CONFIGS[label]).alike for label in ("certainty", "budget", "exit", "all"))


def test_notes_tell_a_collapsed_core_and_one_that_moves():
    core, rows = core_of(PLAIN), Rows()
    spread = rows.run(core)[1]
    assert spread.loops == 3
    assert -0.2 < spread.correlation < 0.8
    same = rows.run(core, torch.ones(B, M, D))[1]
    torch.testing.assert_close(same.correlation, torch.tensor(1.0))
    core.set_loops(1)
    torch.testing.assert_close(rows.run(core)[1].moved, torch.tensor(1.0))  # from zero, all of s is new
    rows.present = rows.present & (torch.arange(M) < 1) & (torch.arange(B) == 0)[:, None]
    assert rows.run(core)[1].correlation == 0  # one token has no other


def test_a_core_runs_under_autocast():
    for label, config in CONFIGS.items():
        core, rows = core_of(config).train(), Rows()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            s, _ = rows.run(core)
            with torch.no_grad():
                stepped = core.step(
                    rows.e[:, 0], core.initial_memory(B, "c"), "c", rows.count[:, 0], at(rows.cues, slice(None), 0)
                )
        s[rows.present].sum().backward()
        assert s.isfinite().all() and stepped.isfinite().all(), label


def test_a_core_of_nothing_is_refused():
    for layers in ("", "T0"):
        with pytest.raises(ValueError, match="a core needs layers"):
            LoopedCore(replace(PLAIN, layers=layers), D, heads=2, window=4)


def test_a_core_has_its_norms_on_both_sides_of_what_is_added():
    """The second norm is around the sum, not around what is added (Geiping et al.): so s stays in bounds."""
    core = core_of(replace(PLAIN, layers="T1"))
    block = core.blocks[0]
    x, y = torch.randn(5, D), torch.randn(5, D)
    with torch.no_grad():
        after = block.norm2(block.attention.out(y) + x)
        expected = block.norm4(block.mlp(block.norm3(after)) + after)
        torch.testing.assert_close(block.finish(x, y.view(5, -1, D // block.attention.heads)), expected)
        far = block.finish(1e4 * x, y.view(5, -1, D // block.attention.heads))
    assert far.abs().max() < 20 * block.norm4.weight.abs().max()
