"""Boundaries that nobody learns: at their rate, by their rule, the same for the same frame, and without a gate."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIGS, LEARNED, STRIDE, random_batch, random_frames, random_model

from worldmodel.boundaries import Change, Motion, Random, content_key, moved, moved_since
from worldmodel.losses import LossConfig, picture_loss, world_model_loss
from worldmodel.model import WorldModel

KEY = torch.tensor([11, 22, 33])
KINDS = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))


def rule(name):
    return {"change": Change(0.25, 49), "random": Random(0.25)}[name]


def tiles(n, seed=0):
    """Patches `(n, 49, 12)` as those of a grid world: a few kinds, and one of them nearly everywhere."""
    g = torch.Generator().manual_seed(seed)
    return KINDS[(torch.rand(n, 49, generator=g) ** 3 * 4).long()]


def free_after_the_first(x):
    free = torch.ones(x.shape[:2])
    free[:, 0] = 0
    return free


@pytest.mark.parametrize("name", ["change", "random"])
def test_the_rate_is_held_from_the_first_pass_on_and_afterwards(name):
    """Also among tiles of which most equal the one before."""
    source = rule(name)
    held = []
    for i in range(20):
        x = tiles(40, seed=i)
        held.append(source(x, free_after_the_first(x), free_after_the_first(x)).hard_rate.item())
    assert held == pytest.approx([0.25] * 20, abs=0.05)
    source.eval()
    before = source.logit_tau.clone()
    x = torch.cat([tiles(40, seed=i) for i in range(100, 110)])
    assert source(x, free_after_the_first(x), free_after_the_first(x)).hard_rate == pytest.approx(0.25, abs=0.02)
    assert torch.equal(source.logit_tau, before)


def test_tau_comes_to_rest_and_still_follows_a_rate_that_moves():
    source = rule("change")
    g = torch.Generator().manual_seed(0)

    def passes(n):
        for _ in range(n):
            x = torch.rand(10, 49, 12, generator=g)
            rate = source(x, free_after_the_first(x), free_after_the_first(x)).hard_rate.item()
            yield source.logit_tau.item(), rate

    moves = torch.tensor([tau for tau, _ in passes(300)]).diff().abs()
    assert moves[200:].mean() < 0.1 * moves[:20].mean()
    source.aim(0.5)
    last = [rate for _, rate in passes(300)][-50:]
    assert sum(last) / 50 == pytest.approx(0.5, abs=0.03)


def test_change_prefers_what_changes_more_and_says_d_over_d_plus_tau():
    source = Change(0.25, 6).eval()
    source.logit_tau.copy_(torch.tensor(0.005).log())
    x = torch.tensor([0.0, 0.0, 0.1, 0.11, 0.5, 0.0]).view(1, 6, 1).expand(1, 6, 12)
    routing = source(x, free_after_the_first(x), None)
    d = (x[:, 1:] - x[:, :-1])[..., 0].square()
    torch.testing.assert_close(routing.probability[:, 1:], d / (d + 0.005), atol=1e-3, rtol=1e-3)
    assert routing.boundary[0].tolist() == [False, False, True, False, True, True]


def test_random_boundaries_follow_the_content_and_no_neighbour():
    x = torch.rand(30, 49, 12)
    free = free_after_the_first(x)
    source = rule("random")
    drawn = source(x, free, free).boundary
    order = torch.randperm(30)
    assert torch.equal(source(x[order], free, None).boundary, drawn[order])
    touched = x.clone()
    touched[:, 40, 3] += 1 / 255
    assert len(content_key(torch.cat([x, touched])).unique()) == 60
    again = source(touched, free, None).boundary
    shared = (again & drawn).sum() / drawn.sum()
    assert shared == pytest.approx(0.25, abs=0.1)  # a frame that differs by one byte is another frame


@pytest.mark.parametrize("name", ["change", "random"])
def test_forward_and_observe_agree_about_boundaries_that_nobody_learns(name):
    model = random_model(CONFIGS[name])
    batch = random_batch(CONFIGS[name], rows=3, length=6, seed=4)
    with torch.no_grad():
        starts = model(batch, KEY).chunks
    state = model.initial_state(3, KEY)
    for t in range(6):
        state, out = model.observe(state, batch.action[:, t], batch.frames[batch.index[:, t]], batch.first[:, t])
        for row in range(3):
            expected = starts.start[row * 6 + t][starts.valid[row * 6 + t]].tolist()
            assert [s for s in out.starts[row].tolist() if s >= 0] == expected


@pytest.mark.parametrize("name", ["change", "random"])
def test_nothing_learned_has_no_gate_and_no_ratio_loss_but_a_report(name):
    config = CONFIGS[name]
    model = random_model(config).train()
    assert not model.fixed_starts
    batch = random_batch(config)
    seen = model(batch, KEY)
    assert seen.chunks.gate is None
    assert seen.routing["frame"].ratio_loss is None
    generator = torch.Generator().manual_seed(0)
    for _, notes in (
        world_model_loss(model, batch, LossConfig(), key=KEY, generator=generator),
        picture_loss(model, batch, LossConfig(), key=KEY),
    ):
        assert "loss/ratio" not in notes
        assert 0 < notes["router/frame_F"] < 1
    with torch.no_grad():
        assert model.eval()(batch, KEY).routing["frame"].boundary.any()


def test_no_boundaries_at_all_is_a_stride_of_one_patch_bit_for_bit():
    P = 12
    none = replace(STRIDE, frame=replace(STRIDE.frame, boundary="none", chunks=3.0, max_chunks=2))
    stride = replace(STRIDE, frame=replace(STRIDE.frame, chunks=float(P)))
    passes = []
    for config in (none, stride):
        torch.manual_seed(0)
        model = WorldModel(config)
        assert model.fixed_starts
        passes.append(model(random_batch(config), KEY))
    assert passes[0].chunks.start[0].tolist() == list(range(P))
    assert torch.equal(passes[0].y, passes[1].y)
    assert torch.equal(passes[0].latent, passes[1].latent)


def test_only_what_is_known_beforehand_counts_as_fixed():
    fixed = {name: WorldModel(config).fixed_starts for name, config in CONFIGS.items()}
    assert fixed == {name: config.frame.boundary in ("stride", "none") for name, config in CONFIGS.items()}


@pytest.mark.parametrize("boundary", ["learned", "change", "random"])
def test_every_source_keeps_to_the_cap(boundary):
    config = replace(LEARNED, frame=replace(LEARNED.frame, boundary=boundary, chunks=4.0, max_chunks=4))
    model = random_model(config)
    with torch.no_grad():
        stage = model.frame_stage
        patches = stage.patches(random_frames(config, 50, 0))
        chunks, _, _ = stage.encode(stage.look(patches), patches, None)
    count = chunks.valid.sum(1)
    assert count.max() == 4
    assert count.min() < 4


def since(source, x, weight=None, reset=None):
    """What the source says of positions `(L, T, V)` followed through time."""
    begins = F.pad(torch.zeros(1, x.shape[1] - 1, dtype=torch.bool), (1, 0), value=True) if reset is None else reset
    logit = moved_since(x.transpose(0, 1).unsqueeze(0), begins, source.logit_tau)[0].T
    return source(logit, free_after_the_first(x), weight)


def moving(share, seed=0):
    """Tiles followed through time, `(49, 200, 12)`: each becomes another kind in this share of the steps."""
    g = torch.Generator().manual_seed(seed)
    steps = 1 + torch.randint(3, (49, 200), generator=g)
    kind = ((torch.rand(49, 200, generator=g) < share) * steps).cumsum(1) % 4
    return KINDS[kind], F.pad(kind.diff(dim=1) != 0, (1, 0))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.08])
def test_where_less_moves_than_may_be_new_just_that_is_new(share):
    source = Motion(0.08)
    for seed in range(4):
        x, moves = moving(share, seed)
        routing = since(source, x, free_after_the_first(x))
        wrong = (routing.boundary != moves).sum()
        assert wrong == 0 if share < 0.08 else wrong <= 0.1 * moves.sum()


def test_where_more_moves_the_largest_changes_are_new_and_all_that_are_as_large():
    source = Motion(0.25)
    x = torch.zeros(1, 101, 12)
    x[0, 1::2] = 1.0  # half of all steps: up by 1 or down to 0.5, and down by the same
    x[0, 3::4] = 0.5
    for _ in range(3):
        routing = since(source, x, free_after_the_first(x))
    d = F.pad(x[0].diff(dim=0).square().mean(-1), (1, 0))
    assert torch.equal(routing.boundary[0], d == 1.0)
    assert routing.hard_rate > 0.4  # tau fell among many that are equal: none of them is left out


def test_what_is_new_follows_from_all_that_was_met_not_from_the_mean_of_the_passes():
    """Seven passes of eight say that small moves are new, the eighth that only large ones are: all are."""
    source = Motion(0.3)
    for large in (2, 2, 2, 8, 2, 2, 2, 2):  # of 20 steps; two more are small, the others stand still
        x = torch.zeros(1, 21, 12)
        x[0, 1 : large + 3] = torch.tensor([1.0] * large + [0.1] * 2).cumsum(0)[:, None]
        x[0, large + 3 :] = x[0, large + 2]
        routing = since(source, x, free_after_the_first(x))
    assert routing.boundary[0].tolist() == [False] + [True] * 4 + [False] * 16


def test_before_frames_have_shown_their_order_all_that_moves_is_new():
    source, (x, moves) = Motion(0.08), moving(0.5)
    assert torch.equal(since(source, x).boundary, moves)


def test_motion_is_what_steps_see_too():
    x, _ = moving(0.3)
    source = Motion(0.1)
    since(source, x, free_after_the_first(x))
    rows = since(source.eval(), x)
    held = x[:, 0]
    for t in range(1, x.shape[1]):
        new = source.probability(moved(held, x[:, t])) > 0.5
        assert torch.equal(rows.boundary[:, t], new)
        held = torch.where(new.unsqueeze(-1), x[:, t], held)


def test_what_drifts_slowly_is_new_when_it_has_come_far():
    """Half of the patches jump, half drift by a thousandth of that a step: those come far in a hundred steps, too."""
    source = Motion(0.25)
    steps = torch.arange(200.0)
    jumps, drifts = (steps % 2).expand(8, 200), (steps / 100).expand(8, 200)
    x = torch.cat([jumps, drifts]).unsqueeze(-1).expand(-1, -1, 12)
    for _ in range(4):
        routing = since(source, x, free_after_the_first(x))
    assert routing.boundary[:8, 1:].all()
    since_new = torch.where(routing.boundary, steps, 0.0).cummax(1).values
    far = x[8:, :, 0] - x[8:, :, 0].gather(1, since_new[8:].long())
    assert 0.9 < far.max() < 1.1 and routing.boundary[8:].sum() >= 8


def test_a_new_piece_is_held_against_nothing_before_it():
    x = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 4, 1).expand(3, 4, 12)
    source, begins = Motion(0.2), torch.tensor([[True, False, True, False]])
    assert not since(source, x, reset=begins).boundary[:, 3].any()
